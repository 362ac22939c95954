"""Rows of a source: a file, a directory of files, a saved data set, a hub id, or the embedded world.

Local files are read as they were written: JSON lines, JSON, CSV, Parquet, and what `datasets` saved. No text is
rewritten because of another row, and a CSV field is always a text. Reading opens only files that the user named, runs
no code, and uses the network for a hub id alone. Memory holds one row of a text file, or one batch of a Parquet file.
"""

import csv
import gzip
import io
import json
import logging
import os
import re
import socket
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import pyarrow as pa
from huggingface_hub import constants
from pyarrow import parquet

from treeward.data import embedded
from treeward.data.splits import NAMES
from treeward.errors import UserError

Row = dict[str, Any]
Handle = io.BufferedReader | gzip.GzipFile

BATCH = 1000
"""Rows of a Parquet or Arrow file that are in memory at a time."""
BLOCK = 1 << 16
"""Characters of a JSON file that are read at a time."""
DEPTH = 64
"""Deepest nesting of lists and objects."""

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
SPACE = re.compile(r"[ \t\n\r]*")
SPLIT = re.compile(
    r"(?:^|[-._ 0-9/])(train|training|validation|valid|val|dev|test|testing|eval|evaluation)(?=[-._ 0-9/]|$)",
    re.IGNORECASE,
)
SHARD = re.compile(r"(\w+)-\d{5}-of-\d{5}")
SPLITS = {
    "train": "train", "training": "train", "validation": "validation", "valid": "validation", "val": "validation",
    "dev": "validation", "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
}  # fmt: skip
METADATA = ("dataset_infos.json", "dataset_info.json", "state.json")
"""JSON files that describe a data set and have no rows."""


class BadFile(UserError):
    """A file that cannot be read: the problem and, where one row is at fault, its number counted from 1."""

    def __init__(self, problem: str, row: int | None = None) -> None:
        super().__init__(problem, row)
        self.problem = problem
        self.row = row


class BadRow(UserError):
    """A row that cannot be used: its number counted from 0, and the problem. `located` adds the file's name."""

    def __init__(self, number: int, problem: str) -> None:
        super().__init__(number, problem)
        self.number = number
        self.problem = problem

    def __str__(self) -> str:
        return f"row {self.number + 1}: {self.problem}"


@dataclass(frozen=True)
class Shard:
    """Some rows of a source, read anew on each pass. `name` is the file's name inside a directory, else empty."""

    name: str
    read: Callable[[], Iterable[Row]]


class SourceRows:
    """The rows of a source, read anew on each pass and not kept in memory.

    `shards` are the parts of the source by split. With several splits each row gets a `split` key.
    """

    def __init__(
        self, source: str, shards: Mapping[str, Sequence[Shard]], limit: int | None = None, option: str = "data.source"
    ) -> None:
        self._name, self._shards, self._limit = f"{option} {source!r}", shards, limit
        self._count: int | None = None

    def __len__(self) -> int:
        """The number of rows; the first call reads them all."""
        if self._count is None:
            self._count = sum(1 for _ in self)
        return self._count

    def __contains__(self, row: object) -> bool:
        return any(row == candidate for candidate in self)

    def __iter__(self) -> Iterator[Row]:
        return islice(self._all(), self._limit)

    def _all(self) -> Iterator[Row]:
        single = len(self._shards) == 1
        for split, shards in self._shards.items():
            for shard in shards:
                try:
                    yield from shard.read() if single else ({"split": split, **row} for row in shard.read())
                except BadFile as problem:
                    raise UserError(f"{self._place(shard, problem.row)} {problem.problem}") from None

    def _place(self, shard: Shard, row: int | None) -> str:
        return f"{self._name}{f', {shard.name!r}' if shard.name else ''}{f', row {row}' if row else ''}"

    @contextmanager
    def located(self) -> Iterator[None]:
        """Raise a `BadRow` of these rows as an error that names the file and the row in it, counted from 1."""
        try:
            yield
        except BadRow as problem:
            left = problem.number
            for shard in (shard for shards in self._shards.values() for shard in shards):
                count = sum(1 for _ in islice(shard.read(), left + 1))
                if count > left:
                    raise UserError(f"{self._place(shard, left + 1)}: {problem.problem}") from None
                left -= count
            raise


class SplitRows:
    """The rows of one split, by a column that names it; read anew on each pass.

    Raises:
        UserError: no row names this split.
    """

    def __init__(self, rows: SourceRows, column: str, split: str, limit: int | None) -> None:
        self._rows, self._column, self._limit = rows, column, limit
        self._split = NAMES.get(split.lower(), split)
        counts: Counter[str] = Counter(str(row.get(column)) for row in rows)
        self._count = sum(n for name, n in counts.items() if self._matches(name))
        if not self._count:
            names = ", ".join(f"{name} ({n} rows)" for name, n in counts.most_common(6))
            raise UserError(f"data.split is {split!r}, but column {column!r} names {names}; use one of these")

    def _matches(self, value: object) -> bool:
        return NAMES.get(str(value).lower(), str(value)) == self._split

    def __len__(self) -> int:
        return self._count if self._limit is None else min(self._count, self._limit)

    def __contains__(self, row: object) -> bool:
        return any(row == candidate for candidate in self)

    def __iter__(self) -> Iterator[Row]:
        return islice((row for row in self._rows if self._matches(row.get(self._column))), self._limit)

    @contextmanager
    def located(self) -> Iterator[None]:
        """Raise a `BadRow` of these rows as an error that names the file and the row in it, counted from 1."""
        with self._rows.located():
            try:
                yield
            except BadRow as problem:
                numbers = (number for number, row in enumerate(self._rows) if self._matches(row.get(self._column)))
                raise BadRow(next(islice(numbers, problem.number, None)), problem.problem) from None


Rows = SourceRows | SplitRows
"""The rows of a source, read anew on each pass."""


def open_source(
    source: str, split: str | None = None, limit: int | None = None, seed: int = 0, option: str = "data.source"
) -> SourceRows:
    """The rows of `source`, each with a `split` key where the source has several splits.

    `source` is "world", "world-texts" or "world-graded" (the embedded world; "world:20000" for that many rows), a path
    (jsonl, json, parquet, csv, each also as .gz, a directory that `datasets` saved or that holds such files), or a hub
    id. `seed` is the embedded world's; `option` is the option that the user set, for messages.

    Raises:
        UserError: the source does not exist, cannot be read, has no such split or has no rows.
    """
    make = embedded.source(source)
    if make and split is not None:
        raise UserError(f"data.split {split!r} is not in {source!r}, which has no splits; add --data.split null")
    if make:
        made = make(seed)
        return SourceRows(source, {"train": [Shard("", lambda: made)]}, limit, option)
    rows = SourceRows(source, _one_split(_shards(source, option), source, split), limit, option)
    if next(iter(rows), None) is None:
        raise UserError(f"{option} {source!r} has no rows")
    return rows


def read_rows(source: str, split: str | None = None, limit: int | None = None, seed: int = 0) -> list[Row]:
    """`open_source`, read into memory."""
    return list(open_source(source, split, limit, seed))


def _shards(source: str, option: str) -> Mapping[str, Sequence[Shard]]:
    """The shards of a source by split; those of a single file are its "train"."""
    path = Path(source).expanduser()
    try:
        if path.is_dir():
            return directory_shards(path)
        if path.is_file():
            return {"train": [file_shard(path)]}
    except BadFile as problem:
        raise UserError(f"{option} {source!r} {problem.problem}") from None
    if path.exists():
        raise UserError(f"{option} {source!r} is neither a file nor a directory")
    if not is_hub_id(source) or source.count("/") != 1 or set(path.suffixes) & set(READERS):
        raise UserError(f"{option} {source!r} does not exist; correct the path, or name a hub id")
    return hub_shards(source, option)


def _one_split(shards: Mapping[str, Sequence[Shard]], source: str, split: str | None) -> Mapping[str, Sequence[Shard]]:
    if split is None:
        return shards
    if split not in shards:
        raise UserError(
            f"data.split {split!r} is not in {source!r}; it has {', '.join(sorted(shards))}: name one of them, or read "
            "everything with --data.split null"
        )
    return {split: shards[split]}


# The hub ---------------------------------------------------------------------------------------------------------


def is_hub_id(name: str) -> bool:
    """Whether a name that is no path on this machine can be a hub id: NAME or OWNER/NAME.

    OWNER/NAME is taken for a path where OWNER is a directory here: a mistyped path must not be sent to the hub.
    """
    owner, slash, _ = name.partition("/")
    return bool(HUB_ID.fullmatch(name)) and not (slash and Path(owner).is_dir())


def hub_reachable() -> bool:
    """Whether the hub's host name resolves, or a proxy is set that resolves it; False in offline mode.

    Without this look-up a closed network costs a minute of retries before the same answer.
    """
    if constants.HF_HUB_OFFLINE:
        return False
    if os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy"):
        return True
    host = urlparse(constants.ENDPOINT).hostname or ""
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        return False
    return True


def hub_shards(name: str, option: str) -> Mapping[str, Sequence[Shard]]:
    """The splits of a data set on the hub, or of its copy in the cache, read by the `datasets` library.

    Raises:
        UserError: it cannot be read; in one line with the fix.
    """
    datasets: Any = import_module("datasets")
    if not hub_reachable():
        datasets.config.HF_HUB_OFFLINE = True
    datasets.disable_progress_bars()
    logger = logging.getLogger("datasets")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        loaded = datasets.load_dataset(name)
    except (ValueError, OSError, RuntimeError, LookupError, TypeError, datasets.exceptions.DatasetsError) as problem:
        reason = (str(problem).splitlines() or [type(problem).__name__])[0]
        raise UserError(
            f"{option} {name!r} cannot be read ({reason[:160]}); without a network give a local file or 'world'"
        ) from None
    finally:
        logger.setLevel(level)
    return {split: [_hub_shard(dataset)] for split, dataset in loaded.items()}


def _hub_shard(dataset: Any) -> Shard:
    table = dataset.with_format("arrow")

    def read() -> Iterator[Row]:
        for start in range(0, len(table), BATCH):
            yield from table[start : start + BATCH].to_pylist()

    return Shard("", read)


# Files and directories -------------------------------------------------------------------------------------------


def file_shard(path: Path, name: str = "") -> Shard:
    """The rows of one file, by its ending.

    Raises:
        BadFile: the ending is unknown.
    """
    ending = _ending(path)
    if ending not in READERS:
        raise BadFile(f"ends in {path.suffix!r}; jsonl, jsonl.gz, json, parquet and csv are read")
    return Shard(name, partial(_file_rows, path, READERS[ending]))


def directory_shards(path: Path) -> dict[str, list[Shard]]:
    """The shards of a directory by split: what `datasets` saved there, or its data files by the split in their names.

    Only files that lie inside the directory are read; its README and other descriptions are not.

    Raises:
        BadFile: the directory has no data files or several kinds of them, or a link points outside it.
    """
    if (path / "dataset_dict.json").is_file():
        names = _listed(path / "dataset_dict.json", "splits")
        return {name: _saved(path / _inside(name), name) for name in names}
    if (path / "dataset_info.json").is_file() or (path / "state.json").is_file():
        return {"train": _saved(path, "")}
    files = [f for f in sorted(path.rglob("*")) if f.is_file() and _is_data(f.relative_to(path))]
    if not files:
        raise BadFile("is a directory without data files (jsonl, jsonl.gz, json, parquet, csv)")
    for file in files:
        _refuse_foreign(file, path)
    kinds = {"json" if "json" in _ending(file) else _ending(file)[1:]: file for file in files}
    if len(kinds) > 1:
        examples = " and ".join(repr(str(file.relative_to(path))) for file in list(kinds.values())[:2])
        raise BadFile(f"is a directory with files of several kinds ({examples}); name one file")
    splits = {file: _split_in_name(file.relative_to(path)) for file in files}
    unnamed = [file for file, split in splits.items() if split is None]
    if unnamed and len(unnamed) < len(files):
        raise BadFile(
            f"is a directory whose files name splits, but {str(unnamed[0].relative_to(path))!r} names none; "
            "name one file, or put the split into that file's name"
        )
    shards: dict[str, list[Shard]] = {}
    order = ("train", "validation", "test")
    for file, split in sorted(splits.items(), key=lambda item: order.index(item[1]) if item[1] in order else 3):
        shards.setdefault(split or "train", []).append(file_shard(file, str(file.relative_to(path))))
    return shards


def _ending(path: Path) -> str:
    return (path.with_suffix("") if path.suffix == ".gz" else path).suffix


def _is_data(path: Path) -> bool:
    hidden = any(part.startswith((".", "__")) for part in path.parts)
    return _ending(path) in READERS and not hidden and path.name not in METADATA


def _split_in_name(path: Path) -> str | None:
    """The split in a file's name, else in the name of the nearest folder that has one."""
    shard = SHARD.match(path.name)
    if shard:
        return SPLITS.get(shard[1].lower(), shard[1])
    for part in reversed(path.parts):
        if match := SPLIT.search(part):
            return SPLITS[match[1].lower()]
    return None


def _refuse_foreign(file: Path, root: Path) -> None:
    """A link may point into the directory, or into the store of a hub cache that the directory is a part of."""
    real, top = file.resolve(), root.resolve()
    stores = [parent.parent / "blobs" for parent in top.parents if parent.name == "snapshots"]
    if not any(real.is_relative_to(place) for place in (top, *stores)):
        raise BadFile(f"has a link {str(file.relative_to(root))!r} that leaves the directory; name the file itself")


def _inside(name: Any) -> str:
    """A name from a description file, if it stays in its directory."""
    if not isinstance(name, str) or Path(name).name != name or name in (".", ".."):
        raise BadFile(f"describes a part {name!r}, which is no plain name inside the directory")
    return name


def _listed(path: Path, key: str) -> list[Any]:
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, OSError, RecursionError) as problem:
        raise BadFile(f"has a damaged {path.name} ({_line(problem)})") from None
    listed = content.get(key) if isinstance(content, dict) else None
    if not isinstance(listed, list) or not listed:
        raise BadFile(f"has a damaged {path.name}: it lists no {key!r}")
    return listed


def _saved(path: Path, name: str) -> list[Shard]:
    """The Arrow files of a saved data set."""
    shards = []
    for entry in _listed(path / "state.json", "_data_files"):
        file = _inside(entry.get("filename") if isinstance(entry, dict) else None)
        _refuse_foreign(path / file, path)
        shards.append(Shard(f"{name}/{file}" if name else file, partial(_file_rows, path / file, _arrow)))
    return shards


def _file_rows(path: Path, read: Callable[[Handle], Iterator[Row]]) -> Iterator[Row]:
    """The rows of a file; whatever stops the reading becomes a `BadFile` with the row that was being read."""
    done = 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as handle:
            if not path.stat().st_size:
                raise BadFile("is empty; name a file with at least one row")
            for row in read(handle):
                yield row
                done += 1
    except BadFile:
        raise
    except (EOFError, gzip.BadGzipFile, zlib.error) as problem:
        raise BadFile(f"is not a whole gzip file ({_line(problem)})", done + 1 if done else None) from None
    except UnicodeDecodeError as problem:
        raise BadFile(f"is not UTF-8 ({problem.reason}); save it as UTF-8", done + 1) from None
    except (pa.ArrowException, OSError) as problem:
        ending = _ending(path)[1:]
        raise BadFile(f"is not readable as {ending} ({_line(problem)})", done + 1 if done else None) from None


def _line(problem: BaseException) -> str:
    """An exception's message in one short line."""
    return " ".join(str(problem).split())[:160] or type(problem).__name__


# JSON ------------------------------------------------------------------------------------------------------------


def _object(pairs: list[tuple[str, Any]]) -> Row:
    row = dict(pairs)
    if len(row) != len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise BadFile(f"has the key {repeated[:60]!r} twice")
    return row


DECODER = json.JSONDecoder(object_pairs_hook=_object)


def _checked(value: Any, text: str, row: int) -> Row:
    """A decoded row, if it is an object of valid text that is not nested too deeply; `text` is its JSON."""
    if not isinstance(value, dict):
        raise BadFile(f'is {_kind(value)}, not an object such as {{"prompt": ...}}', row)
    if SURROGATE.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise BadFile(r"holds half of a surrogate pair (\ud800 to \udfff), which is no text", row) from None
    if text.count("[") + text.count("{") > DEPTH and _too_deep(value):
        raise BadFile(f"is nested more than {DEPTH} levels deep", row)
    return value


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    kinds: Mapping[type, str] = {
        list: "a list", str: "a text", bool: "true or false", int: "a number", float: "a number"
    }  # fmt: skip
    return kinds[type(value)]


def _too_deep(value: Any) -> bool:
    level: list[Any] = [value]
    for _ in range(DEPTH):
        level = [
            item
            for container in level
            for item in (container.values() if isinstance(container, dict) else container)
            if isinstance(item, dict | list)
        ]
        if not level:
            return False
    return True


def _decoded(text: str, row: int, line: int) -> Any:
    where = "" if row == line else f" (line {line})"
    try:
        return DECODER.decode(text)
    except json.JSONDecodeError as problem:
        raise BadFile(f"is not JSON: {problem.msg} at character {problem.pos + 1}{where}", row) from None
    except RecursionError:
        raise BadFile(f"is nested more than {DEPTH} levels deep{where}", row) from None
    except BadFile as problem:
        raise BadFile(f"{problem.problem}{where}", row) from None
    except ValueError as problem:  # an integer of more digits than Python reads
        raise BadFile(f"holds a number that cannot be read ({_line(problem)}){where}", row) from None


def _jsonl(handle: Handle) -> Iterator[Row]:
    """One object a line; blank lines are not rows."""
    row = 0
    for line, raw in enumerate(handle, 1):
        if line == 1:
            _refuse_wide(raw)
        if not raw.strip(b" \t\r\n\xef\xbb\xbf"):
            continue
        row += 1
        text = raw.decode("utf-8-sig" if line == 1 else "utf-8")
        yield _checked(_decoded(text, row, line), text, row)


def _refuse_wide(start: bytes) -> None:
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise BadFile("is UTF-16 or UTF-32, not UTF-8; save it as UTF-8")


class _Scanner:
    """The JSON values of a text file one after another; only a part of the file is in memory."""

    def __init__(self, file: io.TextIOBase) -> None:
        self._file, self._buffer, self._at, self._block = file, "", 0, BLOCK

    def next_character(self) -> str:
        """The next character that is no space, without taking it; empty at the end."""
        while True:
            space = SPACE.match(self._buffer, self._at)
            assert space is not None
            self._at = space.end()
            if self._at < len(self._buffer):
                return self._buffer[self._at]
            if not self._read_more():
                return ""

    def skip(self) -> None:
        """Take the character that `next_character` gave."""
        self._at += 1

    def value(self, row: int) -> Row:
        """Take an object."""
        while True:
            try:
                value, end = DECODER.raw_decode(self._buffer, self._at)
            except json.JSONDecodeError as problem:
                # An error near the end of the buffer may only mean that the rest of the value is not read yet.
                cut = problem.msg.startswith("Unterminated string") or problem.pos > len(self._buffer) - 32
                if cut and self._read_more():
                    continue
                raise BadFile(f"is not JSON: {problem.msg}", row) from None
            except RecursionError:
                raise BadFile(f"is nested more than {DEPTH} levels deep", row) from None
            except BadFile as problem:
                raise BadFile(problem.problem, row) from None
            except ValueError as problem:
                raise BadFile(f"holds a number that cannot be read ({_line(problem)})", row) from None
            text, self._at, self._block = self._buffer[self._at : end], end, BLOCK
            return _checked(value, text, row)

    def _read_more(self) -> bool:
        """Read on, twice as much each time until a value is whole."""
        new = self._file.read(self._block)
        self._buffer, self._at, self._block = self._buffer[self._at :] + new, 0, 2 * self._block
        return bool(new)


def _json(handle: Handle) -> Iterator[Row]:
    """A list of objects, or objects one after another."""
    start = handle.read(2)
    handle.seek(0)
    _refuse_wide(start)
    with io.TextIOWrapper(handle, "utf-8-sig") as file:
        yield from _scanned(_Scanner(file))


def _scanned(scanner: _Scanner) -> Iterator[Row]:
    row = 0
    first = scanner.next_character()
    if first == "{":
        while scanner.next_character():
            row += 1
            yield scanner.value(row)
        return
    if first != "[":
        raise BadFile("holds no list of objects; a .json file is [{...}, {...}], or objects one after another")
    scanner.skip()
    if scanner.next_character() == "]":
        scanner.skip()
    else:
        following = ","
        while following == ",":
            row += 1
            scanner.next_character()
            yield scanner.value(row)
            following = scanner.next_character()
            if following not in (",", "]"):
                raise BadFile(
                    f"is not JSON after this row: {following!r} instead of , or ]"
                    if following
                    else "ends after this row without the closing ]",
                    row,
                )
            scanner.skip()
    if scanner.next_character():
        raise BadFile("has something after the closing ] of its list")


# CSV, Parquet, Arrow ---------------------------------------------------------------------------------------------


def _csv(handle: Handle) -> Iterator[Row]:
    """A header, then rows; every field is the text that was written."""
    start = handle.read(2)
    handle.seek(0)
    _refuse_wide(start)
    with io.TextIOWrapper(handle, "utf-8-sig", newline="") as file:
        yield from _csv_rows(file)


def _csv_rows(file: io.TextIOBase) -> Iterator[Row]:
    csv.field_size_limit(sys.maxsize)
    lines = csv.reader(file, strict=True)
    row = 0
    try:
        names = next((line for line in lines if line), [])
        _check_header(names)
        for fields in lines:
            if not fields:
                continue
            row += 1
            if len(fields) != len(names):
                raise BadFile(
                    f"has {len(fields)} fields, but the header has {len(names)}; a comma or a quote is missing or too "
                    "many",
                    row,
                )
            yield dict(zip(names, fields, strict=True))
    except csv.Error as problem:
        raise BadFile(f"is not CSV ({problem})", row + 1) from None


def _check_header(names: list[str]) -> None:
    _refuse_repeated(names)
    delimiter = next((sign for sign in ";\t|" if len(names) == 1 and sign in names[0]), None)
    if delimiter:
        raise BadFile(f"has {delimiter!r} between its columns; save it with commas")


def _refuse_repeated(names: list[str]) -> None:
    if len(set(names)) != len(names):
        repeated = next(name for name in names if names.count(name) > 1)
        raise BadFile(f"has the column {repeated[:60]!r} twice")


def _parquet(handle: Handle) -> Iterator[Row]:
    file = parquet.ParquetFile(handle, pre_buffer=False)
    _refuse_repeated(file.schema_arrow.names)
    yield from _batches(file.iter_batches(BATCH))


def _arrow(handle: Handle) -> Iterator[Row]:
    yield from _batches(pa.ipc.open_stream(handle))


def _batches(batches: Iterable[Any]) -> Iterator[Row]:
    """Rows of Arrow batches, validated before a value is read: offsets in a damaged batch may point anywhere."""
    row = 0
    for batch in batches:
        batch.validate(full=True)
        for start in range(0, len(batch), BATCH):
            part = batch.slice(start, BATCH)
            try:
                rows = part.to_pylist()
            except (ValueError, OverflowError) as problem:
                number = next(n for n in range(len(part)) if not _convertible(part.slice(n, 1)))
                raise BadFile(f"holds a value that cannot be read ({_line(problem)})", row + number + 1) from None
            row += len(rows)
            yield from rows


def _convertible(row: Any) -> bool:
    try:
        row.to_pylist()
    except (ValueError, OverflowError):
        return False
    return True


READERS: Mapping[str, Callable[[Handle], Iterator[Row]]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".parquet": _parquet,
    ".csv": _csv,
}
