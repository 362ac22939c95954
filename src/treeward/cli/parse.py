"""Words of a command line: positional ones, `--key value` overrides, and flags; nothing is typed yet."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from treeward.jobs import trl_names


@dataclass(frozen=True)
class Words:
    """`places` in order, `options` as (key, value) in order, and the `flags` that were set."""

    places: tuple[str, ...]
    options: tuple[tuple[str, str], ...]
    flags: frozenset[str]


def parse(arguments: Sequence[str], flags: Collection[str]) -> Words:
    """Split a command line. `--key value` and `--key=value` are options; names in `flags` take no value.

    Raises:
        ValueError: an option has no value.
    """
    places: list[str] = []
    options: list[tuple[str, str]] = []
    given: set[str] = set()
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            places.append(word)
            continue
        key, equals, value = word[2:].partition("=")
        if key in flags:
            given.add(key)
        elif equals:
            options.append((key, value))
        elif rest and not rest[0].startswith("--"):
            options.append((key, rest.pop(0)))
        else:
            theirs = trl_names.suggestion(key)
            raise ValueError(f"--{key} needs a value{f'; {theirs}' if theirs else ''}")
    return Words(tuple(places), tuple(options), frozenset(given))
