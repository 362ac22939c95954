"""Training, validation and test parts, by group: seeded, and the same whatever the order of the rows.

A group falls where its own hash says, so a prompt cannot stand on two sides, and new rows move no old ones.
"""

import hashlib
from collections.abc import Iterable
from typing import Literal, TypeVar

Part = Literal["train", "validation", "test"]
PARTS: tuple[Part, ...] = ("train", "validation", "test")

NAMES: dict[str, Part] = {
    "train": "train", "training": "train",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
    "test": "test", "eval": "test", "evaluation": "test", "held-out": "test",
}  # fmt: skip
"""What a `split` column may say."""

Item = TypeVar("Item")


def unit(text: str, seed: int) -> float:
    """A number in [0, 1) that depends on the text and the seed alone."""
    digest = hashlib.sha256(f"{seed}:{text}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def part_of(group: str, seed: int, validation: float, test: float) -> Part:
    """The part that this group belongs to; `validation` and `test` are shares."""
    place = unit(group, seed)
    if place < test:
        return "test"
    return "validation" if place < test + validation else "train"


def named(value: object) -> Part:
    """The part that a row's own `split` column names.

    Raises:
        ValueError: the name is not one of `NAMES`.
    """
    part = NAMES.get(str(value).lower())
    if part is None:
        raise ValueError(f"the column 'split' holds {value!r}; it may hold {', '.join(sorted(NAMES))}")
    return part


def shuffled(items: Iterable[tuple[str, Item]], seed: int) -> list[Item]:
    """Items in an order that depends on their names and the seed, not on the order given."""
    return [item for _, item in sorted(items, key=lambda pair: (unit(pair[0], seed), pair[0]))]
