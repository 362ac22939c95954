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
"""How a model reads a forest: as one packed row, or as one padded row a branch."""

PROMPT = -1
"""The value of `Forest.branch` at prompt tokens, which every branch of their tree sees."""


@dataclass(frozen=True)
class Forest:
    """Packed token trees.

    - `input_ids`, `position_ids`: the packed row. Positions restart at the prompt's end for each branch.
    - `tree`, `branch`: which tree and which branch of the whole forest a token belongs to; `branch` is -1 in prompts.
    - `predict_from`, `targets`, `scored_branch`: for each scored token the index of the token that predicts it, its
      id, and its branch.
    - `ends`: the index of each branch's last token.
    - `sources`: the trees in packed order; the rows backend and the checks read them.
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
    tree_numbers: list[int] = []
    branch_numbers: list[int] = []
    predict_from: list[int] = []
    targets: list[int] = []
    scored_branch: list[int] = []
    ends: list[int] = []
    for number, tree in enumerate(trees):
        ids += tree.prompt
        positions += range(len(tree.prompt))
        branch_numbers += [PROMPT] * len(tree.prompt)
        prompt_end = len(ids) - 1
        for branch in tree.branches:
            start = len(ids)
            predict_from += [prompt_end, *range(start, start + len(branch) - 1)]
            targets += branch
            scored_branch += [len(ends)] * len(branch)
            branch_numbers += [len(ends)] * len(branch)
            ids += branch
            positions += range(len(tree.prompt), len(tree.prompt) + len(branch))
            ends.append(len(ids) - 1)
        tree_numbers += [number] * len(tree)
    return Forest(
        input_ids=torch.tensor(ids),
        position_ids=torch.tensor(positions),
        tree=torch.tensor(tree_numbers),
        branch=torch.tensor(branch_numbers),
        predict_from=torch.tensor(predict_from, dtype=torch.long),
        targets=torch.tensor(targets, dtype=torch.long),
        scored_branch=torch.tensor(scored_branch, dtype=torch.long),
        ends=torch.tensor(ends, dtype=torch.long),
        sources=tuple(trees),
    )


class Cost(Protocol):
    """What some trees cost in a forward pass, in tokens. Trees of a larger `size` are packed first."""

    @property
    def cost(self) -> int: ...
    @property
    def size(self) -> int: ...
    def joined(self, other: Any) -> "Cost":
        """The cost of both in one forest."""
        ...


class PackedCost(NamedTuple):
    """The cost of one packed row with every token once."""

    cost: int

    @property
    def size(self) -> int:
        return self.cost

    def joined(self, other: "PackedCost") -> "PackedCost":
        return PackedCost(self.cost + other.cost)

    @classmethod
    def of(cls, tree: TokenTree) -> "PackedCost":
        return cls(len(tree))


class PaddedCost(NamedTuple):
    """The cost of one row a branch, each padded to the longest."""

    rows: int
    size: int

    @property
    def cost(self) -> int:
        return self.rows * self.size

    def joined(self, other: "PaddedCost") -> "PaddedCost":
        return PaddedCost(self.rows + other.rows, max(self.size, other.size))

    @classmethod
    def of(cls, tree: TokenTree) -> "PaddedCost":
        return cls(len(tree.branches), tree.longest_path)


COSTS: dict[Backend, type[PackedCost] | type[PaddedCost]] = {"tree": PackedCost, "rows": PaddedCost}


_raised: set[int] = set()
"""Token budgets whose raise has been logged: while a policy is sampled, each step may have a larger tree."""


def pack_to_budget(
    trees: Iterable[TokenTree], token_budget: int, positions: int | None = None, layout: Backend = "tree"
) -> list[Forest]:
    """Pack trees into forests that cost at most `token_budget` tokens in this layout (first-fit decreasing).

    A packed tree costs its tokens; as rows a forest costs its rows times the longest of them, padding included. A tree
    that costs more than the budget raises the budget to its cost, which is logged the first time. Trees keep their
    order within a forest, and the same trees always give the same forests.

    Raises:
        UserError: the budget is not positive, or a path is longer than the model's `positions`.
    """
    if token_budget < 1:
        raise UserError(f"token_budget is {token_budget}; it must be at least 1")
    trees = list(trees)
    if positions is not None:
        check_positions(trees, positions)
    costs = [COSTS[layout].of(tree) for tree in trees]
    largest = max((cost.cost for cost in costs), default=0)
    if largest > token_budget:
        if token_budget not in _raised:
            log.info("token budget raised from %d to %d: the largest tree has that many tokens", token_budget, largest)
            _raised.add(token_budget)
        token_budget = largest
    bins: list[list[int]] = []
    bin_costs: list[Cost] = []
    for index in sorted(range(len(trees)), key=lambda i: -costs[i].size):
        joined = (cost.joined(costs[index]) for cost in bin_costs)
        first_fit = next((number for number, cost in enumerate(joined) if cost.cost <= token_budget), None)
        if first_fit is None:
            bins.append([index])
            bin_costs.append(costs[index])
        else:
            bins[first_fit].append(index)
            bin_costs[first_fit] = bin_costs[first_fit].joined(costs[index])
    return [pack([trees[i] for i in sorted(members)]) for members in bins]


def check_positions(trees: Sequence[TokenTree], positions: int) -> None:
    """Refuse paths that are longer than the model's positions.

    Raises:
        UserError: the first such tree and its longest branch are named.
    """
    for number, tree in enumerate(trees):
        if tree.longest_path > positions:
            longest = max(range(len(tree.branches)), key=lambda b: len(tree.branches[b]), default=0)
            raise UserError(
                f"tree {number} ({tree.group[:60]!r}), branch {longest}: its path of {tree.longest_path} tokens is "
                f"longer than the model's {positions} positions; lower data.max_prompt or data.max_response"
            )
