"""Ids: a prompt tokenised once, and each response on its own, as generation sees them."""

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
    """Prompt ids (never empty: a start token stands there) and the ids of each branch (never empty).

    Every branch token is scored, the end token included; no prompt token is. `group` names the unit of splitting and
    of intervals, `subset` a part that is reported apart; `ratings` are the raters' numbers, one tuple a branch with one
    value an attribute, or nothing; `attributes` are the names of those values, where they have names. `weight` is what
    the tree counts for in a loss, `margin` what a loss of pairs asks for beyond 0, instead of the run's. `row` holds
    the data row's other columns for scorers; it takes no part in equality.

    Raises:
        UserError: the prompt or a branch is empty, the weight negative, the margin outside [0, 1], or ratings are
            missing for a branch, with the place named.
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

    def __post_init__(self) -> None:
        if not self.prompt:
            raise UserError("the prompt has no tokens; a start token (BOS, else EOS) must stand there")
        for number, branch in enumerate(self.branches):
            if not branch:
                raise UserError(f"branch {number} of {self.group[:60]!r} has no tokens; an empty response is dropped")
        if self.ratings and len(self.ratings) != len(self.branches):
            raise UserError(f"{self.group[:60]!r} has {len(self.branches)} branches but {len(self.ratings)} ratings")
        if not 0 <= self.weight < math.inf:
            raise UserError(f"{self.group[:60]!r} has a weight of {self.weight}; it must be finite and not negative")
        if self.margin is not None and not 0 <= self.margin <= 1:
            raise UserError(
                f"{self.group[:60]!r} has a margin of {self.margin}; it lies in [0, 1]: a raw rating gap goes into "
                "chosen_rating and rejected_rating, and the run's margin scales it"
            )

    def __len__(self) -> int:
        """Tokens in all, the prompt counted once: what the tree costs in a forest."""
        return len(self.prompt) + sum(map(len, self.branches))

    @property
    def longest_path(self) -> int:
        """Tokens from the root to the furthest leaf: what the model's positions must hold."""
        return len(self.prompt) + max(map(len, self.branches), default=0)

    @property
    def grades(self) -> tuple[float, ...]:
        """The mean rating of each branch; empty where the data has none."""
        return tuple(sum(rating) / len(rating) for rating in self.ratings)

    def with_attributes(self, names: Sequence[str]) -> "TokenTree":
        """The same tree with the ratings of each branch in the order of these names; ratings without names stay.

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
        places = [self.attributes.index(name) for name in names]
        ratings = tuple(tuple(rating[place] for place in places) for rating in self.ratings)
        return replace(self, attributes=tuple(names), ratings=ratings)

    def rows(self) -> list[tuple[int, ...]]:
        """The same tree as one row a branch, the prompt repeated."""
        return [self.prompt + branch for branch in self.branches]
