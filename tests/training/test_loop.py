"""The loop: how a batch is cut changes nothing, means are over the true count, and NaN stops it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from fixtures import BuildModel, BuildPolicy, Grow, PlainLogps
from treeward.errors import UserError
from treeward.losses.preference import IPO, Sigmoid
from treeward.methods.dpo import DPOConfig, PairObjective, dpo_steps
from treeward.methods.sft import SFTConfig, TokenNLL, sft_steps
from treeward.models.policy import Policy
from treeward.models.reference import EMA, reference_for
from treeward.training.batches import Batches
from treeward.training.loop import Loop, NonFinite, Step
from treeward.training.objectives import Terms
from treeward.trees.forest import Forest
from treeward.trees.forward import TreeModule
from treeward.trees.rollout import Rollout
from treeward.trees.text import Tree
from treeward.trees.tokens import TokenTree


@contextmanager
def gradients() -> Iterator[list[list[torch.Tensor]]]:
    """The gradients that each optimizer step was given, as they came."""
    grads: list[list[torch.Tensor]] = []

    def keep(optimizer: Any, *_: Any) -> None:
        grads.append([p.grad.clone() for group in optimizer.param_groups for p in group["params"]])

    handle = register_optimizer_step_pre_hook(keep)
    try:
        yield grads
    finally:
        handle.remove()


def trained(algorithm: str, policy: Policy, trees: list[TokenTree], budget: int) -> tuple[Any, Any, Any]:
    """Metrics and gradients of two steps, and the weights after them; products in float64, so that cuts show."""
    shared: dict[str, Any] = {"steps": 2, "batch_size": 7, "token_budget": budget, "max_grad_norm": 1e9, "lr": 1e-4}
    policy.packed.double()
    with gradients() as grads:
        if algorithm == "sft":
            steps = list(sft_steps(policy, trees, SFTConfig(**shared)))
        else:
            steps = list(dpo_steps(policy, trees, DPOConfig(loss=IPO(), **shared)))
    return [step.numbers() for step in steps], grads, [p.detach().clone() for p in policy.packed.parameters()]


@pytest.mark.parametrize("algorithm", ["sft", "dpo"])
def test_the_token_budget_changes_speed_only(algorithm: str, policy: BuildPolicy, grow: Grow) -> None:
    trees = grow(12, branches=2, longest=10)
    runs = [trained(algorithm, policy(), trees, budget) for budget in (4096, 64, 16)]
    metrics, grads, weights = runs[0]
    assert all(torch.isfinite(g).all() for step in grads for g in step)
    for other_metrics, other_grads, other_weights in runs[1:]:
        for a, b in zip(metrics, other_metrics, strict=True):
            assert b == pytest.approx(a, rel=1e-6, abs=1e-6)
        for a, b in zip(grads, other_grads, strict=True):
            whole, cut = torch.cat([g.flatten() for g in a]), torch.cat([g.flatten() for g in b])
            assert (whole - cut).norm() < 1e-6 * whole.norm() + 1e-6
        for a, b, *steps in zip(weights, other_weights, *grads, strict=True):
            # Adam divides by the gradient's size: where that is rounding itself, so is the step.
            clear = torch.stack([g.abs() > 1e-6 for g in steps]).all(0)
            torch.testing.assert_close(a[clear], b[clear], rtol=0, atol=1e-6)
            assert (a - b).abs().max() <= 4e-4


def by_hand(module: Any, trees: list[TokenTree], plain_logps: PlainLogps) -> torch.Tensor:
    """The mean negative log-probability of a response token, differentiable."""
    return -torch.cat([plain_logps(module, tree) for tree in trees]).mean()


@pytest.mark.parametrize("budget", [30, 4096])
def test_a_short_last_batch_is_a_mean_over_its_own_count(
    budget: int, policy: BuildPolicy, grow: Grow, tiny: BuildModel, plain_logps: PlainLogps
) -> None:
    """Five trees in batches of four: with a rate of 0 both steps are those of the start model."""
    trees, plain = grow(5, branches=3), tiny("llama", attention="eager")
    config = SFTConfig(batch_size=4, lr=0.0, token_budget=budget, max_grad_norm=1e9)
    with gradients() as grads:
        steps = list(sft_steps(policy(), trees, config))
    order = Batches(trees, 4)
    assert [len(order.rows(n)) for n in (0, 1)] == [4, 1]
    for index, (step, kept) in enumerate(zip(steps, grads, strict=True)):
        plain.zero_grad()
        expected = by_hand(plain, order.batch(index), plain_logps)
        expected.backward()
        assert step.numbers()["loss"] == pytest.approx(expected.item(), abs=1e-5)
        grads = torch.cat([p.grad.flatten() for p in plain.parameters()])
        ours = torch.cat([g.flatten() for g in kept])
        assert (ours - grads).norm() < 1e-5 * grads.norm()
        assert step.numbers()["grad_norm"] == pytest.approx(grads.norm().item(), rel=1e-5)


def test_the_gradient_is_clipped_and_its_norm_reported_unclipped(policy: BuildPolicy, grow: Grow) -> None:
    trees = grow(4)
    with gradients() as grads:
        free = list(sft_steps(policy(), trees, SFTConfig(steps=1, max_grad_norm=1e9)))
        tight = list(sft_steps(policy(), trees, SFTConfig(steps=1, max_grad_norm=0.25)))
    norms = [torch.cat([g.flatten() for g in step]).norm().item() for step in grads]
    assert norms[0] == pytest.approx(free[0].numbers()["grad_norm"], rel=1e-5)
    assert norms[0] > 1
    assert norms[1] == pytest.approx(0.25, rel=1e-4)
    assert tight[0].numbers()["grad_norm"] == pytest.approx(norms[0], rel=1e-6)


def test_one_step_moves_the_weights_as_adam_does(policy: BuildPolicy, grow: Grow) -> None:
    ours = policy()
    before = [p.detach().clone() for p in ours.packed.parameters()]
    config = SFTConfig(steps=1, lr=1e-3, warmup=0.0, schedule="constant_with_warmup", max_grad_norm=1e9)
    with gradients() as grads:
        (step,) = sft_steps(ours, grow(6), config)
    assert step.numbers()["lr"] == 1e-3
    for old, new, g in zip(before, ours.packed.parameters(), grads[0], strict=True):
        torch.testing.assert_close(new.detach(), old - 1e-3 * g / (g.abs() + 1e-8), rtol=0, atol=1e-6)


def test_a_rate_of_zero_moves_nothing(policy: BuildPolicy, grow: Grow) -> None:
    ours = policy()
    before = [p.detach().clone() for p in ours.packed.parameters()]
    list(sft_steps(ours, grow(6), SFTConfig(steps=3, lr=0.0)))
    assert all(torch.equal(a, b) for a, b in zip(before, ours.packed.parameters(), strict=True))


def test_steps_are_numbered_from_one_and_the_model_rests_between_them(policy: BuildPolicy, grow: Grow) -> None:
    ours, indices = policy(), []
    loop = Loop(ours, TokenNLL(), lr=1e-3)
    for batch in Batches(grow(7), 3, epochs=2.0):
        indices.append((loop.step(batch).index, loop.index))
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

    def __call__(self, model: TreeModule, forest: Forest) -> Terms:
        self.calls += 1
        terms = self.inner(model, forest)
        if self.calls < self.at:
            return terms
        if self.value is None:
            terms.values.register_hook(lambda gradient: gradient * float("nan"))
            return terms
        return Terms(terms.values * self.value, {})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None])
def test_a_number_that_is_not_finite_stops_the_run_before_the_step(
    value: float | None, policy: BuildPolicy, grow: Grow
) -> None:
    ours = policy()
    loop = Loop(ours, Faulty(TokenNLL(), 2, value), lr=1e-3, token_budget=4096)
    first, second = Batches(grow(8), 4)
    loop.step(first)
    after_one = [p.detach().clone() for p in ours.packed.parameters()]
    with pytest.raises(NonFinite, match="step 2: loss") as caught:
        loop.step(second)
    assert (caught.value.taken, loop.index) == (1, 1)
    assert all(torch.equal(a, b) for a, b in zip(after_one, ours.packed.parameters(), strict=True))


def test_an_absurd_rate_ends_in_an_error_and_not_in_silence(policy: BuildPolicy, grow: Grow) -> None:
    with pytest.raises(NonFinite):
        list(sft_steps(policy(), grow(8), SFTConfig(steps=4, batch_size=4, lr=1e20)))


def test_no_trees_are_nothing_to_train_on(policy: BuildPolicy) -> None:
    with pytest.raises(UserError, match="nothing to train on"):
        list(sft_steps(policy(), []))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_path_beyond_the_positions_is_refused_before_the_first_step(
    family: str, policy: BuildPolicy, grow: Grow
) -> None:
    ours = policy(family)
    before = [p.detach().clone() for p in ours.packed.parameters()]
    with pytest.raises(UserError, match="longer than the model's 256 positions"):
        list(sft_steps(ours, [*grow(3), TokenTree((3,) * 200, ((4,) * 57,))], SFTConfig(batch_size=1)))
    assert all(torch.equal(a, b) for a, b in zip(before, ours.packed.parameters(), strict=True))


def weights_of(policy: Policy) -> list[torch.Tensor]:
    return [p.detach().clone() for p in policy.packed.parameters()]


def equal(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_an_empty_batch_is_refused(policy: BuildPolicy) -> None:
    loop = Loop(policy(), TokenNLL(), lr=1e-3)
    with pytest.raises(UserError, match="batch is empty; skip the step"):
        loop.step([])
    assert loop.index == 0


def test_an_optimizer_with_tensors_of_another_model_is_refused(policy: BuildPolicy) -> None:
    ours, other = policy(), policy(seed=1)
    count = len(list(other.packed.parameters()))
    with pytest.raises(UserError, match=rf"optimizer has {count} tensors that are not trainable .*; build it from"):
        Loop(ours, TokenNLL(), optimizer=torch.optim.SGD(other.model.parameters(), lr=0.1))


def test_an_optimizer_with_frozen_weights_is_refused(policy: BuildPolicy) -> None:
    ours = policy()
    optimizer = torch.optim.SGD(ours.model.parameters(), lr=0.1)
    ours.model.get_input_embeddings().weight.requires_grad_(False)
    with pytest.raises(UserError, match="optimizer has 1 tensors that are not trainable"):
        Loop(ours, TokenNLL(), optimizer=optimizer)


def test_an_optimizer_that_lacks_trainable_weights_is_refused(policy: BuildPolicy) -> None:
    ours = policy()
    names, parameters = zip(*ours.packed.named_parameters(), strict=True)
    with pytest.raises(UserError, match=rf"optimizer lacks 1 trainable .* '{names[0]}'; add them, or freeze them"):
        Loop(ours, TokenNLL(), optimizer=torch.optim.SGD(parameters[1:], lr=0.1))


def test_the_callers_optimizer_and_scheduler_are_used_and_stepped(policy: BuildPolicy, grow: Grow) -> None:
    """Plain SGD, whose rate is divided by ten after each step: each update is -lr * gradient."""
    ours = policy()
    optimizer = torch.optim.SGD(ours.model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.1)
    loop = Loop(ours, TokenNLL(), optimizer=optimizer, scheduler=scheduler, max_grad_norm=1e9)
    assert loop.optimizer is optimizer
    assert loop.scheduler is scheduler
    for lr in (0.1, 0.01):
        before = weights_of(ours)
        with gradients() as grads:
            step = loop.step(grow(4))
        assert step.numbers()["lr"] == pytest.approx(lr)
        for old, new, gradient in zip(before, ours.packed.parameters(), grads[0], strict=True):
            torch.testing.assert_close(new.detach(), old - lr * gradient, rtol=0, atol=1e-7)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.001)


def test_a_callers_optimizer_without_a_scheduler_keeps_its_rate(policy: BuildPolicy, grow: Grow) -> None:
    ours = policy()
    loop = Loop(ours, TokenNLL(), optimizer=torch.optim.SGD(ours.model.parameters(), lr=0.05))
    assert [loop.step(grow(2)).numbers()["lr"] for _ in range(3)] == [0.05] * 3


def test_arguments_that_do_not_go_together_are_refused(policy: BuildPolicy) -> None:
    ours = policy()
    optimizer, other = (torch.optim.SGD(ours.model.parameters(), lr=0.1) for _ in range(2))
    with pytest.raises(UserError, match="lr is not given; set lr, or pass an optimizer"):
        Loop(ours, TokenNLL())
    with pytest.raises(UserError, match=r"lr is 0\.1 .* but an optimizer is given; set them there"):
        Loop(ours, TokenNLL(), optimizer=optimizer, lr=0.1)
    with pytest.raises(UserError, match=r"weight_decay 0\.5, but an optimizer is given"):
        Loop(ours, TokenNLL(), optimizer=optimizer, weight_decay=0.5)
    scheduler = torch.optim.lr_scheduler.ConstantLR(other)
    with pytest.raises(UserError, match="scheduler is of another optimizer"):
        Loop(ours, TokenNLL(), optimizer=optimizer, scheduler=scheduler)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant_with_warmup"])
def test_a_schedule_needs_the_number_of_steps(schedule: Any, policy: BuildPolicy) -> None:
    with pytest.raises(UserError, match=rf"schedule is '{schedule}', but steps is not given; set steps, or use"):
        Loop(policy(), TokenNLL(), lr=1e-3, schedule=schedule)
    Loop(policy(), TokenNLL(), lr=1e-3, schedule="constant")


def test_backward_and_update_are_the_two_halves_of_a_step(policy: BuildPolicy, grow: Grow) -> None:
    whole, halves = policy(), policy()
    one, two = (Loop(p, TokenNLL(), lr=1e-3, token_budget=40) for p in (whole, halves))
    for seed in range(2):
        batch = grow(5, seed=seed)
        start = weights_of(halves)
        step = one.step(batch)
        metrics = two.backward(batch)
        assert two.index == seed
        assert equal(start, weights_of(halves))
        metrics |= two.update()
        assert two.index == step.index == seed + 1
        assert {name: float(value) for name, value in metrics.items()} == step.numbers()
    assert equal(weights_of(whole), weights_of(halves))


def test_a_rollout_is_a_batch(policy: BuildPolicy, grow: Grow) -> None:
    trees, ours, other = grow(4, branches=3), policy(), policy()
    rolled = Loop(ours, TokenNLL(), lr=1e-3).step(Rollout(trees, ours.tokenizer))
    assert rolled.numbers() == Loop(other, TokenNLL(), lr=1e-3).step(trees).numbers()
    assert equal(weights_of(ours), weights_of(other))


def test_a_batch_of_text_is_rendered(policy: BuildPolicy) -> None:
    ours, other = policy(), policy()
    text = Loop(ours, TokenNLL(), lr=1e-3).step([Tree("w5 w6", [" w7"])])
    ids = Loop(other, TokenNLL(), lr=1e-3).step([TokenTree((5, 6), ((7, 2),))])
    assert text.numbers() == ids.numbers()
    assert equal(weights_of(ours), weights_of(other))


def test_metrics_are_tensors_of_no_dimension(policy: BuildPolicy, grow: Grow) -> None:
    """So nothing waits for the device until a number is read."""
    step = Loop(policy(), TokenNLL(), lr=1e-3).step(grow(3))
    assert isinstance(step, Step)
    assert {"loss", "grad_norm", "lr"} <= step.metrics.keys()
    assert all(isinstance(value, torch.Tensor) and value.dim() == 0 for value in step.metrics.values())
    assert not any(value.requires_grad for value in step.metrics.values())
    assert all(type(value) is float for value in step.numbers().values())


@dataclass
class OutOfMemory:
    """Token losses; the device runs out of memory in the forward passes of these numbers (from 1)."""

    at: tuple[int, ...]
    calls: int = 0
    inner: TokenNLL = field(default_factory=TokenNLL)

    def count(self, tree: TokenTree) -> int:
        return self.inner.count(tree)

    def __call__(self, model: TreeModule, forest: Forest) -> Terms:
        self.calls += 1
        if self.calls in self.at:
            raise torch.OutOfMemoryError("out of memory")
        return self.inner(model, forest)


@pytest.mark.parametrize("at", [1, 2])
def test_out_of_memory_halves_the_budget_and_takes_the_same_step(
    at: int, policy: BuildPolicy, grow: Grow, caplog: pytest.LogCaptureFixture
) -> None:
    """In the second forest as well, when half of the gradients are already there."""
    trees, ours, smaller = grow(8, longest=10), policy(), policy()
    small = Loop(smaller, OutOfMemory(()), lr=1e-3, token_budget=32)
    expected = small.step(trees)
    objective = OutOfMemory((at,))
    loop = Loop(ours, objective, lr=1e-3, token_budget=64)
    step = loop.step(trees)
    assert objective.calls > at + 1
    assert (loop.token_budget, step.index) == (32, 1)
    assert "trying again with a token budget of 32" in caplog.text
    assert step.numbers() == expected.numbers()
    assert equal(weights_of(ours), weights_of(smaller))
    assert loop.step(trees).numbers() == small.step(trees).numbers(), "the smaller budget stays"


def test_out_of_memory_twice_in_a_batch_is_an_error(policy: BuildPolicy, grow: Grow) -> None:
    ours = policy()
    before = weights_of(ours)
    loop = Loop(ours, OutOfMemory((1, 2)), lr=1e-3, token_budget=64)
    with pytest.raises(torch.OutOfMemoryError):
        loop.step(grow(4))
    assert equal(before, weights_of(ours))
    assert loop.index == 0


def test_out_of_memory_keeps_no_gradients_of_an_earlier_batch_by_mistake(policy: BuildPolicy, grow: Grow) -> None:
    """With two backward passes to an update the half-done gradients cannot be told apart, so it is an error."""
    objective = OutOfMemory((2,))
    loop = Loop(policy(), objective, lr=1e-3, token_budget=4096)
    loop.backward(grow(3))
    with pytest.raises(torch.OutOfMemoryError):
        loop.backward(grow(3, seed=1))
    assert loop.token_budget == 4096


def test_a_reference_that_follows_is_updated_by_the_loop_alone(policy: BuildPolicy, grow: Grow) -> None:
    """Once for each update, and not by `backward`."""
    ours = policy()
    reference = reference_for(ours, EMA(0.25))
    loop = Loop(ours, PairObjective(Sigmoid(), reference), lr=1e-2)
    assert loop.reference is reference
    average = next(iter(reference.packed.parameters()))
    expected = average.clone()
    for seed in range(3):
        loop.backward(grow(3, seed=seed))
        assert torch.equal(average, expected)
        loop.update()
        expected = expected.lerp(next(iter(ours.packed.parameters())).detach(), 0.25)
        torch.testing.assert_close(average, expected, rtol=0, atol=1e-7)
        expected = average.clone()
    assert Loop(policy(), TokenNLL(), lr=1e-2).reference is None
    assert Loop(ours, PairObjective(Sigmoid(), ours.frozen_copy()), lr=1e-2).reference is None
