"""`treeward inspect DATA|RECIPE [--tokenizer T].. [--model DIR] [--out DIR] [--save DIR] [--data.limit N ...]`."""

from collections.abc import Sequence
from typing import Any

import transformers

from treeward.cli.parse import Words, field_lines, overridden, parse
from treeward.errors import UserError
from treeward.models import files
from treeward.report.inspection_tables import text
from treeward.runner import settings
from treeward.runner.inspect import InspectRun, inspect
from treeward.trees.tokens import Tokenizer

USAGE = "treeward inspect DATA|RECIPE [--tokenizer T].. [--model DIR] [--out DIR] [--save DIR] [--data.KEY VALUE ...]"


def run(verb: str, arguments: Sequence[str]) -> int:
    """Print what is in the data, and where figures and page are."""
    transformers.utils.logging.disable_progress_bar()
    words = parse(arguments, ("help",))
    if "help" in words.flags:
        print("\n".join([str(InspectRun.__doc__), "", USAGE, "", *field_lines(InspectRun)]))
        return 0
    config = configured(words)
    found = inspect(config, trained_tokenizer if config.save else tokenizer, embedding_rows)
    print(text(found.figures))
    if found.saved is not None:
        print(f"\nsaved      {dict(words.options)['save']}: {found.saved}")
    print(f"\nfigures    {found.path / 'inspect.json'}\npage       {found.path / 'inspect.html'}")
    return 0


def tokenizer(name: str) -> Tokenizer:
    """A tokenizer by directory or hub id, read without torch where its files allow that."""
    return files.tokenizer_of(name) or trained_tokenizer(name)


def trained_tokenizer(name: str) -> Tokenizer:
    """The same, loaded as training loads it; torch is imported here, after all that needs none."""
    from treeward.models.loading import ModelConfig, load_tokenizer

    return load_tokenizer(ModelConfig(tokenizer=name))


def embedding_rows(model: str) -> int:
    """How many token ids a model has embeddings for."""
    rows = files.embedding_rows_of(model)
    if rows is not None:
        return rows
    from treeward.models import loading

    return loading.embedding_rows(model)


def configured(words: Words) -> InspectRun:
    """The configuration of a command line; DATA is data.source, unless it is the name of a recipe for inspect.

    Raises:
        UserError: no data or more than one is named, an unknown key or a bad value.
    """
    default = InspectRun().data
    base: dict[str, Any] = {"data": {"validation": default.validation, "test": default.test}}
    places = list(words.places)
    if places and places[0] in settings.recipes():
        recipe = settings.recipe(places.pop(0))
        command = recipe.pop("command")
        if command != "inspect":
            raise UserError(f"recipe {words.places[0]!r} is for `treeward {command}`, not inspect")
        base = settings.merge(base, recipe)
    sources = len(places) + ("data.source" in dict(words.options))
    if sources != 1 and not (sources == 0 and "source" in base["data"]):
        raise UserError(f"inspect takes one DATA, not {sources}; usage: {USAGE}")
    if places:
        base["data"]["source"] = places[0]
    tokenizers = [value for key, value in words.options if key == "tokenizer"]
    others = Words((), tuple(option for option in words.options if option[0] != "tokenizer"), words.flags)
    return settings.build(InspectRun, overridden(others, base | ({"tokenizer": tokenizers} if tokenizers else {})))
