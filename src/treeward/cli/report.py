"""`treeward report DIR`, and `treeward report RUN RUN ... --out frontier.html`: pages, from directories alone."""

from collections.abc import Sequence
from pathlib import Path

from treeward.cli.parse import parse
from treeward.errors import UserError
from treeward.report.frontier import write_frontier
from treeward.report.inspection import write_inspection
from treeward.report.page import write_page

USAGE = """treeward report DIR: write the page of a run or an inspection again.
treeward report RUN [RUN ...] --out FILE.html: one frontier of several runs, score against KL, and its figure as PNG."""


def run(verb: str, arguments: Sequence[str]) -> int:
    """Write the page of a run, of a directory whose folders are runs, or of an inspection; with --out a frontier."""
    words = parse(arguments, ("help",))
    options = dict(words.options)
    if "help" in words.flags or not words.places or set(options) - {"out"}:
        print(USAGE)
        return 0 if "help" in words.flags else 2
    if "out" in options:
        runs = [run for place in words.places for run in _runs(place)]
        print(write_frontier(runs, _free(options["out"])))
        return 0
    if len(words.places) > 1:
        raise UserError("several runs make one frontier: name the page to write with --out FILE.html")
    path = Path(words.places[0])
    if (path / "inspect.json").exists() and not (path / "receipt.json").exists():
        print(write_inspection(path))
        return 0
    print(write_page(path, _runs(words.places[0])))
    return 0


def _runs(place: str) -> list[Path]:
    """The run at a place, or the runs in its folders, in the order in which they ended."""
    path = Path(place)
    runs = [path] if (path / "receipt.json").exists() else [p.parent for p in path.glob("*/receipt.json")]
    if not runs:
        raise UserError(f"{place!r} has neither receipt.json nor inspect.json: it is no run and no inspection")
    return sorted(runs, key=lambda p: (p / "receipt.json").stat().st_mtime)


def _free(out: str) -> Path:
    path = Path(out)
    if path.suffix != ".html":
        raise UserError(f"--out {out!r} does not end in .html; the page is HTML and its figure a PNG beside it")
    if path.exists() or path.with_suffix(".png").exists():
        raise UserError(f"--out {out!r} or its PNG exists; name another file")
    return path
