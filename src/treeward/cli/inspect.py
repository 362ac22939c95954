"""`treeward inspect DATA|RECIPE [--key value ...]`: look into a data set."""

from collections.abc import Sequence
from typing import Any

import transformers

from treeward.cli.parse import Words, overridden, parse
from treeward.errors import UserError
from treeward.models import files
from treeward.report.inspection import text
from treeward.runner import settings
from treeward.runner.inspect import InspectRun, inspect
from treeward.trees.tokens import Tokenizer

USAGE = (
    "treeward inspect DATA|RECIPE [--tokenizer T].. [--model DIR] [--out DIR] [--save DIR] [--recipe FILE.yaml] "
    "[--data.KEY VALUE ...]"
)


def run(verb: str, arguments: Sequence[str]) -> int:
    """Print the figures of the data, and the places of the files."""
    transformers.utils.logging.disable_progress_bar()
    words = parse(arguments, ())
    config = configured(words)
    inspected = inspect(config, trained_tokenizer if config.save else tokenizer, embedding_rows)
    print(text(inspected.figures))
    if inspected.saved is not None:
        print(f"\nsaved      {dict(words.options)['save']}: {inspected.saved}")
    print(f"\nfigures    {inspected.path / 'inspect.json'}\npage       {inspected.path / 'inspect.html'}")
    if config.recipe is not None:
        print(f"recipe     {config.recipe}")
    return 0


def tokenizer(name: str) -> Tokenizer:
    """A tokenizer by directory or hub id, loaded without torch where its files allow that."""
    return files.tokenizer_of(name) or trained_tokenizer(name)


def trained_tokenizer(name: str) -> Tokenizer:
    """The same tokenizer, loaded as training loads it; this imports torch."""
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
    positional = list(words.places)
    if positional and positional[0] in settings.recipes():
        recipe = settings.recipe(positional.pop(0))
        command = recipe.pop("command")
        if command != "inspect":
            raise UserError(f"recipe {words.places[0]!r} is for `treeward {command}`, not inspect")
        base = settings.merge(base, recipe)
    sources = len(positional) + ("data.source" in dict(words.options))
    if sources != 1 and not (sources == 0 and "source" in base["data"]):
        raise UserError(f"inspect takes one DATA, not {sources}; usage: {USAGE}")
    if positional:
        base["data"]["source"] = positional[0]
    tokenizers = [value for key, value in words.options if key == "tokenizer"]
    others = Words((), tuple(option for option in words.options if option[0] != "tokenizer"), words.flags)
    return settings.build(InspectRun, overridden(others, base | ({"tokenizer": tokenizers} if tokenizers else {})))
