"""The training loop: one optimizer step, owned by the caller.

    batches = Batches(trees, size=32, epochs=3, seed=0)
    loop = Loop(policy, objective, lr=1e-6, schedule="linear", steps=len(batches))
    for batch in batches:
        step = loop.step(batch)

Every method trains with it, and nothing else does. A step packs the batch into forests by a token budget, runs forward
and backward on each, sums the gradients of all ranks, clips them, and updates weights, learning rate and a reference
model that follows the policy.
"""

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from transformers import get_scheduler

from treeward.errors import UserError
from treeward.models.policy import Policy, tokenized
from treeward.models.reward_model import RewardModel
from treeward.models.weights import trainable
from treeward.runtime import Runtime
from treeward.training import checkpoints
from treeward.training.batches import Batches
from treeward.training.objectives import Objective, RolloutObjective, prepare
from treeward.trees.rollout import Rollout
from treeward.trees.text import Tree
from treeward.trees.tokens import TokenTree
from treeward.trees.verify import verify_once

log = logging.getLogger(__name__)

Schedule = Literal["constant", "constant_with_warmup", "linear", "cosine"]


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How long, how fast, and in which pieces to train."""

    steps: int | None = None
    """Optimizer steps; overrides epochs."""
    epochs: float = 1.0
    """Passes over the training trees."""
    batch_size: int = 32
    """Trees (pairs, texts) in an optimizer step."""
    lr: float = 1e-5
    """Peak learning rate of AdamW."""
    schedule: Schedule = "linear"
    """How the learning rate falls after warm-up; the schedules of transformers, with a first rate above 0."""
    warmup: float = 0.1
    """Share of the steps in which the learning rate rises."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay."""
    max_grad_norm: float = 1.0
    """Clip the gradient to this norm."""
    token_budget: int | None = None
    """Packed tokens in one forward pass; by default what suits the device. It changes speed and memory only."""
    seed: int = 0
    """Seeds random weights, the order of the data and sampling."""

    def __post_init__(self) -> None:
        for name in ("steps", "epochs", "batch_size", "lr", "max_grad_norm", "token_budget"):
            value = getattr(self, name)
            if value is not None and not (value > 0 or (name == "lr" and value == 0)):
                raise UserError(f"{name} is {value}; it must be above 0")
        if not 0 <= self.warmup < 1:
            raise UserError(f"warmup is {self.warmup}; it is a share of the steps, in [0, 1)")

    @property
    def steps_per_batch(self) -> int:
        """Optimizer steps on each batch."""
        return 1

    def batches(self, trees: Sequence[TokenTree]) -> Batches[TokenTree]:
        """The batches of a run over these trees."""
        steps = None if self.steps is None else math.ceil(self.steps / self.steps_per_batch)
        return Batches(trees, self.batch_size, self.epochs, self.seed, steps)


@dataclass(frozen=True)
class Step:
    """An optimizer step that was taken: its number, from 1, and metrics (0-d tensors: means over the batch)."""

    index: int
    metrics: dict[str, Tensor]

    def numbers(self) -> dict[str, float]:
        """The metrics as plain numbers; this waits for the device."""
        return {name: float(value) for name, value in self.metrics.items()}


class NonFinite(FloatingPointError):
    """A loss or gradient is NaN or infinite. The update was not made: the weights are those after `taken` steps."""

    def __init__(self, taken: int, text: str) -> None:
        super().__init__(f"step {taken + 1}: {text}")
        self.taken = taken


@runtime_checkable
class Stateful(Protocol):
    """Anything with a position that is saved with the loop: batches, rollout sources, baselines."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Loop:
    """Optimizer steps on a model and an objective; the caller brings the batches.

    Args:
        model: A policy or reward model. Its weights that require gradients are trained.
        objective: The loss; see `training.objectives.Objective`.
        optimizer: A torch optimizer of the model's trainable weights. By default AdamW with `lr` and `weight_decay`.
        scheduler: A learning-rate scheduler for `optimizer`; it is stepped after each update. By default `schedule`.
        lr: Peak learning rate of the default optimizer.
        schedule: "constant", "constant_with_warmup", "linear" or "cosine"; all but "constant" need `steps`.
        steps: Planned number of steps.
        warmup: Share of the steps in which the rate rises.
        weight_decay: Decoupled weight decay of the default optimizer.
        max_grad_norm: Clip the gradient to this norm; `math.inf` does not clip.
        token_budget: Packed tokens in one forward pass; by default what suits the device.
        runtime: This process among several; by default from `torch.distributed`.

    Raises:
        UserError: the optimizer does not have exactly the model's trainable weights, or arguments do not go together.
    """

    def __init__(
        self,
        model: Policy | RewardModel,
        objective: Objective,
        *,
        optimizer: Optimizer | None = None,
        scheduler: LRScheduler | None = None,
        lr: float | None = None,
        schedule: Schedule = "constant",
        steps: int | None = None,
        warmup: float = 0.0,
        weight_decay: float = 0.0,
        max_grad_norm: float = 1.0,
        token_budget: int | None = None,
        runtime: Runtime | None = None,
    ) -> None:
        self.model = model
        self.packed = model.packed
        self.objective = objective
        self.max_grad_norm = max_grad_norm
        self.token_budget = token_budget or model.token_budget
        self.runtime = runtime or Runtime.current(self.packed.device)
        self.index = 0
        """Optimizer steps taken."""
        weights = dict(trainable(self.packed))
        half = [name for name, p in weights.items() if p.dtype in (torch.bfloat16, torch.float16)]
        if half:
            log.warning(
                "%d trainable weights, such as %s, are %s: small updates are rounded away; load the model in float32 "
                "(precision 'bf16' still runs its products in bfloat16)",
                len(half),
                half[0],
                weights[half[0]].dtype,
            )
        if optimizer is None:
            if lr is None:
                raise UserError("lr is not given; set lr, or pass an optimizer")
            optimizer = AdamW(list(weights.values()), lr=lr, weight_decay=weight_decay, fused=True)
        elif lr is not None or weight_decay:
            raise UserError(f"lr is {lr} and weight_decay {weight_decay}, but an optimizer is given; set them there")
        check_optimizer(optimizer, weights)
        if scheduler is None:
            scheduler = LambdaLR(optimizer, learning_rate_factor(schedule, steps, warmup))
        elif scheduler.optimizer is not optimizer:
            raise UserError("scheduler is of another optimizer; build it from the one that is passed")
        self.optimizer = optimizer
        self.scheduler = scheduler
        self._settings = {
            "lr": lr, "schedule": schedule, "planned_steps": steps, "warmup": warmup, "weight_decay": weight_decay,
        }  # fmt: skip
        self._loss = torch.zeros(())
        self._has_gradients = False

    @classmethod
    def from_config(
        cls,
        model: Policy | RewardModel,
        objective: Objective,
        config: TrainingConfig,
        steps: int,
        runtime: Runtime | None = None,
    ) -> "Loop":
        """The loop of a training configuration, for this many steps."""
        return cls(
            model,
            objective,
            lr=config.lr,
            schedule=config.schedule,
            steps=steps,
            warmup=config.warmup,
            weight_decay=config.weight_decay,
            max_grad_norm=config.max_grad_norm,
            token_budget=config.token_budget,
            runtime=runtime,
        )

    @property
    def reference(self) -> Any | None:
        """The objective's reference model where it follows the policy, else None."""
        reference = getattr(self.objective, "reference", None)
        return reference if getattr(reference, "follows_policy", False) else None

    def step(self, batch: Sequence[Tree | TokenTree] | Rollout) -> Step:
        """Take one optimizer step on a batch.

        Raises:
            UserError: the batch is empty, or a path is longer than the model's positions.
            NonFinite: the loss or the gradient is not finite; no update is made.
        """
        metrics = self.backward(batch)
        return Step(self.index + 1, metrics | self.update())

    def backward(self, batch: Sequence[Tree | TokenTree] | Rollout) -> dict[str, Tensor]:
        """Add the gradients of the batch's mean loss, and return the means of its metrics.

        Where the device runs out of memory the batch is tried once more with half the token budget, which then stays.
        """
        trees = self._trees(batch)
        if not trees:
            raise UserError("batch is empty; skip the step where there is nothing to train on")
        try:
            metrics = self._backward(trees)
        except torch.OutOfMemoryError:
            if self._has_gradients:
                raise  # the gradients of an earlier batch cannot be told from the half-done ones
            self.token_budget //= 2
            log.warning("out of memory: trying again with a token budget of %d", self.token_budget)
            self.optimizer.zero_grad(set_to_none=True)
            metrics = self._backward(trees)
        self._has_gradients = True
        self._loss = metrics["loss"]
        return metrics

    def _trees(self, batch: Sequence[Tree | TokenTree] | Rollout) -> list[TokenTree]:
        """The trees of a batch; of a rollout, with the advantages that the objective gives them."""
        if not isinstance(batch, Rollout):
            return tokenized(batch, self.model.tokenizer)
        if isinstance(self.objective, RolloutObjective) and isinstance(self.model, Policy) and batch.trees:
            return self.objective.training_trees(self.model, batch, self.token_budget)
        return list(batch.trees)

    def _backward(self, trees: Sequence[TokenTree]) -> dict[str, Tensor]:
        verify_once(self.packed, trees)
        count = sum(self.objective.count(tree) for tree in trees)
        prepare(self.objective, self.packed, trees, self.token_budget, self.runtime)
        sums: dict[str, Tensor] = {}
        counts: dict[str, Tensor] = {}
        with self.packed.training_mode():
            for forest in self.packed.forests(self.runtime.share(trees), self.token_budget):
                terms = self.objective(self.packed, forest)
                losses = terms.values if terms.weights is None else terms.weights * terms.values
                (losses.sum() / count).backward()  # type: ignore[no-untyped-call]
                for name, values in {"loss": losses, **terms.metrics}.items():
                    sums[name] = sums.get(name, 0) + _wide(values.detach().sum())
                    counts[name] = counts.get(name, 0) + torch.tensor(len(values))
        totals = self.runtime.sum_values(counts)
        return {name: value / totals[name] for name, value in self.runtime.sum_values(sums).items()}

    def update(self) -> dict[str, Tensor]:
        """Sum gradients over ranks, clip, update the weights, the learning rate, and a reference that follows.

        Returns:
            `grad_norm` (before clipping) and `lr` (of this update).

        Raises:
            NonFinite: the loss or the gradient norm is not finite; no update is made.
        """
        parameters = self.parameters
        self.runtime.sum_gradients(parameters)
        norm = nn.utils.clip_grad_norm_(parameters, self.max_grad_norm)
        if not (math.isfinite(self._loss) and math.isfinite(norm)):
            raise NonFinite(self.index, f"loss {self._loss.item()}, gradient norm {norm.item()}")
        metrics = {"grad_norm": norm, "lr": torch.tensor(self.optimizer.param_groups[0]["lr"], dtype=torch.float64)}
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.scheduler.step()
        if self.reference is not None:
            self.reference.update()
        self._has_gradients = False
        self.index += 1
        return metrics

    def discard(self) -> None:
        """Drop the gradients that `backward` added."""
        self.optimizer.zero_grad(set_to_none=True)
        self._has_gradients = False

    @property
    def parameters(self) -> list[Tensor]:
        """The tensors that the optimizer updates."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def save(self, directory: str | Path, **states: Stateful) -> None:
        """Write everything that continuing needs into `directory`, all or nothing: trained weights, optimizer, learning
        rate, random state, a reference that follows the policy, the objective's state if it has one (a baseline's
        average), and the `states` given by name (`batches=batches`).
        """
        checkpoints.save(
            Path(directory),
            self.packed,
            {"reference": self.reference.packed} if self.reference is not None else {},
            {"index": self.index, "settings": self._settings, "world": self.runtime.world},
            {"optimizer": self.optimizer.state_dict(), "scheduler": self.scheduler.state_dict()},
            {name: state.state_dict() for name, state in self._with_objective(states).items()},
        )

    def load(self, directory: str | Path, **states: Stateful) -> None:
        """Continue from what `save` wrote; pass the same states. If the checkpoint does not fit, no weight changes.

        Raises:
            UserError: the directory is no checkpoint, or one of another model, other data or another configuration.
        """
        saved = checkpoints.read(Path(directory))
        checkpoints.check_same(Path(directory), saved.facts["settings"], self._settings)
        states = self._with_objective(states)
        missing = sorted(states.keys() - saved.states.keys())
        if missing:
            raise UserError(f"{str(directory)!r} has no state of {missing[0]!r}; pass to load what was passed to save")
        for name, state in states.items():
            state.load_state_dict(saved.states[name])
        if saved.facts["world"] != self.runtime.world:
            log.warning("saved by %d processes, resumed with %d: results are equal up to rounding",
                        saved.facts["world"], self.runtime.world)  # fmt: skip
        checkpoints.restore(
            Path(directory), self.packed, {"reference": self.reference.packed} if self.reference is not None else {}
        )
        self.optimizer.load_state_dict(saved.training["optimizer"])
        self.scheduler.load_state_dict(saved.training["scheduler"])
        checkpoints.restore_random(saved, self.packed.device)
        self.index = int(saved.facts["index"])

    def _with_objective(self, states: dict[str, Stateful]) -> dict[str, Stateful]:
        """The states with that of the objective, such as a baseline's moving average, if it has one."""
        return {**states, "objective": self.objective} if isinstance(self.objective, Stateful) else states


def check_optimizer(optimizer: Optimizer, weights: Mapping[str, Tensor]) -> None:
    """Refuse an optimizer that does not have exactly these trainable weights.

    Raises:
        UserError: a tensor is not the model's, or a trainable weight is missing.
    """
    updated = {id(p) for group in optimizer.param_groups for p in group["params"]}
    foreign = len(updated - {id(p) for p in weights.values()})
    if foreign:
        raise UserError(
            f"optimizer has {foreign} tensors that are not trainable weights of the model; build it from "
            "[p for p in policy.model.parameters() if p.requires_grad], after LoRA adapters are added"
        )
    missing = [name for name, p in weights.items() if id(p) not in updated]
    if missing:
        raise UserError(
            f"optimizer lacks {len(missing)} trainable weights of the model, such as {missing[0]!r}; add them, or "
            "freeze them with requires_grad_(False)"
        )


def learning_rate_factor(schedule: Schedule, steps: int | None, warmup: float = 0.0) -> Callable[[int], float]:
    """The learning rate of the k-th step, k from 0, as a multiple of the peak: transformers' schedule at k + 1, so that
    the first rate is above 0.

    Raises:
        UserError: the schedule needs the number of steps.
    """
    if schedule != "constant" and steps is None:
        raise UserError(f"schedule is {schedule!r}, but steps is not given; set steps, or use schedule='constant'")
    total = steps or 0
    placeholder = SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    plan: Any = get_scheduler(schedule, placeholder, round(warmup * total), total + 1)
    factor: Callable[[int], float] = plan.lr_lambdas[0]
    return lambda index: factor(index + 1)


def _wide(value: Tensor) -> Tensor:
    """float64, which MPS does not have."""
    return value if value.device.type == "mps" else value.double()


@dataclass(frozen=True)
class Result:
    """What a whole training run returned: the metrics of each step, as plain numbers."""

    metrics: tuple[dict[str, float], ...]

    @property
    def steps(self) -> int:
        """Optimizer steps taken."""
        return len(self.metrics)

    def __str__(self) -> str:
        first, last = self.metrics[0]["loss"], self.metrics[-1]["loss"]
        return f"{self.steps} steps, loss {first:.4g} -> {last:.4g}"


def result_of(steps: Iterable[Step]) -> Result:
    """Take all steps."""
    return Result(tuple(step.numbers() for step in steps))


def training_steps(
    model: Policy | RewardModel, trees: Sequence[TokenTree], objective: Objective, config: TrainingConfig
) -> Iterable[Step]:
    """Train on fixed trees as `config` says; yields each step after it was taken."""
    batches = config.batches(trees)
    loop = Loop.from_config(model, objective, config, len(batches))
    verify_once(model.packed, trees, loop.token_budget)
    for batch in batches:
        yield loop.step(batch)
