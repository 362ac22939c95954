"""`treeward inspect DATA|RECIPE [--tokenizer T].. [--model DIR] [--out DIR] [--save DIR] [--data.limit N ...]`."""

from collections.abc import Sequence
from typing import Any

import transformers

from treeward.cli.parse import Words, parse
from treeward.cli.training import field_lines, overridden
from treeward.jobs import settings
from treeward.jobs.inspect import InspectRun, inspect
from treeward.report.inspection_tables import text

USAGE = "treeward inspect DATA|RECIPE [--tokenizer T].. [--model DIR] [--out DIR] [--save DIR] [--data.KEY VALUE ...]"


def run(verb: str, arguments: Sequence[str]) -> int:
    """Print what is in the data, and where figures and page are."""
    transformers.utils.logging.disable_progress_bar()
    words = parse(arguments, ("help",))
    if "help" in words.flags:
        print("\n".join([str(InspectRun.__doc__), "", USAGE, "", *field_lines(InspectRun)]))
        return 0
    found = inspect(configured(words))
    print(text(found.figures))
    if found.saved is not None:
        print(f"\nsaved      {dict(words.options)['save']}: {found.saved}")
    print(f"\nfigures    {found.path / 'inspect.json'}\npage       {found.path / 'inspect.html'}")
    return 0


def configured(words: Words) -> InspectRun:
    """The configuration of a command line; DATA is data.source, unless it is the name of a recipe for inspect.

    Raises:
        ValueError: no data or more than one is named, an unknown key or a bad value.
    """
    default = InspectRun().data
    base: dict[str, Any] = {"data": {"validation": default.validation, "test": default.test}}
    places = list(words.places)
    if places and places[0] in settings.recipes():
        recipe = settings.recipe(places.pop(0))
        command = recipe.pop("command")
        if command != "inspect":
            raise ValueError(f"recipe {words.places[0]!r} is for `treeward {command}`, not inspect")
        base = settings.merge(base, recipe)
    sources = len(places) + ("data.source" in dict(words.options))
    if sources != 1 and not (sources == 0 and "source" in base["data"]):
        raise ValueError(f"inspect takes one DATA, not {sources}; usage: {USAGE}")
    if places:
        base["data"]["source"] = places[0]
    tokenizers = [value for key, value in words.options if key == "tokenizer"]
    others = Words((), tuple(option for option in words.options if option[0] != "tokenizer"), words.flags)
    return settings.build(InspectRun, overridden(others, base | ({"tokenizer": tokenizers} if tokenizers else {})))
