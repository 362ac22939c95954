"""Words of a command line: positional ones, `--key value` overrides, and flags; and the fields that they may set."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from treeward.errors import UserError
from treeward.runner import settings, trl_names


@dataclass(frozen=True)
class Words:
    """`places` in order, `options` as (key, value) in order, and the `flags` that were set."""

    places: tuple[str, ...]
    options: tuple[tuple[str, str], ...]
    flags: frozenset[str]


def parse(arguments: Sequence[str], flags: Collection[str]) -> Words:
    """Split a command line. `--key value` and `--key=value` are options; names in `flags` take no value.

    Raises:
        UserError: an option has no value.
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
            raise UserError(f"--{key} needs a value{f'; {theirs}' if theirs else ''}")
    return Words(tuple(places), tuple(options), frozenset(given))


def overridden(words: Words, base: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The overrides of a command line, laid on `base` (what a recipe or a run directory says) one after another.

    Raises:
        UserError: what is left of `base` would run a Python file, and nothing on the command line allows that.
    """
    values = dict(base or {})
    texts: dict[str, list[str]] = {}
    for key, text in words.options:
        texts.setdefault(key.replace("-", "_"), []).append(text)
    for key, given in texts.items():
        values = settings.merge(values, settings.override(key, *given))
    if not words.flags & {"allow-code", "print-config"}:
        settings.refuse_code(values, " ".join(map(repr, words.places)))
    return values


def field_lines(cls: type[Any]) -> list[str]:
    """One line a field: its option, meaning and default."""
    return [
        f"  --{key.replace('_', '-'):<34} {meaning} [{default}]" for key, default, meaning in settings.describe(cls)
    ]
