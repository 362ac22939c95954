"""`treeward report DIR`, and `treeward report RUN RUN ... --out frontier.html`: pages, from run directories alone."""

from collections.abc import Sequence
from pathlib import Path

from treeward.cli.help import PAGES
from treeward.cli.parse import parse
from treeward.errors import UserError
from treeward.report.frontier import write_frontier
from treeward.report.inspection import write_inspection
from treeward.report.page import write_page


def run(verb: str, arguments: Sequence[str]) -> int:
    """Write the page of a run, of a directory whose folders are runs, or of an inspection; with --out a frontier."""
    words = parse(arguments, ())
    options = dict(words.options)
    unknown = sorted(set(options) - {"out"})
    if unknown or not words.places:
        problem = f"does not take --{unknown[0]}" if unknown else "needs the directory of a run or an inspection"
        raise UserError(f"report {problem}; usage: treeward {PAGES[verb].usage}")
    if "out" in options:
        runs = [run for place in words.places for run in _runs(place)]
        print(write_frontier(runs, _new_page(options["out"])))
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
    """The run in a directory, or those in its folders, in the order in which they ended."""
    path = Path(place)
    runs = [path] if (path / "receipt.json").exists() else [file.parent for file in path.glob("*/receipt.json")]
    if not runs:
        raise UserError(f"{place!r} has neither receipt.json nor inspect.json: name an ended run or an inspection")
    return sorted(runs, key=lambda run: (run / "receipt.json").stat().st_mtime)


def _new_page(out: str) -> Path:
    path = Path(out)
    if path.suffix != ".html":
        raise UserError(f"--out {out!r} does not end in .html; the page is HTML and its figure a PNG beside it")
    if path.exists() or path.with_suffix(".png").exists():
        raise UserError(f"--out {out!r} or its PNG exists; name another file")
    return path
