"""`treeward report DIR`: write the page of a run or an inspection again, from its directory alone."""

from collections.abc import Sequence
from pathlib import Path

from treeward.cli.parse import parse
from treeward.report.inspection import write_inspection
from treeward.report.page import write_page


def run(verb: str, arguments: Sequence[str]) -> int:
    """Write the page of a run, of a directory whose folders are runs, or of an inspection."""
    words = parse(arguments, ("help",))
    if "help" in words.flags or len(words.places) != 1 or words.options:
        print("treeward report DIR: write DIR/report.html, or the inspect.html of an inspection, again.")
        return 0 if "help" in words.flags else 2
    path = Path(words.places[0])
    if (path / "inspect.json").exists() and not (path / "receipt.json").exists():
        print(write_inspection(path))
        return 0
    stages = [path] if (path / "receipt.json").exists() else sorted(p.parent for p in path.glob("*/receipt.json"))
    if not stages:
        raise ValueError(
            f"{words.places[0]!r} has neither receipt.json nor inspect.json: it is no run and no inspection"
        )
    print(write_page(path, sorted(stages, key=lambda p: (p / "receipt.json").stat().st_mtime)))
    return 0
