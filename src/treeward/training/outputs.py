"""A forest's outputs, one row a branch, with what the losses must know of each branch and each tree."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from treeward.errors import UserError
from treeward.losses.heads import AnyHead
from treeward.losses.reward import Branches
from treeward.trees.forest import Forest
from treeward.trees.tokens import TokenTree


def branches(forest: Forest, outputs: Float[Tensor, "N W"], head: AnyHead) -> Branches:
    """A forest's outputs with the tree and the ratings of each branch, and the margins of pairs."""
    trees = forest.sources
    tree = torch.tensor([number for number, each in enumerate(trees) for _ in each.branches])
    return Branches(outputs, head, tree.to(outputs.device), _ratings(trees, outputs), own_margins(trees, outputs))


def _ratings(trees: Sequence[TokenTree], like: Tensor) -> Float[Tensor, "N A"] | None:
    """The ratings of each branch, NaN in the rows of a tree without; None where no tree has any."""
    attributes = max((len(rating) for tree in trees for rating in tree.ratings), default=0)
    if not attributes:
        return None
    none = (torch.nan,) * attributes
    rows = [rating for tree in trees for rating in tree.ratings or (none,) * len(tree.branches)]
    return torch.tensor(rows, device=like.device)


def own_margins(trees: Sequence[TokenTree], like: Tensor) -> Float[Tensor, "G"] | None:
    """The margins that trees bring with them, NaN where one brings none; None where none does."""
    found = [torch.nan if tree.margin is None else tree.margin for tree in trees]
    return None if all(tree.margin is None for tree in trees) else like.new_tensor(found)


def weights(
    trees: Sequence[TokenTree], count: Callable[[TokenTree], int], device: torch.device
) -> Float[Tensor, "units"] | None:
    """The weight of each unit, `count` of a tree; None where all are 1."""
    if all(tree.weight == 1 for tree in trees):
        return None
    return torch.tensor([tree.weight for tree in trees for _ in range(count(tree))], device=device)


def refuse_margins(trees: Sequence[TokenTree], kind: str, instead: str) -> None:
    """Trees that bring margins are not for a loss that asks for none.

    Raises:
        UserError: a tree has a margin.
    """
    count = sum(tree.margin is not None for tree in trees)
    if count:
        raise UserError(
            f"{count} rows have a margin, but loss.kind {kind} takes none; take the column out, or use {instead}"
        )
