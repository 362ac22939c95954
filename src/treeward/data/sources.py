"""Rows from anywhere: a file, a saved data set, a hub id, or the embedded world; read by the `datasets` library.

Errors are one line, name the place and the mend, and leave nothing behind.
"""

import logging
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import datasets

from treeward.data import world
from treeward.data.hub import reachable

Row = dict[str, Any]

READERS: Mapping[str, str] = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}


BATCH = 1000
"""Rows read at a time."""


class Flow:
    """Rows that stay where they are: each pass reads them anew, a batch at a time."""

    def __init__(self, parts: Mapping[str, datasets.Dataset], limit: int | None = None) -> None:
        self._parts = {name: part.with_format("arrow") for name, part in parts.items()}
        self._every = sum(map(len, parts.values()))
        self._limit = limit

    def __len__(self) -> int:
        return self._every if self._limit is None else min(self._every, self._limit)

    def __contains__(self, row: object) -> bool:
        return any(row == each for each in self)

    def __iter__(self) -> Iterator[Row]:
        left = len(self)
        single = len(self._parts) == 1
        for name, part in self._parts.items():
            for start in range(0, min(left, len(part)), BATCH):
                batch = part[start : min(start + BATCH, left)].to_pylist()
                yield from batch if single else ({"split": name, **row} for row in batch)
            left -= min(left, len(part))


def flow(source: str, split: str | None = None, limit: int | None = None, seed: int = 0) -> Collection[Row]:
    """The rows of `source`, each with a `split` key where the source has splits; only the world's lie in memory.

    `source` is "world", "world-texts" or "world-graded" (the embedded world; "world:20000" for that many rows), a path
    (jsonl, jsonl.gz, json, parquet, csv, a directory that `datasets` saved or that holds such files), or a hub id,
    which alone reaches the network.

    Raises:
        ValueError: the source does not exist, cannot be read, has no such split or has no rows.
    """
    known = world.source(source)
    if known and split is not None:
        raise ValueError(f"data.split {split!r} is not in {source!r}, which has no splits; add --data.split null")
    found: Collection[Row] = known(seed)[:limit] if known else Flow(_parts(_read(source), source, split), limit)
    if not found:
        raise ValueError(f"data.source {source!r} has no rows")
    return found


def rows(source: str, split: str | None = None, limit: int | None = None, seed: int = 0) -> list[Row]:
    """`flow`, read into memory."""
    return list(flow(source, split, limit, seed))


def _read(source: str) -> Any:
    path = Path(source)
    try:
        if path.is_dir():
            if (path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists():
                return datasets.load_from_disk(source)
            return _quietly(source)
        if path.is_file():
            return _read_file(path)
        if source.startswith((".", "/", "~")) or source.count("/") != 1 or set(path.suffixes) & set(READERS):
            raise ValueError(f"data.source {source!r} does not exist")
        if not reachable():
            datasets.config.HF_HUB_OFFLINE = True
        return _quietly(source)
    except ValueError:
        raise
    except (OSError, RuntimeError, datasets.exceptions.DatasetsError) as problem:
        reason = str(problem).splitlines()[0] if str(problem) else type(problem).__name__
        raise ValueError(
            f"data.source {source!r} cannot be read ({reason[:160]}); without a network give a local file or 'world'"
        ) from None


def _read_file(path: Path) -> Any:
    plain = path.with_suffix("") if path.suffix == ".gz" else path
    reader = READERS.get(plain.suffix)
    if reader is None:
        raise ValueError(
            f"data.source {str(path)!r} ends in {path.suffix!r}; jsonl, jsonl.gz, json, parquet and csv are read"
        )
    if path.stat().st_size == 0:
        raise ValueError(f"data.source {str(path)!r} is empty")
    try:
        return _quietly(reader, data_files=str(path))
    except (ValueError, OSError, RuntimeError, LookupError, TypeError, datasets.exceptions.DatasetsError) as problem:
        cause = (str(problem.__cause__ or problem).splitlines() or [type(problem).__name__])[0]
        raise ValueError(f"data.source {str(path)!r} is not readable as {reader}: {cause[:160]}") from None


def _quietly(*arguments: Any, **named: Any) -> Any:
    datasets.disable_progress_bars()
    logger = logging.getLogger("datasets")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        return datasets.load_dataset(*arguments, **named)
    finally:
        logger.setLevel(level)


def _parts(found: Any, source: str, split: str | None) -> dict[str, datasets.Dataset]:
    parts = {"train": found} if isinstance(found, datasets.Dataset) else dict(found)
    if split is None:
        return parts
    if split not in parts:
        raise ValueError(
            f"data.split {split!r} is not in {source!r}; it has {', '.join(sorted(parts))}: name one of them, or read "
            "everything with --data.split null"
        )
    return {split: parts[split]}
