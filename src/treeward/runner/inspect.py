"""Look into a data set: figures, histograms and a page in one directory; on request prepared trees and a recipe.

The figures are computed before anything is written, and each directory appears whole or not at all.
"""

import math
import os
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from treeward.data import embedded, store
from treeward.data.inspect import Inspection, read_contents
from treeward.data.inspect import inspect as inspect_contents
from treeward.data.prepare import DataConfig, prepare_to
from treeward.errors import UserError
from treeward.report.inspection import write_inspection
from treeward.runner.progress import follow
from treeward.runs.directory import RunDirectory, free_path
from treeward.trees.text import Tree
from treeward.trees.tokens import Tokenizer


@dataclass(frozen=True, kw_only=True)
class InspectRun:
    """treeward inspect DATA: what is in a data set, before anything is trained on it."""

    data: DataConfig = field(default_factory=lambda: DataConfig(validation=0.0, test=0.2))
    """The data."""
    tokenizer: tuple[str, ...] = ()
    """Directory or hub id, or `world`; may be given several times. --save and --recipe use the first one. By default
    the model's, else an embedded source's own; without any, lengths are in words."""
    model: str | None = None
    """Directory or hub id of a model: ids beyond its embedding are counted. Its config.json is enough."""
    out: str | None = None
    """The directory for inspect.json, histograms and page; it must not exist. By default a free name under runs/."""
    save: str | None = None
    """A directory for the tokenized splits, which data.source reads back in training; it must not exist."""
    recipe: str | None = None
    """A YAML file for a recipe that trains on this data: a reward model on pairs, else sft; it must not exist."""
    processes: int = 1
    """Processes that tokenize the saved data. Memory does not grow with the rows, except where texts are paired or
    ratings of one prompt are joined."""


@dataclass(frozen=True)
class Inspected:
    """The directory of the figures, the figures, and the account of what was saved."""

    path: Path
    figures: dict[str, Any]
    saved: str | None


def inspect(
    config: InspectRun, tokenizer: Callable[[str], Tokenizer], embedding_rows: Callable[[str], int]
) -> Inspected:
    """Read, count, and write.

    `tokenizer` loads a tokenizer by name; `embedding_rows` returns how many token ids a model has embeddings for.

    Raises:
        UserError: the data, a tokenizer, the model or a place to write cannot be used; nothing is written.
    """
    path = free_path("inspect", config.out)
    _check_places(config, path)
    if store.is_prepared(config.data.source):
        raise UserError(f"data.source {config.data.source!r} is prepared data; inspect the source it was made from")
    rows = None if config.model is None else embedding_rows(config.model)
    tokenizers = _tokenizers(config, tokenizer)
    if config.save is not None and not tokenizers:
        raise UserError("--save keeps token ids, but no tokenizer is named; add --tokenizer")
    contents = read_contents(config.data)
    if not contents.trees:
        dropped = ", ".join(f"{n} {reason}" for reason, n in sorted(contents.dropped.items()))
        raise UserError(
            f"data.source {config.data.source!r}: nothing is left of {contents.rows} rows: "
            f"{dropped or 'none has a response'}"
        )
    inspection = inspect_contents(contents, tokenizers, rows, _follow)
    recipe = recipe_text(inspection) if config.recipe is not None else ""
    account = None
    if config.save is not None:
        first = next(iter(tokenizers.values()))
        account = prepare_to(Path(config.save), config.data, first, contents.purpose, config.processes)
    _write(path, inspection)
    if config.recipe is not None:
        Path(config.recipe).parent.mkdir(parents=True, exist_ok=True)
        Path(config.recipe).write_text(recipe, encoding="utf-8")
    return Inspected(path, inspection.flat(), str(account) if account else None)


def recipe_text(inspection: Inspection) -> str:
    """A recipe as YAML that trains on the inspected data: format and columns as they were read, lengths that fit.

    Raises:
        UserError: the data is prompts alone.
    """
    reading, lengths = inspection.reading, inspection.tokens[0]
    if reading.purpose == "prompts":
        raise UserError("--recipe needs responses to train on, but the data is prompts alone; leave --recipe out")
    config, default = asdict(reading.config), asdict(InspectRun().data)
    changed = {name: value for name, value in config.items() if value != default[name]}
    columns = dict(reading.layout.columns)
    data = {"source": config["source"], "format": reading.format, **({"columns": columns} if columns else {})}
    if lengths["vocabulary"] is None:
        comment = "Lengths are in words, so max_prompt and max_response are not suggested: name a --tokenizer."
    else:
        data |= {f"max_{part}": _suggested(lengths, part) for part in ("prompt", "response")}
        comment = f"Lengths in tokens of {lengths['tokenizer']}: " + "; ".join(
            f"95 % of the {part}s have at most {lengths[f'{part}_q95']:.0f}, the longest {lengths[f'{part}_max']:.0f}"
            for part in ("prompt", "response")
        )
    data |= {name: value for name, value in changed.items() if name not in ("source", "format", "columns")}
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in data.items()}
    return (
        f"# Written by `treeward inspect`: {reading.layout.description}.\n"
        f"# {comment}\n"
        f"command: {'reward' if reading.purpose == 'pairs' else 'sft'}\n"
        "# Name the model in the next line, or with --model.path on the command line.\n"
        "# model: {path: DIRECTORY OR HUB ID}\n"
        + yaml.safe_dump({"data": plain}, sort_keys=False, allow_unicode=True, width=120)
    )


def _suggested(lengths: Mapping[str, Any], part: str) -> int:
    """A limit in tokens: the longest, or the 95 % quantile where the longest is over twice that; a multiple of 8."""
    longest, usual = float(lengths[f"{part}_max"]), float(lengths[f"{part}_q95"])
    return 8 * math.ceil(max(1.0, longest if longest <= 2 * usual else usual) / 8)


def _check_places(config: InspectRun, path: Path) -> None:
    if config.recipe is not None:
        if not config.recipe.endswith((".yaml", ".yml")):
            raise UserError(f"--recipe {config.recipe!r} must end in .yaml, so that the training commands take it")
        if Path(config.recipe).exists():
            raise UserError(f"--recipe {config.recipe!r} exists; name another file")
    if config.save is None:
        return
    place = free_path("inspect", config.save, "--save")
    if place.absolute() == path.absolute() or place.absolute() in path.absolute().parents:
        raise UserError(f"--save {config.save!r} holds --out {str(path)!r}; name two places apart")


def _tokenizers(config: InspectRun, load: Callable[[str], Tokenizer]) -> dict[str, Tokenizer]:
    """Tokenizers by the last part of their name, or by the whole name where two last parts are equal."""
    names = list(dict.fromkeys(config.tokenizer))
    if not names and (model := embedded.model_of(config.data.source)) is not None:
        names = [model]
    if not names and config.model is not None and _has_tokenizer(config.model):
        names = [config.model]
    short = [name.rstrip("/").rsplit("/", 1)[-1] for name in names]
    labels = short if len(set(short)) == len(short) else names
    for name in names:
        if name.startswith((".", "/", "~")) and not Path(name).expanduser().is_dir():
            raise UserError(f"--tokenizer {name!r} is not a directory; name one with a tokenizer.json, or a hub id")
    return {label: load(name) for label, name in zip(labels, names, strict=True)}


def _has_tokenizer(model: str) -> bool:
    path = Path(model).expanduser()
    return not path.is_dir() or any(path.glob("tokenizer*")) or any(path.glob("vocab*"))


def _follow(trees: Collection[Tree], what: str) -> Iterable[Tree]:
    return follow(trees, len(trees), what)


def _write(path: Path, inspection: Inspection) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        run = RunDirectory.create(temporary)
        run.write_json("inspect.json", inspection.flat())
        run.write_json("histograms.json", inspection.histograms)
        write_inspection(temporary)
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
