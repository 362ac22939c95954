"""The loop: how a batch is cut changes nothing, means are over the true count, and NaN stops it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from treeward.losses.preference import IPO
from treeward.methods.dpo import DPOConfig, dpo
from treeward.methods.sft import SFTConfig, TokenNLL, sft
from treeward.models.policy import Policy
from treeward.training.loop import LoopConfig, NonFinite, Terms, fit
from treeward.training.state import DataOrder
from treeward.trees.forest import Forest
from treeward.trees.tokens import TokenTree

Build = Callable[..., Any]


@contextmanager
def gradients() -> Iterator[list[list[torch.Tensor]]]:
    """The gradients that each optimiser step was given, as they came."""
    found: list[list[torch.Tensor]] = []

    def keep(optimizer: Any, *_: Any) -> None:
        found.append([p.grad.clone() for group in optimizer.param_groups for p in group["params"]])

    handle = register_optimizer_step_pre_hook(keep)
    try:
        yield found
    finally:
        handle.remove()


def trained(algorithm: str, policy: Policy, trees: list[TokenTree], budget: int) -> tuple[Any, Any, Any]:
    """Metrics and gradients of two steps, and the weights after them; products in float64, so that cuts show."""
    shared: dict[str, Any] = {"steps": 2, "batch_size": 7, "token_budget": budget, "max_grad_norm": 1e9, "lr": 1e-4}
    policy.packed.double()
    with gradients() as found:
        if algorithm == "sft":
            steps = list(sft(policy, trees, SFTConfig(**shared)))
        else:
            steps = list(dpo(policy, trees, DPOConfig(loss=IPO(), **shared)))
    return [step.metrics for step in steps], found, [p.detach().clone() for p in policy.packed.parameters()]


@pytest.mark.parametrize("algorithm", ["sft", "dpo"])
def test_the_token_budget_changes_speed_only(algorithm: str, policy: Build, grow: Build) -> None:
    trees = grow(12, branches=2, longest=10)
    runs = [trained(algorithm, policy(), trees, budget) for budget in (4096, 64, 16)]
    metrics, found, weights = runs[0]
    assert all(torch.isfinite(g).all() for step in found for g in step)
    for other_metrics, other_found, other_weights in runs[1:]:
        for a, b in zip(metrics, other_metrics, strict=True):
            assert b == pytest.approx(a, rel=1e-6, abs=1e-6)
        for a, b in zip(found, other_found, strict=True):
            whole, cut = torch.cat([g.flatten() for g in a]), torch.cat([g.flatten() for g in b])
            assert (whole - cut).norm() < 1e-6 * whole.norm() + 1e-6
        for a, b, *steps in zip(weights, other_weights, *found, strict=True):
            # Adam divides by the gradient's size: where that is rounding itself, so is the step.
            clear = torch.stack([g.abs() > 1e-6 for g in steps]).all(0)
            torch.testing.assert_close(a[clear], b[clear], rtol=0, atol=1e-6)
            assert (a - b).abs().max() <= 4e-4


def by_hand(module: Any, trees: list[TokenTree], plain_logps: Build) -> torch.Tensor:
    """The mean negative log-probability of a response token, differentiable."""
    return -torch.cat([plain_logps(module, tree) for tree in trees]).mean()


@pytest.mark.parametrize("budget", [30, 4096])
def test_a_short_last_batch_is_a_mean_over_its_own_count(
    budget: int, policy: Build, grow: Build, tiny: Build, plain_logps: Build
) -> None:
    """Five trees in batches of four: with a rate of 0 both steps are those of the start model."""
    trees, plain = grow(5, branches=3), tiny("llama", attention="eager")
    config = SFTConfig(batch_size=4, lr=0.0, token_budget=budget, max_grad_norm=1e9)
    with gradients() as found:
        steps = list(sft(policy(), trees, config))
    order = DataOrder(5, 4, 0)
    assert [len(order.batch(n)) for n in (0, 1)] == [4, 1]
    for index, (step, kept) in enumerate(zip(steps, found, strict=True)):
        plain.zero_grad()
        expected = by_hand(plain, [trees[row] for row in order.batch(index)], plain_logps)
        expected.backward()
        assert step.metrics["loss"] == pytest.approx(expected.item(), abs=1e-5)
        grads = torch.cat([p.grad.flatten() for p in plain.parameters()])
        ours = torch.cat([g.flatten() for g in kept])
        assert (ours - grads).norm() < 1e-5 * grads.norm()
        assert step.metrics["grad_norm"] == pytest.approx(grads.norm().item(), rel=1e-5)


def test_the_gradient_is_clipped_and_its_norm_reported_unclipped(policy: Build, grow: Build) -> None:
    trees = grow(4)
    with gradients() as found:
        free = list(sft(policy(), trees, SFTConfig(steps=1, max_grad_norm=1e9)))
        tight = list(sft(policy(), trees, SFTConfig(steps=1, max_grad_norm=0.25)))
    norms = [torch.cat([g.flatten() for g in step]).norm().item() for step in found]
    assert norms[0] == pytest.approx(free[0].metrics["grad_norm"], rel=1e-5)
    assert norms[0] > 1
    assert norms[1] == pytest.approx(0.25, rel=1e-4)
    assert tight[0].metrics["grad_norm"] == pytest.approx(norms[0], rel=1e-6)


def test_one_step_moves_the_weights_as_adam_does(policy: Build, grow: Build) -> None:
    ours = policy()
    before = [p.detach().clone() for p in ours.packed.parameters()]
    config = SFTConfig(steps=1, lr=1e-3, warmup=0.0, schedule="constant_with_warmup", max_grad_norm=1e9)
    with gradients() as found:
        (step,) = sft(ours, grow(6), config)
    assert step.metrics["lr"] == 1e-3
    for old, new, g in zip(before, ours.packed.parameters(), found[0], strict=True):
        torch.testing.assert_close(new.detach(), old - 1e-3 * g / (g.abs() + 1e-8), rtol=0, atol=1e-6)


def test_a_rate_of_zero_moves_nothing(policy: Build, grow: Build) -> None:
    ours = policy()
    before = [p.detach().clone() for p in ours.packed.parameters()]
    list(sft(ours, grow(6), SFTConfig(steps=3, lr=0.0)))
    assert all(torch.equal(a, b) for a, b in zip(before, ours.packed.parameters(), strict=True))


def test_steps_are_numbered_from_one_and_the_model_rests_between_them(policy: Build, grow: Build) -> None:
    ours, indices = policy(), []
    for step in sft(ours, grow(7), SFTConfig(batch_size=3, epochs=2.0)):
        indices.append((step.index, step.state.index))
        assert not ours.packed.training
    assert indices == [(n, n) for n in range(1, 7)]


@dataclass
class Faulty:
    """Token losses that turn into something else at the n-th call; the gradient alone, where `value` is None."""

    inner: TokenNLL
    at: int
    value: float | None
    calls: int = 0

    def count(self, tree: TokenTree) -> int:
        return self.inner.count(tree)

    def __call__(self, forest: Forest) -> Terms:
        self.calls += 1
        terms = self.inner(forest)
        if self.calls < self.at:
            return terms
        if self.value is None:
            terms.values.register_hook(lambda gradient: gradient * float("nan"))
            return terms
        return Terms(terms.values * self.value, {})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None])
def test_a_number_that_is_not_finite_stops_the_run_before_the_step(
    value: float | None, policy: Build, grow: Build
) -> None:
    ours = policy()
    objective = Faulty(TokenNLL(ours.packed), 2, value)
    run = fit(ours.packed, grow(8), objective, LoopConfig(steps=4, batch_size=4, lr=1e-3), 4096)
    next(run)
    after_one = [p.detach().clone() for p in ours.packed.parameters()]
    with pytest.raises(NonFinite, match="step 2: loss"):
        next(run)
    assert all(torch.equal(a, b) for a, b in zip(after_one, ours.packed.parameters(), strict=True))


def test_an_absurd_rate_ends_in_an_error_and_not_in_silence(policy: Build, grow: Build) -> None:
    with pytest.raises(NonFinite):
        list(sft(policy(), grow(8), SFTConfig(steps=4, batch_size=4, lr=1e20)))


def test_no_trees_are_nothing_to_train_on(policy: Build) -> None:
    with pytest.raises(ValueError, match="nothing to train on"):
        list(sft(policy(), []))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_path_beyond_the_positions_is_refused_before_the_first_step(family: str, policy: Build, grow: Build) -> None:
    ours = policy(family)
    before = [p.detach().clone() for p in ours.packed.parameters()]
    with pytest.raises(ValueError, match="longer than the model's 256 positions"):
        list(sft(ours, [*grow(3), TokenTree((3,) * 200, ((4,) * 57,))], SFTConfig(batch_size=1)))
    assert all(torch.equal(a, b) for a, b in zip(before, ours.packed.parameters(), strict=True))
