"""From the words of a command line to a configuration.

A command line is a recipe (a name or a YAML file) and options, `--key value`, that change its fields. Nothing heavy is
imported before it is needed, so that `recipes`, `runs`, `report` and every `--help` start at once.
"""

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from treeward.errors import UserError
from treeward.methods import METHODS, find
from treeward.runner import settings, trl_names

log = logging.getLogger(__name__)

CONFIGS = {
    **{name: f"{method}.Config" for name, method in METHODS.items()},
    "pairs": "treeward.runner.pairs:PairsRun",
    "inspect": "treeward.runner.inspect:InspectRun",
    "evaluate": "treeward.runner.evaluate:EvaluateRun",
    "sample": "treeward.runner.sample:SampleRun",
    "score": "treeward.runner.score:ScoreRun",
    "merge": "treeward.runner.merge:MergeRun",
    "warp": "treeward.runner.warp:WarpRun",
}
"""The config class of each command as "module:Class": help reads its source, `config_class` imports it."""


def is_method(verb: str) -> bool:
    """Whether this is a training method: a command, or FILE.py:NAME."""
    return verb in METHODS or ".py:" in verb


def is_training(verb: str) -> bool:
    """Whether `cli.training` runs this command."""
    return verb in METHODS or verb in ("train", "resume")


def config_class(verb: str) -> type[Any]:
    """The config class of a command or method; this imports it."""
    if is_method(verb):
        return find(verb).Config
    module, _, name = CONFIGS[verb].partition(":")
    return getattr(import_module(module), name)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Words:
    """A split command line: positional words (`places`) in order, `options` as (key, value) in order, and `flags`."""

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
    flags_given: set[str] = set()
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            places.append(word)
            continue
        key, equals, value = word[2:].partition("=")
        if key in flags:
            flags_given.add(key)
        elif equals:
            options.append((key, value))
        elif rest and not rest[0].startswith("--"):
            options.append((key, rest.pop(0)))
        else:
            hint = trl_names.suggestion(key)
            raise UserError(f"--{key} needs a value{f'; {hint}' if hint else ''}")
    return Words(tuple(places), tuple(options), frozenset(flags_given))


def overridden(words: Words, base: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """`base` (the mapping of a recipe or of a run's config.yaml) with the options of a command line.

    Raises:
        UserError: `base` would run a Python file, and the command line neither names nor allows it.
    """
    values = dict(base or {})
    texts: dict[str, list[str]] = {}
    for key, text in words.options:
        texts.setdefault(key.replace("-", "_"), []).append(text)
    for key, values_of_key in texts.items():
        values = settings.merge(values, settings.override(key, *values_of_key))
    if not words.flags & {"allow-code", "print-config"}:
        settings.refuse_code(values, " ".join(map(repr, words.places)))
    return values


def configured(verb: str, words: Words) -> Any:
    """The configuration of a command that takes a recipe: the recipe with the command line's options.

    Raises:
        UserError: the recipe is unknown or of another command, a key is unknown or a value wrong.
    """
    return settings.build(config_class(verb), with_model(verb, overridden(words, recipe_of(verb, words))))


def with_trained_budgets(verb: str, words: Words) -> Any:
    """The configuration of a command that uses a trained model: prompts and responses are cut as in its training.

    Raises:
        UserError: as `configured`.
    """
    from treeward.runner.budgets import with_budgets

    values = with_model(verb, overridden(words, recipe_of(verb, words)))
    return settings.build(config_class(verb), with_budgets(values))


def without_recipe(verb: str, words: Words) -> Words:
    """The words of a command that takes options only.

    Raises:
        UserError: there is a positional word.
    """
    if words.places:
        raise UserError(f"{verb} does not take {words.places[0]!r}: give options, --KEY VALUE")
    return words


def recipe_of(verb: str, words: Words) -> dict[str, Any]:
    """The mapping of the recipe on a command line, with its name; empty without a recipe.

    Raises:
        UserError: there is more than one recipe, it is unknown, or it is for another command.
    """
    if len(words.places) > 1:
        raise UserError(f"one recipe at most, not {' '.join(words.places)!r}")
    if not words.places:
        return {}
    values = settings.recipe(words.places[0])
    command = values.pop("command", verb)
    if command != verb:
        raise UserError(f"recipe {words.places[0]!r} is for `treeward {command}`, not {verb}")
    values.setdefault("name", words.places[0].rsplit("/", 1)[-1].removesuffix(".yaml"))
    return values


def with_model(verb: str, values: Mapping[str, Any]) -> Mapping[str, Any]:
    """The same mapping, if it names a model.

    Training may leave the model out where the data is embedded: then it is the model of that data, with random weights.
    Any command may where `model.init` is random: then it is the embedded world's. The log says so.

    Raises:
        UserError: no model is named.
    """
    model = values.get("model", {})
    if not isinstance(model, Mapping) or "path" in model:
        return values
    from treeward.data import embedded

    data = values.get("data", {})
    source = str(data.get("source", "world")) if isinstance(data, Mapping) else ""
    model_of_data = embedded.model_of(source) if is_method(verb) else None
    name = "world" if str(model.get("init")) == "random" else model_of_data
    if name is not None:
        log.info("model: the embedded model %s, with random weights; name another with --model.path", name)
        return {**values, "model": {**model, "path": name}}
    raise UserError(
        "model.path is not given: name a model with --model.path (a run or model directory, a hub id, or `world` for "
        "the small embedded model with random weights)"
    )
