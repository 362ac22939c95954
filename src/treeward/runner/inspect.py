"""Look into a data set: figures, histograms and a page in one directory; the prepared trees in another, if asked for.

The figures are computed before anything is written, and each directory appears whole or not at all.
"""

import logging
import os
import shutil
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from treeward.data import store
from treeward.data.gather import Gathered, gather
from treeward.data.inspect import Inspection
from treeward.data.inspect import inspect as figures_of
from treeward.data.prepare import DataConfig
from treeward.data.streamed import prepare_to
from treeward.errors import UserError
from treeward.report.inspection import write_inspection
from treeward.runner.progress import follow
from treeward.runs.directory import RunDirectory, free_path
from treeward.trees.text import Tree
from treeward.trees.tokens import Tokenizer

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class InspectRun:
    """treeward inspect DATA: what is in a data set, before anything is trained on it."""

    data: DataConfig = field(default_factory=lambda: DataConfig(validation=0.0, test=0.2))
    """The data."""
    tokenizer: tuple[str, ...] = ()
    """Directory or hub id, or `world`; may be given several times. The first one's figures have plain names and its ids
    are saved. By default the model's, else the world's for the world; without any, lengths are in words."""
    model: str | None = None
    """Directory or hub id of a model: ids beyond its embedding are counted. Its config.json is enough."""
    out: str | None = None
    """The directory for inspect.json, histograms and page; it must not exist. By default a free name under runs/."""
    save: str | None = None
    """A directory for the tokenised splits, which data.source reads back in training; it must not exist."""
    processes: int = 1
    """Processes that tokenise what is saved; memory does not grow with the rows, but where texts are paired or ratings
    of one prompt gathered."""


@dataclass(frozen=True)
class Inspected:
    """Where the figures are, what they are, and the account of what was saved."""

    path: Path
    figures: dict[str, Any]
    saved: str | None


def inspect(
    config: InspectRun, tokenizer: Callable[[str], Tokenizer], embedding_rows: Callable[[str], int]
) -> Inspected:
    """Read, count, and write. The two functions load a tokenizer, and say how many token ids a model knows, by name.

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
    gathered = gather(config.data)
    if not gathered.trees:
        lost = _lost(gathered)
        raise UserError(f"data.source {config.data.source!r}: nothing is left of {gathered.rows} rows: {lost}")
    found = figures_of(config.data, gathered, tokenizers, rows, _follow)
    account = None
    if config.save is not None:
        first = next(iter(tokenizers.values()))
        account = prepare_to(Path(config.save), config.data, first, gathered.purpose, config.processes)
    _write(path, found)
    return Inspected(path, found.flat(), str(account) if account else None)


def _check_places(config: InspectRun, path: Path) -> None:
    if config.save is None:
        return
    kept = free_path("inspect", config.save, "--save")
    if kept.absolute() == path.absolute() or kept.absolute() in path.absolute().parents:
        raise UserError(f"--save {config.save!r} holds --out {str(path)!r}; name two places apart")


def _tokenizers(config: InspectRun, load: Callable[[str], Tokenizer]) -> dict[str, Tokenizer]:
    """Tokenizers by the last part of their name, the whole name where two would be the same."""
    named = list(dict.fromkeys(config.tokenizer))
    if not named and config.data.source in ("world", "world-texts"):
        named = ["world"]
    if not named and config.model is not None and _has_tokenizer(config.model):
        named = [config.model]
    short = [name.rstrip("/").rsplit("/", 1)[-1] for name in named]
    labels = short if len(set(short)) == len(short) else named
    for name in named:
        if name.startswith((".", "/", "~")) and not Path(name).expanduser().is_dir():
            raise UserError(f"--tokenizer {name!r} is not a directory")
    return {label: load(name) for label, name in zip(labels, named, strict=True)}


def _has_tokenizer(model: str) -> bool:
    path = Path(model).expanduser()
    return not path.is_dir() or any(path.glob("tokenizer*")) or any(path.glob("vocab*"))


def _follow(trees: Collection[Tree], what: str) -> Iterable[Tree]:
    return follow(trees, len(trees), what)


def _lost(gathered: Gathered) -> str:
    return ", ".join(f"{n} {reason}" for reason, n in sorted(gathered.dropped.items())) or "none has a response"


def _write(path: Path, found: Inspection) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        run = RunDirectory.create(temporary)
        run.write_json("inspect.json", found.flat())
        run.write_json("histograms.json", found.histograms)
        write_inspection(temporary)
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
