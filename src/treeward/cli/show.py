"""Printing of results: JSON, and tables and lines for a terminal."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from treeward.runs.directory import finite
from treeward.stats.formatting import interval, p_value, value

COLOURS = {"improved": "green", "worse": "red", "broken": "red"}
"""Colours of verdicts on a terminal; any other verdict is yellow. The word always stands beside its colour."""


def print_json(facts: Mapping[str, Any]) -> None:
    """One JSON object on one line; NaN and infinities become null."""
    print(json.dumps(finite(facts), ensure_ascii=False))


def print_aligned(rows: Sequence[Sequence[str]], verdict_column: int | None = None) -> None:
    """Rows as columns of equal width; verdicts are coloured on a terminal (never with NO_COLOR)."""
    console = Console(highlight=False, soft_wrap=True, markup=False)
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))] if rows else []
    for row in rows:
        for place, (cell, width) in enumerate(zip(row, widths, strict=True)):
            last = place == len(widths) - 1
            style = COLOURS.get(cell, "yellow") if place == verdict_column and row is not rows[0] else None
            console.print(cell, style=style, end="")
            console.print("" if last else " " * (width - len(cell) + 2), end="\n" if last else "")


def before_and_after(facts: Mapping[str, Any]) -> str:
    """A metric of a receipt before and after training, each with its interval."""
    before = facts["before"]
    start = f"{value(before)} by construction" if before["constant"] else interval(before)
    return f"{start} -> {interval(facts['after'])}"


def metric_line(name: str, facts: Mapping[str, Any]) -> str:
    """A metric of a receipt: before, after, n, and the change with its p value."""
    after, change = facts["after"], facts["difference"]
    difference = f"change {interval(change, sign=True)}, {p_value(change['p'], after['n'])}"
    return f"{name:<10} {before_and_after(facts)}, n={after['n']}; {difference}"
