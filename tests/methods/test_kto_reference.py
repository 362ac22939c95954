"""KTO's reference point: under a reference that moves, over ranks, under weights, and where a batch has none."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from treeward.models.z0 import EMA, ReferenceModel, reference_for

from treeward import runtime as ranks
from treeward.losses.preference import KTO
from treeward.methods.dpo import DPOConfig, dpo, objective
from treeward.methods.preferences import LabelledPreference
from treeward.trees.tokens import TokenTree

Build = Callable[..., Any]


@pytest.fixture
def sums(plain_logps: Build) -> Callable[..., Tensor]:
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


def reference_of(ours: Any, trees: list[TokenTree], reference: ReferenceModel) -> LabelledPreference:
    found = objective(ours, reference, trees, DPOConfig(loss=KTO()))
    assert isinstance(found, LabelledPreference)
    found.prepare(trees)
    return found


def test_kto_under_a_reference_that_follows_by_plain_rows(policy: Build, grow: Build, sums: Build) -> None:
    """At the second step policy and reference are both others than at the first."""
    trees, model = single(grow(6, branches=1, seed=2)), policy()
    config = DPOConfig(
        steps=2, batch_size=6, lr=1e-2, warmup=0.0, loss=KTO(beta=0.2, undesirable=0.8), reference=EMA(0.3)
    )
    reference = reference_for(model, config.reference)
    run = dpo(model, trees, config, reference)
    next(run)
    now, then = (copy.deepcopy(tree.model) for tree in (model.packed, reference.packed))
    batch = [trees[row] for row in config.order(6).batch(1)]
    found = next(run).metrics
    x = sums(now, batch) - sums(then, batch)
    z = (sums(now, exchanged(batch)) - sums(then, exchanged(batch))).mean().item()
    assert z > 0.05
    above = 0.2 * (x - z)
    desirable = torch.tensor([tree.ratings == ((1.0,),) for tree in batch])
    wanted = torch.where(desirable, torch.sigmoid(-above), 0.8 * torch.sigmoid(above))
    assert found["rewards/reference"] == pytest.approx(0.2 * z, abs=1e-4)
    assert found["loss"] == pytest.approx(wanted.mean().item(), abs=1e-4)


def test_each_rank_measures_its_share(policy: Build, grow: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five pairs on two ranks: six and four mismatched responses, which together give the whole batch's mean."""
    ours, trees, parts = policy(), grow(5, seed=3), []
    found = reference_of(ours, trees, ReferenceModel.of(policy(seed=1)))
    whole = found.z0
    monkeypatch.setattr(ranks, "world", lambda: 2)
    monkeypatch.setattr(ranks, "sum_all", lambda sums: parts.append(sums) or sums)
    for rank in (0, 1):
        monkeypatch.setattr(ranks, "rank", lambda rank=rank: rank)
        found.prepare(trees)
    assert [int(part["n"]) for part in parts] == [6, 4]
    mean = sum(part["x"].item() for part in parts) / sum(part["w"].item() for part in parts)
    assert max(0.0, mean) == pytest.approx(whole, abs=1e-5)
    assert whole > 0


def test_a_row_counts_with_its_weight_and_without_one_not_at_all(policy: Build, grow: Build, sums: Build) -> None:
    trees = single(grow(4, branches=1, seed=3), (1.0, 0.0, 3.0, 0.5))
    ours, start = policy(), policy(seed=1)
    found = reference_of(ours, trees, ReferenceModel.of(start))
    left = [trees[0], trees[2], trees[3]]
    x = sums(ours.packed.model, exchanged(left)) - sums(start.packed.model, exchanged(left))
    expected = (x @ torch.tensor([1.0, 3.0, 0.5]).double() / 4.5).item()
    assert expected > 0.1
    assert found.z0 == pytest.approx(expected, abs=1e-4)
    assert found.mismatched == 3


def test_how_many_responses_the_reference_is_the_mean_of(policy: Build, grow: Build) -> None:
    trees = single(grow(3, branches=1))
    config = DPOConfig(steps=1, batch_size=3, loss=KTO())
    assert next(dpo(policy(), trees, config)).metrics["rewards/mismatched"] == 3
    alike = [replace(tree, prompt=trees[0].prompt) for tree in trees]
    metrics = next(dpo(policy(), alike, config, ReferenceModel.of(policy(seed=1)))).metrics
    assert (metrics["rewards/mismatched"], metrics["rewards/reference"]) == (0, 0)


def test_a_batch_without_another_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match=r"batch_size is 1, but loss\.kind KTO .* use 8 or more"):
        DPOConfig(loss=KTO(), batch_size=1)
    DPOConfig(batch_size=1)
