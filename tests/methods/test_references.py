"""What log-ratios are measured against: a frozen copy, another model, an average that follows, a store on disk."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fixtures import BuildPolicy, Grow
from treeward.errors import ChecksFailed, UserError
from treeward.losses.preference import KTO, ORPO, SIMPO, ChosenNLL, Sum, Term
from treeward.methods.dpo import DPOConfig, dpo_steps, preference_objective
from treeward.models.logp_store import LogpStore, key
from treeward.models.policy import Policy, branch_logps
from treeward.models.reference import EMA, EMAReference, Frozen, ReferenceModel, reference_for
from treeward.training.batches import Batches
from treeward.training.loop import Loop, Step
from treeward.trees.forest import Forest
from treeward.trees.tokens import TokenTree

OFF = Frozen(store="off")


def config(**fields: Any) -> DPOConfig:
    return DPOConfig(
        **{"steps": 6, "batch_size": 3, "lr": 1e-2, "schedule": "constant_with_warmup", "reference": OFF} | fields
    )


def margins(
    policy: Policy, trees: list[TokenTree], config: DPOConfig, reference: ReferenceModel | None = None
) -> list[float]:
    return [step.numbers()["rewards/margins"] for step in dpo_steps(policy, trees, config, reference)]


def steps_of(
    policy: Policy, trees: list[TokenTree], config: DPOConfig, resume: Path | None = None
) -> Iterator[tuple[Step, Loop, Batches[TokenTree]]]:
    """Train with the loop itself, from a checkpoint if one is given."""
    objective = preference_objective(config, reference_for(policy, config.reference))
    batches = config.batches(trees)
    loop = Loop.from_config(policy, objective, config, len(batches))
    if resume is not None:
        loop.load(resume, batches=batches)
    for batch in batches:
        yield loop.step(batch), loop, batches


class Counted:
    """Counts the forward passes of a reference model, and the branches in them."""

    def __init__(self, reference: ReferenceModel) -> None:
        self.passes = self.branches = 0
        reference.packed.register_forward_hook(self._count)

    def _count(self, module: Any, arguments: tuple[Forest], output: torch.Tensor) -> None:
        self.passes += 1
        self.branches += arguments[0].branches


def test_an_average_that_follows_starts_as_the_frozen_copy_and_ends_nearer(policy: BuildPolicy, grow: Grow) -> None:
    """With a rate of nearly 1 the reference is the policy of the step before, so every margin stays small."""
    trees = grow(6, branches=2)
    frozen = margins(policy(), trees, config())
    near = margins(policy(), trees, config(reference=EMA(0.999)))
    slow = margins(policy(), trees, config(reference=EMA(1e-6)))
    assert frozen[0] == near[0] == 0.0
    assert slow == pytest.approx(frozen, abs=1e-3)
    assert abs(near[-1]) < 0.5 * abs(frozen[-1])


def test_the_reference_is_the_closed_form_of_the_policies_that_it_followed(policy: BuildPolicy, grow: Grow) -> None:
    model = policy()
    reference = reference_for(model, EMA(0.25))
    assert isinstance(reference, EMAReference)
    weight = next(iter(reference.packed.parameters()))
    expected = weight.clone()
    for _ in dpo_steps(model, grow(6, branches=2), config(), reference):
        expected = 0.75 * expected + 0.25 * next(iter(model.packed.parameters())).detach()
    torch.testing.assert_close(weight, expected, rtol=0, atol=1e-6)


def test_w1_an_average_in_closed_form(policy: BuildPolicy) -> None:
    """Rate 0.01, 100 steps: the start's weight under a policy that stands still, and the lag behind one that drifts by
    1 a step.
    """
    model = policy()
    weight = next(iter(model.packed.parameters()))
    for drift, start, expected in ((0.0, 1.0, 0.366032), (1.0, 0.0, 100 - 62.762798)):
        with torch.no_grad():
            weight.fill_(start)
            reference = reference_for(model, EMA(0.01))
            assert isinstance(reference, EMAReference)
            for step in range(1, 101):
                weight.fill_(drift * step)
                reference.update()
        average = next(iter(reference.packed.parameters()))
        torch.testing.assert_close(average, torch.full_like(average, expected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("loss", [ORPO(), SIMPO(), ChosenNLL(), Sum((Term(loss=ORPO()),))], ids=repr)
@pytest.mark.parametrize("reference", [EMA(), Frozen("somewhere")], ids=repr)
def test_a_reference_that_the_loss_does_not_read_is_refused(loss: Any, reference: Any) -> None:
    with pytest.raises(UserError, match=r"reference is (EMA|Frozen)\(.*, but loss.kind \w+ .* leave reference out"):
        DPOConfig(loss=loss, reference=reference)
    DPOConfig(loss=loss, reference=OFF)
    DPOConfig(loss=Sum(), reference=reference)


@pytest.mark.parametrize("loss", [config().loss, KTO()])
def test_an_interrupted_run_with_an_average_is_the_whole_one_bit_for_bit(
    loss: Any, policy: BuildPolicy, grow: Grow, tmp_path: Path
) -> None:
    trees, settings = grow(6, branches=2), config(reference=EMA(0.2), loss=loss)
    whole = policy()
    last = [step for step, _, _ in steps_of(whole, trees, settings)][-1]
    for step, loop, batches in steps_of(policy(), trees, settings):
        if step.index == 3:
            loop.save(tmp_path / "3", batches=batches)
            break
    again = policy()
    other = [step for step, _, _ in steps_of(again, trees, settings, tmp_path / "3")]
    assert [step.index for step in other] == [4, 5, 6]
    assert all(torch.equal(a, b) for a, b in zip(whole.packed.parameters(), again.packed.parameters(), strict=True))
    assert last.numbers() == other[-1].numbers()


def test_a_checkpoint_without_the_average_is_refused(policy: BuildPolicy, grow: Grow, tmp_path: Path) -> None:
    trees, settings = grow(6, branches=2), config(reference=EMA(0.2))
    _, loop, batches = next(steps_of(policy(), trees, settings))
    loop.save(tmp_path / "1", batches=batches)
    (tmp_path / "1" / "reference.safetensors").unlink()
    with pytest.raises(UserError, match=r"reference.safetensors' is missing"):
        next(steps_of(policy(), trees, settings, tmp_path / "1"))


def test_another_model_is_the_reference_that_its_path_names(grow: Grow, tmp_path: Path) -> None:
    start, other = Policy.load("world", device="cpu"), Policy.load("world", device="cpu", seed=1)
    other.save(tmp_path / "model")
    reference = reference_for(start, Frozen(str(tmp_path / "model"), "off"))
    trees = grow(3, branches=2)
    logps = reference.branch_logps(trees, 1024)
    torch.testing.assert_close(torch.cat([logps[t] for t in trees]), branch_logps(other, trees), rtol=0, atol=1e-4)
    assert (branch_logps(start, trees) - branch_logps(other, trees)).abs().max() > 0.1


def test_a_reference_with_another_tokenizer_is_refused(policy: BuildPolicy, tmp_path: Path) -> None:
    Policy.load("world", device="cpu").save(tmp_path / "model")
    with pytest.raises(UserError, match=r"reference.path .* has another tokenizer"):
        reference_for(policy(), Frozen(str(tmp_path / "model"), "off"))


@pytest.mark.parametrize("rate", [1.1, -0.1, float("nan")])
def test_a_rate_outside_0_and_1_is_refused(rate: float) -> None:
    with pytest.raises(UserError, match=r"reference.rate is"):
        EMA(rate)


def test_a_second_run_reads_what_the_first_wrote(policy: BuildPolicy, grow: Grow, tmp_path: Path) -> None:
    trees, kept = grow(9, branches=2), Frozen(store=str(tmp_path / "s.sqlite"))
    first = margins(policy(), trees, config(reference=kept))
    assert LogpStore(tmp_path / "s.sqlite").size == 4 * sum(len(b) for tree in trees for b in tree.branches)
    model = policy()
    reference = reference_for(model, kept)
    counted = Counted(reference)
    second = margins(model, trees, config(reference=kept, lr=1e-2), reference)
    assert second == first
    assert counted.branches == 8, "the audit alone"
    assert first == margins(policy(), trees, config())


def test_a_loss_without_a_reference_computes_none(policy: BuildPolicy, grow: Grow) -> None:
    model = policy()
    reference = model.frozen_copy()
    counted = Counted(reference)
    assert len(list(dpo_steps(model, grow(6, branches=2), config(loss=ORPO()), reference))) == 6
    assert counted.passes == 0


def test_a_frozen_reference_is_computed_once_for_all_training_trees(policy: BuildPolicy, grow: Grow) -> None:
    """Six steps over two epochs, in one forward pass; a reference that follows is computed for each batch."""
    trees, model = grow(9), policy()
    reference = model.frozen_copy()
    counted = Counted(reference)
    list(dpo_steps(model, trees, config(token_budget=4096), reference))
    assert (counted.passes, counted.branches) == (1, 18)
    model = policy()
    average = reference_for(model, EMA(0.5))
    counted = Counted(average)
    list(dpo_steps(model, trees, config(token_budget=4096), average))
    assert (counted.passes, counted.branches) == (6, 36)


@pytest.mark.parametrize("ahead", [True, False])
def test_f22_a_store_of_other_weights_stops_training_before_the_first_step(
    ahead: bool, policy: BuildPolicy, grow: Grow, tmp_path: Path
) -> None:
    """Whether log-probabilities are read ahead (`dpo_steps`) or by batch (`Loop`)."""
    trees, store = grow(6), LogpStore(tmp_path / "a.sqlite")
    stored = ReferenceModel.of(policy(), store)
    stored.branch_logps(trees, 1024)
    names = [key(stored.identity, tree.prompt, branch) for tree in trees for branch in tree.branches]
    store.write({name: logps + 0.01 for name, logps in store.read(names).items()})
    ours = policy()
    reference = ReferenceModel.of(ours, store)
    loop = Loop(ours, preference_objective(config(), reference), lr=1e-3)
    with pytest.raises(ChecksFailed, match=r"stored-logps-match \(F22\) FAILED"):
        next(iter(dpo_steps(ours, trees, config(), reference))) if ahead else loop.step(trees)
    assert all(torch.equal(a, b) for a, b in zip(ours.packed.parameters(), policy().packed.parameters(), strict=True))
