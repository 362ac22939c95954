"""Training, validation and test parts, by group: seeded, and the same whatever the order of the rows.

The part of a group follows from its hash, so a prompt cannot be in two parts. With expected shares, adding rows never
moves existing ones. With exact shares the rows are counted and the groups cut, in the order of their hashes, where the
count is reached.
"""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Literal, TypeVar

import numpy as np

from treeward.errors import UserError

Part = Literal["train", "validation", "test"]
PARTS: tuple[Part, ...] = ("train", "validation", "test")

Shares = Literal["expected", "exact"]
"""Whether a share is each group's chance, or a share of the rows."""

NAMES: dict[str, Part] = {
    "train": "train", "training": "train",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
    "test": "test", "eval": "test", "evaluation": "test", "held-out": "test",
}  # fmt: skip
"""The values that a `split` column may have."""

Use = Literal["split", "prompts", "first tokens", "pairing", "temperature", "verdict", "labels check"]
"""What a hash decides. Each use has a salt of its own, so that no choice depends on the split."""

Item = TypeVar("Item")


def unit(text: str, seed: int, use: Use = "split") -> float:
    """A number in [0, 1) that depends on the text, the seed and the use alone; different uses are independent."""
    salt = "" if use == "split" else f"{use}|"
    digest = hashlib.sha256(f"{salt}{seed}:{text}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


Edges = tuple[float, float]
"""Below the first is the test part, below the second the validation part; the rest is for training."""


def edges(places: Sequence[float], validation: float, test: float, shares: Shares = "expected") -> Edges:
    """Where the parts end in [0, 1). `places` is the `unit` of each row's group.

    With exact shares the test part, and test and validation together, have as many rows as are nearest to their share
    without cutting a group: 20 % of 8,678 groups of one row are 1,736, and 6,942 are left.
    """
    if shares == "expected":
        return test, test + validation
    groups, counts = np.unique(np.asarray(places, dtype=np.float64), return_counts=True)
    middles = np.cumsum(counts) - counts / 2
    bounds = np.append(groups, 1.0)
    first, second = (int((middles < share * counts.sum()).sum()) for share in (test, test + validation))
    return float(bounds[first]), float(bounds[second])


def part_at(place: float, ends: Edges) -> Part:
    """The part of a group whose `unit` is `place`."""
    if place < ends[0]:
        return "test"
    return "validation" if place < ends[1] else "train"


def named(value: object) -> Part:
    """The part that a row's own `split` column names.

    Raises:
        UserError: the name is not one of `NAMES`.
    """
    part = NAMES.get(str(value).lower())
    if part is None:
        raise UserError(f"the column 'split' holds {value!r}; it may hold {', '.join(sorted(NAMES))}")
    return part


def shuffled(items: Iterable[tuple[str, Item]], seed: int, use: Use) -> list[Item]:
    """Items in an order that depends on their names, the seed and the use, not on the order given."""
    return [item for _, item in sorted(items, key=lambda pair: (unit(pair[0], seed, use), pair[0]))]
