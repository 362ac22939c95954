"""KTO's reference point: under a reference that moves, over ranks, under weights, and where a batch has none."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fixtures import BuildPolicy, Grow, PlainLogps
from treeward.errors import UserError
from treeward.losses.preference import KTO
from treeward.methods.dpo import DPOConfig, LabelledObjective, dpo_steps
from treeward.models.policy import Policy
from treeward.models.reference import EMA, ReferenceModel, reference_for
from treeward.runtime import Runtime
from treeward.training.objectives import prepare
from treeward.trees.tokens import TokenTree

Build = Callable[..., Any]


@pytest.fixture
def sums(plain_logps: PlainLogps) -> Callable[..., Tensor]:
    """sums(module, trees): log-probability of the one response of each tree, one plain row at a time."""

    def compute(module: Any, trees: list[TokenTree]) -> Tensor:
        with torch.no_grad():
            return torch.stack([plain_logps(module, tree).sum() for tree in trees])

    return compute


def single(trees: list[TokenTree], weights: tuple[float, ...] = (1.0,) * 9) -> list[TokenTree]:
    """Labelled in turns."""
    return [
        replace(t, ratings=((float(n % 2),),), weight=w) for n, (t, w) in enumerate(zip(trees, weights, strict=False))
    ]


def exchanged(batch: list[TokenTree]) -> list[TokenTree]:
    """Each prompt with the response of the next tree, cut to the longest path."""
    longest = max(tree.longest_path for tree in batch)
    return [
        TokenTree(a.prompt, (b.branches[0][: longest - len(a.prompt)],))
        for a, b in zip(batch, [*batch[1:], batch[0]], strict=True)
    ]


def prepared(ours: Policy, trees: list[TokenTree], reference: ReferenceModel) -> LabelledObjective:
    """KTO's objective, which has seen these trees as a batch."""
    objective = LabelledObjective(KTO(), reference)
    prepare(objective, ours.packed, trees, 1000)
    return objective


def test_kto_under_a_reference_that_follows_by_plain_rows(policy: BuildPolicy, grow: Grow, sums: Build) -> None:
    """At the second step policy and reference are both others than at the first."""
    trees, model = single(grow(6, branches=1, seed=2)), policy()
    config = DPOConfig(
        steps=2, batch_size=6, lr=1e-2, warmup=0.0, loss=KTO(beta=0.2, undesirable=0.8), reference=EMA(0.3)
    )
    reference = reference_for(model, config.reference)
    run = dpo_steps(model, trees, config, reference)
    next(run)
    now, then = (copy.deepcopy(packed.model) for packed in (model.packed, reference.packed))
    batch = config.batches(trees).batch(1)
    metrics = next(run).numbers()
    x = sums(now, batch) - sums(then, batch)
    z = (sums(now, exchanged(batch)) - sums(then, exchanged(batch))).mean().item()
    assert z > 0.05
    above = 0.2 * (x - z)
    desirable = torch.tensor([tree.ratings == ((1.0,),) for tree in batch])
    wanted = torch.where(desirable, torch.sigmoid(-above), 0.8 * torch.sigmoid(above))
    assert metrics["rewards/reference"] == pytest.approx(0.2 * z, abs=1e-4)
    assert metrics["loss"] == pytest.approx(wanted.mean().item(), abs=1e-4)


class RecordingRuntime(Runtime):
    """A runtime that keeps the sums that it is given, as if every rank were alone."""

    def sum_values(self, sums: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        PARTS.append(dict(sums))
        return sums


PARTS: list[dict[str, Tensor]] = []


def test_each_rank_measures_its_share(policy: BuildPolicy, grow: Grow) -> None:
    """Five pairs on two ranks: six and four mismatched responses, which together give the whole batch's mean."""
    ours, trees = policy(), grow(5, seed=3)
    objective = prepared(ours, trees, ReferenceModel.of(policy(seed=1)))
    whole = objective.z0
    PARTS.clear()
    for rank in (0, 1):
        prepare(objective, ours.packed, trees, 1000, RecordingRuntime(rank=rank, world=2))
    parts = PARTS
    assert [int(part["n"]) for part in parts] == [6, 4]
    mean = sum(part["x"].item() for part in parts) / sum(part["w"].item() for part in parts)
    assert max(0.0, mean) == pytest.approx(whole, abs=1e-5)
    assert whole > 0


def test_a_row_counts_with_its_weight_and_without_one_not_at_all(policy: BuildPolicy, grow: Grow, sums: Build) -> None:
    trees = single(grow(4, branches=1, seed=3), (1.0, 0.0, 3.0, 0.5))
    ours, start = policy(), policy(seed=1)
    objective = prepared(ours, trees, ReferenceModel.of(start))
    left = [trees[0], trees[2], trees[3]]
    x = sums(ours.packed.model, exchanged(left)) - sums(start.packed.model, exchanged(left))
    expected = (x @ torch.tensor([1.0, 3.0, 0.5]).double() / 4.5).item()
    assert expected > 0.1
    assert objective.z0 == pytest.approx(expected, abs=1e-4)
    assert objective.mismatched == 3


def test_how_many_responses_the_reference_is_the_mean_of(policy: BuildPolicy, grow: Grow) -> None:
    trees = single(grow(3, branches=1))
    config = DPOConfig(steps=1, batch_size=3, loss=KTO())
    assert next(dpo_steps(policy(), trees, config)).numbers()["rewards/mismatched"] == 3
    alike = [replace(tree, prompt=trees[0].prompt) for tree in trees]
    metrics = next(dpo_steps(policy(), alike, config, ReferenceModel.of(policy(seed=1)))).numbers()
    assert (metrics["rewards/mismatched"], metrics["rewards/reference"]) == (0, 0)


def test_a_batch_without_another_prompt_is_refused() -> None:
    with pytest.raises(UserError, match=r"batch_size is 1, but loss\.kind KTO .* use 8 or more"):
        DPOConfig(loss=KTO(), batch_size=1)
    DPOConfig(batch_size=1)
