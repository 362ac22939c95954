"""`treeward runs [DIR]`: the run directories below a directory, newest first."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from treeward.cli.help import PAGES
from treeward.cli.parse import parse
from treeward.cli.show import before_and_after, print_aligned, print_json
from treeward.errors import UserError
from treeward.runs.directory import ROOT, Summary, summaries
from treeward.stats.formatting import label

UNITS = (("d", 86400), ("h", 3600), ("min", 60))


def run(verb: str, arguments: Sequence[str]) -> int:
    """Print one line a run: its verdict, its main metric before and after training, and its age."""
    words = parse(arguments, ("json",))
    if words.options or len(words.places) > 1:
        raise UserError(f"runs takes one directory; usage: treeward {PAGES[verb].usage}")
    root = Path(words.places[0]) if words.places else ROOT
    if words.places and not root.is_dir():
        raise UserError(f"{str(root)!r} is not a directory; name the one that holds the runs: treeward runs DIR")
    runs = summaries(root)
    now = time.time()
    if words.flags:
        print_json({"runs": [facts(summary, now) for summary in runs]})
        return 0
    if not runs:
        print(f"no runs in {str(root)!r}; another directory: treeward runs DIR")
        return 0
    rows = [["run", "verdict", "metric, before -> after", "age"]]
    rows += [[str(s.path), verdict(s), metric(s), age(now - s.changed)] for s in runs]
    print_aligned(rows, verdict_column=1)
    return 0


def facts(summary: Summary, now: float) -> dict[str, Any]:
    """A run for --json; `verdict` and the metric are null before it has ended."""
    receipt = summary.receipt or {}
    keys = ("command", "verdict", "reason", "metric", "before", "after", "difference")
    return {
        "path": str(summary.path),
        "step": summary.step,
        "age_seconds": round(now - summary.changed, 1),
        **{key: receipt.get(key) for key in keys},
    }


def verdict(summary: Summary) -> str:
    """The verdict; of a run without a receipt, how far it has come. (`treeward pairs` gives no verdict.)"""
    if summary.receipt is not None:
        return str(summary.receipt["verdict"])
    if (summary.path / "report.json").exists():
        return "ended, no verdict"
    return "not begun" if summary.step is None else f"not ended, step {summary.step}"


def metric(summary: Summary) -> str:
    """The main metric before and after training, with intervals."""
    receipt = summary.receipt
    return "–" if receipt is None else f"{label(receipt['metric'])} {before_and_after(receipt)}"


def age(seconds: float) -> str:
    """ "3 h", in the largest unit of which there is at least one."""
    return next((f"{seconds / size:.0f} {unit}" for unit, size in UNITS if seconds >= size), f"{max(0, seconds):.0f} s")
