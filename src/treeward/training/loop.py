"""The training loop that every algorithm shares: one generator over one state.

A batch of trees is packed into forests by a token budget; each forest is one forward and one backward pass. An
objective returns one number per unit (a pair, a token), and the loss is their sum over the true count of units in the
whole batch, over all forests and ranks: how a batch is cut changes nothing but rounding.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from treeward import runtime as ranks
from treeward.errors import UserError
from treeward.models import weights
from treeward.training.state import DataOrder, TrainState
from treeward.trees.forest import Forest
from treeward.trees.forward import TreeModule
from treeward.trees.tokens import TokenTree
from treeward.trees.verify import verify_once


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How long, how fast, in what pieces."""

    steps: int | None = None
    """Optimiser steps; overrides epochs."""
    epochs: float = 1.0
    """Passes over the training trees."""
    batch_size: int = 32
    """Trees (pairs, texts) an optimiser step."""
    lr: float = 1e-5
    """Peak learning rate of AdamW."""
    schedule: Literal["linear", "cosine", "constant_with_warmup"] = "linear"
    """How the rate falls after warm-up; transformers' schedules, shifted so that the first step's rate is above 0."""
    warmup: float = 0.1
    """Share of the steps in which the rate rises."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay."""
    max_grad_norm: float = 1.0
    """The gradient is clipped to this norm."""
    token_budget: int | None = None
    """Packed tokens of one forward pass; by default what suits the device. It changes speed and memory only."""
    seed: int = 0
    """Seeds random weights, the order of the data and sampling."""

    def __post_init__(self) -> None:
        for name in ("steps", "epochs", "batch_size", "lr", "max_grad_norm", "token_budget"):
            value = getattr(self, name)
            if value is not None and not (value > 0 or (name == "lr" and value == 0)):
                raise UserError(f"{name} is {value}; it must be above 0")
        if not 0 <= self.warmup < 1:
            raise UserError(f"warmup is {self.warmup}; it is a share of the steps, in [0, 1)")

    def order(self, trees: int) -> DataOrder:
        """The order in which this many trees are visited."""
        return DataOrder(trees, self.batch_size, self.seed)

    def total(self, trees: int) -> int:
        """Optimiser steps in all, over this many trees."""
        return self.steps or max(1, math.ceil(self.epochs * self.order(trees).steps_per_epoch))


@dataclass(frozen=True)
class Terms:
    """What an objective returns for a forest: the loss of each unit, and metrics by unit.

    `weights` multiply the losses where the mean is taken; the divisor stays the count of units. A metric may leave
    units out that it says nothing of: its mean is over the values that it has, in all forests and ranks.
    """

    values: Float[Tensor, "units"]
    metrics: Mapping[str, Float[Tensor, "_"]]
    weights: Float[Tensor, "units"] | None = None


@runtime_checkable
class Objective(Protocol):
    """A loss over forests."""

    def count(self, tree: TokenTree) -> int:
        """How many units this tree adds to the batch, known before the forward pass."""
        ...

    def __call__(self, forest: Forest) -> Terms: ...


@runtime_checkable
class Prepared(Protocol):
    """An objective that must see a whole batch before its first forest."""

    def prepare(self, batch: Sequence[TokenTree]) -> None:
        """Called once a step, on every rank, with all trees of the batch."""
        ...


@dataclass(frozen=True)
class Step:
    """One optimiser step that was taken: its number from 1, the means over its batch, and the state after it."""

    index: int
    metrics: dict[str, float]
    state: TrainState


class NonFinite(FloatingPointError):
    """A loss or gradient is NaN or infinite; the weights are those after the `taken` steps before it."""

    def __init__(self, taken: int, found: str) -> None:
        super().__init__(f"step {taken + 1}: {found}")
        self.taken = taken


def fit(
    model: TreeModule,
    trees: Sequence[TokenTree],
    objective: Objective,
    config: LoopConfig,
    budget: int,
    resume: Path | None = None,
    companions: Mapping[str, nn.Module] | None = None,
    decided: Mapping[str, str] | None = None,
) -> Iterator[Step]:
    """Train `model` on `trees` until `config` says stop; yields after every optimiser step.

    `budget` is the token budget where the config names none. `resume` is a directory that `TrainState.save` wrote.
    `companions` are other models whose weights change with the steps: they are saved and put back too. `decided` is
    what the algorithm's steps depend on beside trees, start and rate (`settings`), the same when a run is resumed.

    Raises:
        NonFinite: a loss or gradient is not finite.
        UserError: there are no trees, or `resume` belongs to other data, another start or another configuration.
    """
    if not trees:
        raise UserError("there is nothing to train on: the training part is empty")
    verify_once(model, trees, config.token_budget or budget)
    total = config.total(len(trees))
    known = {"the data's hash": fingerprint(trees), "the start's hash": weights.fingerprint(model), **(decided or {})}
    state = TrainState(model, config.order(len(trees)), total, config, known, companions)
    if resume is not None:
        state.load(resume)
    while state.index < total:
        batch = [trees[row] for row in state.order.batch(state.index)]
        metrics = accumulate(model, batch, objective, config.token_budget or budget)
        parameters = state.parameters
        ranks.sum_gradients(parameters)
        norm = nn.utils.clip_grad_norm_(parameters, config.max_grad_norm).item()
        if not math.isfinite(metrics["loss"]) or not math.isfinite(norm):
            raise NonFinite(state.index, f"loss {metrics['loss']}, gradient norm {norm}")
        metrics |= {"grad_norm": norm, "lr": state.rate}
        state.advance()
        yield Step(state.index, metrics, state)


def fingerprint(trees: Sequence[TokenTree]) -> str:
    """SHA-256 over what training sees of all trees, in order: ids, ratings, weights, margins."""
    digest = hashlib.sha256()
    for tree in trees:
        digest.update(repr((tree.prompt, tree.branches, tree.ratings, tree.weight, tree.margin)).encode())
    return digest.hexdigest()


def settings(config: LoopConfig, kind: type[LoopConfig]) -> dict[str, str]:
    """The fields that an algorithm's own configuration adds to the loop's or shares with it, as text, by name. How long
    it runs is counted in steps, and how a batch is cut may change.
    """
    free = ("steps", "epochs", "token_budget")
    return {field.name: repr(getattr(config, field.name)) for field in fields(kind) if field.name not in free}


def reached(config: LoopConfig, trees: Sequence[TokenTree]) -> list[TokenTree]:
    """The trees that a run of this configuration reaches, in the order of their first use."""
    return [trees[row] for row in config.order(len(trees)).reached(config.total(len(trees)))]


def accumulate(model: TreeModule, batch: Sequence[TokenTree], objective: Objective, budget: int) -> dict[str, float]:
    """Gradients of the batch's mean loss, and the means of its metrics."""
    count = sum(objective.count(tree) for tree in batch)
    mine = batch[ranks.rank() :: ranks.world()]
    sums: dict[str, Tensor] = {}
    counts: dict[str, Tensor] = {}
    if isinstance(objective, Prepared):
        objective.prepare(batch)
    with model.training_mode():
        for forest in model.forests(mine, budget):
            terms = objective(forest)
            losses = terms.values if terms.weights is None else terms.weights * terms.values
            (losses.sum() / count).backward()  # type: ignore[no-untyped-call]
            for name, values in {"loss": losses, **terms.metrics}.items():
                sums[name] = sums.get(name, 0) + values.detach().sum().double().cpu()
                counts[name] = counts.get(name, 0) + torch.tensor(len(values))
    known = ranks.sum_all(counts)
    return {name: (value / known[name]).item() for name, value in ranks.sum_all(sums).items()}
