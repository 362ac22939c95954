"""Trees of ids: the prompt is tokenized once and each response on its own, as generation sees them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from treeward.errors import UserError

Tokenizer = Any
"""A `transformers` tokenizer."""


def decode(ids: Sequence[int], tokenizer: Tokenizer) -> str:
    """The text of ids, without special tokens."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


@dataclass(frozen=True)
class TokenTree:
    """The ids of a prompt and of its responses.

    - `prompt`: never empty; an empty text is a start token.
    - `branches`: the ids of each response, never empty. Every branch token is scored, the end token included; no
      prompt token is.
    - `group`: the unit of splits and intervals.
    - `ratings`: the raters' numbers: a tuple for each branch with one value an attribute; empty without ratings.
    - `subset`: a part of the data that is reported separately.
    - `weight`: the tree's weight in the loss.
    - `margin`: the margin of this pair in a pairwise loss, in [0, 1]; it replaces the run's margin.
    - `attributes`: the names of the ratings' values, where they have names.
    - `row`: the other columns of the data row, for scorers; two trees that differ only here are equal.
    - `sampled`: what policy gradients need of sampled branches (`trees.rollout.Sampled`); also left out of equality.

    Raises:
        UserError: the prompt or a branch is empty, the weight is negative, the margin is outside [0, 1], or the number
            of ratings differs from the number of branches.
    """

    prompt: tuple[int, ...]
    branches: tuple[tuple[int, ...], ...]
    group: str = ""
    ratings: tuple[tuple[float, ...], ...] = ()
    subset: str = ""
    weight: float = 1.0
    margin: float | None = None
    attributes: tuple[str, ...] = ()
    row: Mapping[str, Any] | None = field(default=None, compare=False, repr=False)
    sampled: Any = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not self.prompt:
            raise UserError("the prompt has no tokens; give it a start token (BOS, else EOS)")
        for number, branch in enumerate(self.branches):
            if not branch:
                raise UserError(f"branch {number} of {self.group[:60]!r} has no tokens; drop empty responses")
        if self.ratings and len(self.ratings) != len(self.branches):
            raise UserError(f"{self.group[:60]!r} has {len(self.branches)} branches but {len(self.ratings)} ratings")
        if not 0 <= self.weight < math.inf:
            raise UserError(f"{self.group[:60]!r} has a weight of {self.weight}; it must be finite and not negative")
        if self.margin is not None and not 0 <= self.margin <= 1:
            raise UserError(
                f"{self.group[:60]!r} has a margin of {self.margin}; it must lie in [0, 1]: put a raw rating gap "
                "into chosen_rating and rejected_rating, and the run's margin scales it"
            )

    def __len__(self) -> int:
        """Tokens of the prompt and of all branches, which is what the tree costs in a forest."""
        return len(self.prompt) + sum(map(len, self.branches))

    @property
    def longest_path(self) -> int:
        """Tokens of the prompt and its longest branch; the model needs as many positions."""
        return len(self.prompt) + max(map(len, self.branches), default=0)

    @property
    def grades(self) -> tuple[float, ...]:
        """The mean rating of each branch; empty where the data has none."""
        return tuple(sum(rating) / len(rating) for rating in self.ratings)

    def with_attributes(self, names: Sequence[str]) -> "TokenTree":
        """The same tree with each branch's ratings in the order of these names. Ratings without names stay as they are.

        Raises:
            UserError: the ratings have other names.
        """
        if not self.attributes or self.attributes == tuple(names):
            return self
        if sorted(self.attributes) != sorted(names):
            raise UserError(
                f"the data rates {', '.join(self.attributes)}, but head.names is {', '.join(names)}: set "
                f"head.names to [{', '.join(self.attributes)}]"
            )
        order = [self.attributes.index(name) for name in names]
        ratings = tuple(tuple(rating[index] for index in order) for rating in self.ratings)
        return replace(self, attributes=tuple(names), ratings=ratings)

    def rows(self) -> list[tuple[int, ...]]:
        """The tree as one row a branch, with the prompt repeated."""
        return [self.prompt + branch for branch in self.branches]
