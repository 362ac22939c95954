"""What log-ratios are measured against: a frozen copy, another model, an average that follows, a store on disk."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from treeward.losses.preference import KTO, ORPO, SIMPO, ChosenNLL, Sum, Term
from treeward.methods.dpo import DPOConfig, dpo
from treeward.models.logp_store import LogpStore
from treeward.models.policy import Policy, branch_logps
from treeward.models.reference import EMA, EMAReference, Frozen, ReferenceModel, reference_for

Build = Callable[..., Any]
OFF = Frozen(store="off")


def config(**fields: Any) -> DPOConfig:
    return DPOConfig(
        **{"steps": 6, "batch_size": 3, "lr": 1e-2, "schedule": "constant_with_warmup", "reference": OFF} | fields
    )


def margins(policy: Policy, trees: list[Any], asked: DPOConfig) -> list[float]:
    return [step.metrics["rewards/margins"] for step in dpo(policy, trees, asked)]


def test_an_average_that_follows_starts_as_the_frozen_copy_and_ends_nearer(policy: Build, grow: Build) -> None:
    """With a rate of nearly 1 the reference is the policy of the step before, so every margin stays small."""
    trees = grow(6, branches=2)
    frozen = margins(policy(), trees, config())
    near = margins(policy(), trees, config(reference=EMA(0.999)))
    slow = margins(policy(), trees, config(reference=EMA(1e-6)))
    assert frozen[0] == near[0] == 0.0
    assert slow == pytest.approx(frozen, abs=1e-3)
    assert abs(near[-1]) < 0.5 * abs(frozen[-1])


def test_the_reference_is_the_closed_form_of_the_policies_that_it_followed(policy: Build, grow: Build) -> None:
    model = policy()
    reference = reference_for(model, EMA(0.25))
    assert isinstance(reference, EMAReference)
    weight = next(iter(reference.packed.parameters()))
    expected = weight.clone()
    for _ in dpo(model, grow(6, branches=2), config(), reference):
        expected = 0.75 * expected + 0.25 * next(iter(model.packed.parameters())).detach()
    torch.testing.assert_close(weight, expected, rtol=0, atol=1e-6)


def test_w1_an_average_in_closed_form(policy: Build) -> None:
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
                reference.follow()
        average = next(iter(reference.packed.parameters()))
        torch.testing.assert_close(average, torch.full_like(average, expected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("loss", [ORPO(), SIMPO(), ChosenNLL(), Sum((Term(loss=ORPO()),))], ids=repr)
@pytest.mark.parametrize("reference", [EMA(), Frozen("somewhere")], ids=repr)
def test_a_reference_that_the_loss_does_not_read_is_refused(loss: Any, reference: Any) -> None:
    with pytest.raises(ValueError, match=r"reference is (EMA|Frozen)\(.*, but loss.kind \w+ .* leave reference out"):
        DPOConfig(loss=loss, reference=reference)
    DPOConfig(loss=loss, reference=OFF)
    DPOConfig(loss=Sum(), reference=reference)


@pytest.mark.parametrize("loss", [config().loss, KTO()])
def test_an_interrupted_run_with_an_average_is_the_whole_one_bit_for_bit(
    loss: Any, policy: Build, grow: Build, tmp_path: Path
) -> None:
    trees, asked = grow(6, branches=2), config(reference=EMA(0.2), loss=loss)
    whole = policy()
    *_, last = dpo(whole, trees, asked)
    for step in dpo(policy(), trees, asked):
        if step.index == 3:
            step.state.save(tmp_path / "3")
            break
    again = policy()
    *_, other = dpo(again, trees, asked, resume=tmp_path / "3")
    assert all(torch.equal(a, b) for a, b in zip(whole.packed.parameters(), again.packed.parameters(), strict=True))
    assert last.metrics == other.metrics


def test_a_checkpoint_without_the_average_is_refused(policy: Build, grow: Build, tmp_path: Path) -> None:
    trees = grow(6, branches=2)
    next(iter(dpo(policy(), trees, config(reference=EMA(0.2))))).state.save(tmp_path / "1")
    (tmp_path / "1" / "reference.safetensors").unlink()
    with pytest.raises(ValueError, match=r"reference.safetensors' is missing"):
        next(iter(dpo(policy(), trees, config(reference=EMA(0.2)), resume=tmp_path / "1")))


def test_another_model_is_the_reference_that_its_path_names(grow: Build, tmp_path: Path) -> None:
    start, other = Policy.load("world", device="cpu"), Policy.load("world", device="cpu", seed=1)
    other.save(tmp_path / "model")
    reference = reference_for(start, Frozen(str(tmp_path / "model"), "off"))
    trees = grow(3, branches=2)
    found = reference.branch_logps(trees, 1024)
    torch.testing.assert_close(torch.cat([found[t] for t in trees]), branch_logps(other, trees), rtol=0, atol=1e-4)
    assert (branch_logps(start, trees) - branch_logps(other, trees)).abs().max() > 0.1


def test_a_reference_with_another_tokenizer_is_refused(policy: Build, tmp_path: Path) -> None:
    Policy.load("world", device="cpu").save(tmp_path / "model")
    with pytest.raises(ValueError, match=r"reference.path .* has another tokenizer"):
        reference_for(policy(), Frozen(str(tmp_path / "model"), "off"))


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, float("nan")])
def test_a_rate_outside_0_and_1_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match=r"reference.rate is"):
        EMA(rate)


def test_a_second_run_reads_what_the_first_wrote(
    policy: Build, grow: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trees, kept = grow(9, branches=2), Frozen(store=str(tmp_path / "s.sqlite"))
    first = margins(policy(), trees, config(reference=kept))
    assert LogpStore(tmp_path / "s.sqlite").size == 4 * sum(len(b) for tree in trees for b in tree.branches)
    asked: list[int] = []
    computed = ReferenceModel._computed

    def counted(self: ReferenceModel, given: Any, budget: int) -> Any:
        asked.append(sum(len(tree.branches) for tree in given))
        return computed(self, given, budget)

    monkeypatch.setattr(ReferenceModel, "_computed", counted)
    second = margins(policy(), trees, config(reference=kept, lr=1e-2))
    assert second == first
    assert sum(asked) == 8, "the audit alone"
    assert first == margins(policy(), trees, config())


def test_a_loss_without_a_reference_asks_for_none(policy: Build, grow: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: Any) -> Any:
        raise AssertionError("the reference was asked")

    monkeypatch.setattr(ReferenceModel, "branch_logps", refuse)
    assert len(list(dpo(policy(), grow(6, branches=2), config(loss=ORPO())))) == 6
