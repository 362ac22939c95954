"""A forest: token trees packed into one row for one forward pass.

Layout: `prompt | response 1 | response 2 | ...` per tree, trees one after another. Positions restart at the prompt's
end for each branch. The first token of a branch is predicted from the prompt's last position, each other one from the
token before it; the vocabulary projection runs at those S positions only.

Letters: T packed tokens, S scored tokens, N branches.
"""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, NamedTuple, Protocol

import torch
from jaxtyping import Int
from torch import Tensor

from treeward.errors import UserError
from treeward.trees.tokens import TokenTree

log = logging.getLogger(__name__)

Backend = Literal["tree", "rows"]
"""How a forest goes through the model: one packed row, or one padded row a branch."""

PROMPT = -1
"""The `branch` of a prompt token: visible to every branch of its tree."""


@dataclass(frozen=True)
class Forest:
    """Packed token trees. `branch` is numbered through the whole forest, -1 for prompt tokens.

    `sources` are the trees in packed order: the rows backend and the checks read them.
    """

    input_ids: Int[Tensor, "T"]
    position_ids: Int[Tensor, "T"]
    tree: Int[Tensor, "T"]
    branch: Int[Tensor, "T"]
    predict_from: Int[Tensor, "S"]
    targets: Int[Tensor, "S"]
    scored_branch: Int[Tensor, "S"]
    ends: Int[Tensor, "N"]
    sources: tuple[TokenTree, ...]

    @property
    def branches(self) -> int:
        """N, the number of branches."""
        return len(self.ends)

    def to(self, device: torch.device | str) -> "Forest":
        """The same forest on another device."""
        moved = {f.name: value.to(device) for f in fields(self) if isinstance(value := getattr(self, f.name), Tensor)}
        return replace(self, **moved)  # type: ignore[arg-type]


def pack(trees: Sequence[TokenTree]) -> Forest:
    """Pack these trees, in this order, into one forest."""
    ids: list[int] = []
    positions: list[int] = []
    tree_of: list[int] = []
    branch_of: list[int] = []
    predict_from: list[int] = []
    targets: list[int] = []
    scored: list[int] = []
    ends: list[int] = []
    for number, tree in enumerate(trees):
        ids += tree.prompt
        positions += range(len(tree.prompt))
        branch_of += [PROMPT] * len(tree.prompt)
        trunk_end = len(ids) - 1
        for branch in tree.branches:
            start = len(ids)
            predict_from += [trunk_end, *range(start, start + len(branch) - 1)]
            targets += branch
            scored += [len(ends)] * len(branch)
            branch_of += [len(ends)] * len(branch)
            ids += branch
            positions += range(len(tree.prompt), len(tree.prompt) + len(branch))
            ends.append(len(ids) - 1)
        tree_of += [number] * len(tree)
    return Forest(
        input_ids=torch.tensor(ids),
        position_ids=torch.tensor(positions),
        tree=torch.tensor(tree_of),
        branch=torch.tensor(branch_of),
        predict_from=torch.tensor(predict_from, dtype=torch.long),
        targets=torch.tensor(targets, dtype=torch.long),
        scored_branch=torch.tensor(scored, dtype=torch.long),
        ends=torch.tensor(ends, dtype=torch.long),
        sources=tuple(trees),
    )


class Load(Protocol):
    """What some trees cost in a forward pass, and by what size a tree is packed first."""

    @property
    def cost(self) -> int: ...
    @property
    def size(self) -> int: ...
    def joined(self, other: Any) -> "Load":
        """The load of both in one forest."""
        ...


class Packed(NamedTuple):
    """One row that holds all trees: every token once."""

    cost: int

    @property
    def size(self) -> int:
        return self.cost

    def joined(self, other: "Packed") -> "Packed":
        return Packed(self.cost + other.cost)

    @classmethod
    def of(cls, tree: TokenTree) -> "Packed":
        return cls(len(tree))


class Padded(NamedTuple):
    """One row a branch, each as long as the longest."""

    rows: int
    size: int

    @property
    def cost(self) -> int:
        return self.rows * self.size

    def joined(self, other: "Padded") -> "Padded":
        return Padded(self.rows + other.rows, max(self.size, other.size))

    @classmethod
    def of(cls, tree: TokenTree) -> "Padded":
        return cls(len(tree.branches), tree.longest_path)


LOADS: dict[Backend, type[Packed] | type[Padded]] = {"tree": Packed, "rows": Padded}


def pack_to_budget(
    trees: Iterable[TokenTree], token_budget: int, positions: int | None = None, layout: Backend = "tree"
) -> list[Forest]:
    """First-fit decreasing: forests that cost at most `token_budget` tokens in this layout.

    A tree costs its tokens; as rows a forest costs its rows times the longest of them, padding included. A tree that
    costs more than the budget raises the budget to its cost, and that is said. Each forest keeps its trees in the
    order given, so the same trees always give the same forests.

    Raises:
        UserError: the budget is not positive, or a path is longer than the model's `positions`; the path is named.
    """
    if token_budget < 1:
        raise UserError(f"token_budget is {token_budget}; it must be at least 1")
    trees = list(trees)
    if positions is not None:
        check_positions(trees, positions)
    loads = [LOADS[layout].of(tree) for tree in trees]
    largest = max((load.cost for load in loads), default=0)
    if largest > token_budget:
        log.info("token budget raised from %d to %d: the largest tree has that many tokens", token_budget, largest)
        token_budget = largest
    bins: list[list[int]] = []
    filled: list[Load] = []
    for index in sorted(range(len(trees)), key=lambda i: -loads[i].size):
        joined = (each.joined(loads[index]) for each in filled)
        place = next((b for b, load in enumerate(joined) if load.cost <= token_budget), None)
        if place is None:
            bins.append([index])
            filled.append(loads[index])
        else:
            bins[place].append(index)
            filled[place] = filled[place].joined(loads[index])
    return [pack([trees[i] for i in sorted(members)]) for members in bins]


def check_positions(trees: Sequence[TokenTree], positions: int) -> None:
    """Raise ValueError, naming the path, if one is longer than the model's positions."""
    for number, tree in enumerate(trees):
        if tree.longest_path > positions:
            longest = max(range(len(tree.branches)), key=lambda b: len(tree.branches[b]), default=0)
            raise UserError(
                f"tree {number} ({tree.group[:60]!r}), branch {longest}: its path of {tree.longest_path} tokens is "
                f"longer than the model's {positions} positions; lower data.max_prompt or data.max_response"
            )
