"""A forest: token trees packed into one row for one forward pass.

Layout: `prompt | response 1 | response 2 | ...` per tree, trees one after another. Positions restart at the prompt's
end for each branch. The first token of a branch is predicted from the prompt's last position, each other one from the
token before it; the vocabulary projection runs at those S positions only.

Letters: T packed tokens, S scored tokens, N branches.
"""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Int
from torch import Tensor

from treeward.trees.tokens import TokenTree

log = logging.getLogger(__name__)

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


def plant(trees: Sequence[TokenTree]) -> Forest:
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


def pack(trees: Iterable[TokenTree], token_budget: int, positions: int | None = None) -> list[Forest]:
    """First-fit decreasing: forests of at most `token_budget` tokens.

    A tree larger than the budget raises the budget to its size, and that is said. Each forest keeps its trees in the
    order given, so the same trees always give the same forests.

    Raises:
        ValueError: the budget is not positive, or a path is longer than the model's `positions`; the path is named.
    """
    if token_budget < 1:
        raise ValueError(f"token_budget is {token_budget}; it must be at least 1")
    trees = list(trees)
    if positions is not None:
        check_positions(trees, positions)
    largest = max(map(len, trees), default=0)
    if largest > token_budget:
        log.info("token budget raised from %d to %d: the largest tree has that many tokens", token_budget, largest)
        token_budget = largest
    bins: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(trees)), key=lambda i: -len(trees[i])):
        size = len(trees[index])
        place = next((b for b, left in enumerate(room) if left >= size), None)
        if place is None:
            bins.append([])
            room.append(token_budget)
            place = len(bins) - 1
        bins[place].append(index)
        room[place] -= size
    return [plant([trees[i] for i in sorted(members)]) for members in bins]


def check_positions(trees: Sequence[TokenTree], positions: int) -> None:
    """Raise ValueError, naming the path, if one is longer than the model's positions."""
    for number, tree in enumerate(trees):
        if tree.longest_path > positions:
            longest = max(range(len(tree.branches)), key=lambda b: len(tree.branches[b]), default=0)
            raise ValueError(
                f"tree {number} ({tree.group[:60]!r}), branch {longest}: its path of {tree.longest_path} tokens is "
                f"longer than the model's {positions} positions; lower data.max_prompt or data.max_response"
            )
