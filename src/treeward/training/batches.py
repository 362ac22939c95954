"""Batches of training trees, in an order that is a function of the seed alone and can be continued."""

import hashlib
import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, Generic, TypeVar

import torch

from treeward.errors import UserError
from treeward.trees.text import Tree
from treeward.trees.tokens import TokenTree

TreeType = TypeVar("TreeType", Tree, TokenTree)


class Batches(Generic[TreeType]):
    """Batches of trees over one or more passes; iterate once to train.

    Each pass (epoch) has its own permutation, which depends on the seed and the number of the pass. The last batch of a
    pass may be smaller. `position` counts the batches that were given out. `state_dict` saves it, and iterating after
    `load_state_dict` continues there. After the last batch, iterating starts again from the first.

    Args:
        trees: What to train on: text trees or token trees.
        size: Trees in a batch.
        epochs: Passes over the trees; may be a fraction.
        seed: Seeds the permutations.
        steps: Number of batches; overrides `epochs`.

    Raises:
        UserError: there are no trees, or a number is not positive.
    """

    def __init__(
        self, trees: Sequence[TreeType], size: int, epochs: float = 1.0, seed: int = 0, steps: int | None = None
    ) -> None:
        if not trees:
            raise UserError("trees is empty, so there is nothing to train on; give at least one tree")
        for name, value in (("size", size), ("epochs", epochs), ("steps", steps)):
            if value is not None and not value > 0:
                raise UserError(f"{name} is {value}; it must be above 0")
        self.trees: Sequence[TreeType] = trees
        self.size = size
        self.seed = seed
        self.position = 0
        self._length = steps or max(1, math.ceil(epochs * self.per_epoch))

    def __len__(self) -> int:
        """Batches in all."""
        return self._length

    @property
    def per_epoch(self) -> int:
        """Batches in one pass over the trees."""
        return math.ceil(len(self.trees) / self.size)

    def __iter__(self) -> Iterator[list[TreeType]]:
        if self.position >= len(self):
            self.position = 0
        while self.position < len(self):
            self.position += 1
            yield self.batch(self.position - 1)

    def batch(self, index: int) -> list[TreeType]:
        """The batch of that number, from 0."""
        return [self.trees[row] for row in self.rows(index)]

    def rows(self, index: int) -> list[int]:
        """Which trees make up the batch of that number: a function of the seed and the number, not of the rank."""
        epoch, place = divmod(index, self.per_epoch)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order = torch.randperm(len(self.trees), generator=generator)
        return order[place * self.size : (place + 1) * self.size].tolist()

    def used_trees(self) -> list[TreeType]:
        """The trees that stand in any batch, each once, in the order of first use."""
        rows = dict.fromkeys(row for index in range(min(len(self), self.per_epoch)) for row in self.rows(index))
        return [self.trees[row] for row in rows]

    def state_dict(self) -> dict[str, Any]:
        """The position, the rows of the next batch, and what the order depends on."""
        return {"position": self.position, "next_rows": self.rows(self.position), **self._order()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken.

        Raises:
            UserError: the state is of other trees, another size, seed or number of batches, or the order that the seed
                gives has changed (another version of torch).
        """
        for name, value in self._order().items():
            if state.get(name) != value:
                raise UserError(
                    f"the checkpoint is of another run: {name} is {state.get(name)!r} there and {value!r} here; resume "
                    "with the data, configuration and model it began with"
                )
        position = int(state["position"])
        if state.get("next_rows") != self.rows(position):
            raise UserError(
                f"the checkpoint goes on with the rows {state.get('next_rows', [])[:3]}... and this run with "
                f"{self.rows(position)[:3]}...: the order of the data has changed; start the run again"
            )
        self.position = position

    def _order(self) -> dict[str, Any]:
        return {"trees": self.fingerprint, "batch_size": self.size, "seed": self.seed, "steps": len(self)}

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the trees, in order."""
        return fingerprint(self.trees)


def fingerprint(trees: Sequence[Tree | TokenTree]) -> str:
    """SHA-256 over what training sees of trees, in order: ids (or text), ratings, weights, margins."""
    digest = hashlib.sha256()
    for tree in trees:
        if isinstance(tree, Tree):
            digest.update(tree.to_json().encode())
        else:
            digest.update(repr((tree.prompt, tree.branches, tree.ratings, tree.weight, tree.margin)).encode())
    return digest.hexdigest()
