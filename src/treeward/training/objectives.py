"""What an objective is, and what objectives need to know of a forest.

An objective computes the loss of a forest, one number a unit (a token, a pair, a response), and metrics beside it. The
loop divides the sum of the losses by the count of units in the whole batch, over all forests and ranks, so how a batch
is cut into forests changes nothing but rounding.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from treeward.errors import UserError
from treeward.losses.heads import AnyHead
from treeward.losses.reward import Branches
from treeward.models.policy import Policy
from treeward.runtime import Runtime
from treeward.trees.forest import Forest
from treeward.trees.forward import TreeModule
from treeward.trees.rollout import Rollout
from treeward.trees.tokens import TokenTree


@dataclass(frozen=True)
class Terms:
    """The loss of each unit of a forest, and metrics.

    `weights` multiply the losses before the mean is taken; the divisor stays the count of units. A metric may skip
    units that it does not apply to: its mean is over the values it has, in all forests and ranks.
    """

    values: Float[Tensor, "units"]
    metrics: Mapping[str, Float[Tensor, "_"]]
    weights: Float[Tensor, "units"] | None = None


@runtime_checkable
class Objective(Protocol):
    """A loss over forests. It may also have:

    `prepare(model, batch, token_budget, runtime)`, called once a step on every rank with the whole batch, before its
    first forest; and `reference`, a reference model or None. A reference with `follows_policy` is updated by the loop
    after each step and saved with it. An objective with `state_dict` and `load_state_dict` is saved with the loop too.
    """

    def count(self, tree: TokenTree) -> int:
        """How many units this tree adds to the batch."""
        ...

    def __call__(self, model: TreeModule, forest: Forest) -> Terms: ...


@runtime_checkable
class PreparedObjective(Protocol):
    """An objective that sees a whole batch before its first forest."""

    def prepare(self, model: TreeModule, batch: Sequence[TokenTree], token_budget: int, runtime: Runtime) -> None:
        """Called once a step, on every rank, with all trees of the batch."""
        ...


@runtime_checkable
class RolloutObjective(Protocol):
    """An objective that learns from scored rollouts."""

    def training_trees(self, model: Policy, rollout: Rollout, token_budget: int) -> list[TokenTree]:
        """The rollout's trees with all that the objective needs of them; called once a step."""
        ...


def prepare(
    objective: Objective,
    model: TreeModule,
    batch: Sequence[TokenTree],
    token_budget: int,
    runtime: Runtime | None = None,
) -> None:
    """Let the objective see the batch, if it wants to."""
    if isinstance(objective, PreparedObjective):
        objective.prepare(model, batch, token_budget, runtime or Runtime(model.device))


def forest_branches(forest: Forest, outputs: Float[Tensor, "N W"], head: AnyHead) -> Branches:
    """A forest's outputs with the tree and the ratings of each branch, and the margins of pairs."""
    trees = forest.sources
    tree = torch.tensor([number for number, each in enumerate(trees) for _ in each.branches])
    return Branches(outputs, head, tree.to(outputs.device), _ratings(trees, outputs), tree_margins(trees, outputs))


def _ratings(trees: Sequence[TokenTree], like: Tensor) -> Float[Tensor, "N A"] | None:
    """The ratings of each branch, NaN for a tree without; None if no tree has any."""
    attributes = max((len(rating) for tree in trees for rating in tree.ratings), default=0)
    if not attributes:
        return None
    missing = (torch.nan,) * attributes
    rows = [rating for tree in trees for rating in tree.ratings or (missing,) * len(tree.branches)]
    return torch.tensor(rows, device=like.device)


def tree_margins(trees: Sequence[TokenTree], like: Tensor) -> Float[Tensor, "G"] | None:
    """The margins that the data gives, NaN for a tree without; None if no tree has one."""
    if all(tree.margin is None for tree in trees):
        return None
    return like.new_tensor([torch.nan if tree.margin is None else tree.margin for tree in trees])


def unit_weights(
    trees: Sequence[TokenTree], count: Callable[[TokenTree], int], device: torch.device
) -> Float[Tensor, "units"] | None:
    """The weight of each unit, `count` of a tree; None if all are 1."""
    if all(tree.weight == 1 for tree in trees):
        return None
    return torch.tensor([tree.weight for tree in trees for _ in range(count(tree))], device=device)


def refuse_margins(trees: Sequence[TokenTree], loss: str, alternatives: str) -> None:
    """For losses without a margin.

    Raises:
        UserError: a tree has a margin.
    """
    count = sum(tree.margin is not None for tree in trees)
    if count:
        raise UserError(
            f"{count} rows have a margin, but loss.kind {loss} takes none; take the column out, or use {alternatives}"
        )
