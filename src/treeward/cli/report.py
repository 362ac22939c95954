"""`treeward report RUN`: write a run's page again, from its directory alone."""

from collections.abc import Sequence
from pathlib import Path

from treeward.cli.parse import parse
from treeward.report.page import write_page


def run(verb: str, arguments: Sequence[str]) -> int:
    """Write the page of a run, or of a directory whose folders are runs."""
    words = parse(arguments, ("help",))
    if "help" in words.flags or len(words.places) != 1 or words.options:
        print("treeward report RUN: write RUN/report.html again.")
        return 0 if "help" in words.flags else 2
    path = Path(words.places[0])
    stages = [path] if (path / "receipt.json").exists() else sorted(p.parent for p in path.glob("*/receipt.json"))
    if not stages:
        raise ValueError(f"{words.places[0]!r} is not a run directory: it has no receipt.json")
    print(write_page(path, sorted(stages, key=lambda p: (p / "receipt.json").stat().st_mtime)))
    return 0
