"""Rows of local files as they are written: JSON lines, JSON, CSV, Parquet, and what `datasets` saved.

Every value is what the file says: a text is never rewritten because of another row, and a CSV field is always a text.
A file that cannot be read raises `BadFile` with the row, counted from 1. Nothing here opens a file that was not named,
runs code, or uses the network. Memory holds one row of a text file, or one batch of a Parquet file.
"""

import csv
import gzip
import io
import json
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from treeward.errors import UserError

Row = dict[str, Any]
Handle = io.BufferedReader | gzip.GzipFile

BATCH = 1000
"""Rows of a Parquet or Arrow file that are held at a time."""
BLOCK = 1 << 16
"""Characters of a JSON file that are read at a time."""
DEPTH = 64
"""Lists and objects may stand this deep in one another."""

SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
SPACE = re.compile(r"[ \t\n\r]*")
SPLIT = re.compile(r"(?:^|[-._ 0-9/])(train|training|validation|valid|val|dev|test|testing|eval|evaluation)"
                   r"(?=[-._ 0-9/]|$)", re.IGNORECASE)  # fmt: skip
SHARD = re.compile(r"(\w+)-\d{5}-of-\d{5}")
SPLITS = {
    "train": "train", "training": "train", "validation": "validation", "valid": "validation", "val": "validation",
    "dev": "validation", "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
}  # fmt: skip
ABOUT = ("dataset_infos.json", "dataset_info.json", "state.json")
"""JSON files that describe a data set and hold no rows."""


class BadFile(UserError):
    """A file that cannot be read: the problem, and the row (counted from 1) where it lies in one."""

    def __init__(self, problem: str, row: int | None = None) -> None:
        super().__init__(problem, row)
        self.problem = problem
        self.row = row


@dataclass(frozen=True)
class Piece:
    """Rows that are read anew on each pass; `name` is the file's name inside a directory, empty for a single file."""

    name: str
    read: Callable[[], Iterable[Row]]


def piece(path: Path, name: str = "") -> Piece:
    """The rows of one file, by its ending.

    Raises:
        BadFile: the ending is unknown.
    """
    ending = _ending(path)
    if ending not in READERS:
        raise BadFile(f"ends in {path.suffix!r}; jsonl, jsonl.gz, json, parquet and csv are read")
    return Piece(name, partial(_rows, path, READERS[ending]))


def directory(path: Path) -> dict[str, list[Piece]]:
    """The parts of a directory: what `datasets` saved there, or its data files by the split that their names say.

    Only files that lie inside the directory are read; its README and other descriptions are not.

    Raises:
        BadFile: nothing or too much is there, or a file points outside the directory.
    """
    if (path / "dataset_dict.json").is_file():
        names = _described(path / "dataset_dict.json", "splits")
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
        shown = " and ".join(repr(str(file.relative_to(path))) for file in list(kinds.values())[:2])
        raise BadFile(f"is a directory with files of several kinds ({shown}); name one file")
    splits = {file: _split(file.relative_to(path)) for file in files}
    unnamed = [file for file, split in splits.items() if split is None]
    if unnamed and len(unnamed) < len(files):
        raise BadFile(f"is a directory whose files name splits, but {str(unnamed[0].relative_to(path))!r} names none; "
                      "name one file, or give it a split's name")  # fmt: skip
    parts: dict[str, list[Piece]] = {}
    order = ("train", "validation", "test")
    for file, split in sorted(splits.items(), key=lambda item: order.index(item[1]) if item[1] in order else 3):
        parts.setdefault(split or "train", []).append(piece(file, str(file.relative_to(path))))
    return parts


def _ending(path: Path) -> str:
    return (path.with_suffix("") if path.suffix == ".gz" else path).suffix


def _is_data(path: Path) -> bool:
    hidden = any(part.startswith((".", "__")) for part in path.parts)
    return _ending(path) in READERS and not hidden and path.name not in ABOUT


def _split(path: Path) -> str | None:
    """The split that a file's name says, else that of its folders, the nearest first."""
    shard = SHARD.match(path.name)
    if shard:
        return SPLITS.get(shard[1].lower(), shard[1])
    for part in reversed(path.parts):
        if said := SPLIT.search(part):
            return SPLITS[said[1].lower()]
    return None


def _refuse_foreign(file: Path, root: Path) -> None:
    """A link may point into the directory, or into the store of a hub cache that the directory is a part of."""
    real, top = file.resolve(), root.resolve()
    stores = [parent.parent / "blobs" for parent in top.parents if parent.name == "snapshots"]
    if not any(real.is_relative_to(place) for place in (top, *stores)):
        raise BadFile(f"has a link {str(file.relative_to(root))!r} that leaves the directory; name the file itself")


def _inside(name: Any) -> str:
    """A name that a description gives, if it stays in its directory."""
    if not isinstance(name, str) or Path(name).name != name or name in (".", ".."):
        raise BadFile(f"describes a part {name!r}, which is no plain name inside the directory")
    return name


def _described(path: Path, key: str) -> list[Any]:
    try:
        said = json.loads(path.read_bytes())
    except (ValueError, OSError, RecursionError) as problem:
        raise BadFile(f"has a damaged {path.name} ({_line(problem)})") from None
    listed = said.get(key) if isinstance(said, dict) else None
    if not isinstance(listed, list) or not listed:
        raise BadFile(f"has a damaged {path.name}: it lists no {key!r}")
    return listed


def _saved(path: Path, name: str) -> list[Piece]:
    """The Arrow files of a saved data set."""
    found = []
    for each in _described(path / "state.json", "_data_files"):
        file = _inside(each.get("filename") if isinstance(each, dict) else None)
        _refuse_foreign(path / file, path)
        found.append(Piece(f"{name}/{file}" if name else file, partial(_rows, path / file, _arrow)))
    return found


def _rows(path: Path, read: Callable[[Handle], Iterator[Row]]) -> Iterator[Row]:
    """The rows of a file; whatever stops the reading is told as `BadFile` with the row that was being read."""
    done = 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as handle:
            if not path.stat().st_size:
                raise BadFile("is empty")
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
    """What a problem says, in one short line."""
    said = " ".join(str(problem).split())
    return said[:160] or type(problem).__name__


def _object(pairs: list[tuple[str, Any]]) -> Row:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise BadFile(f"has the key {twice[:60]!r} twice")
    return found


DECODER = json.JSONDecoder(object_pairs_hook=_object)


def _checked(value: Any, text: str, row: int) -> Row:
    """A decoded row, if it is an object of sound text that is not nested too deeply; `text` is what it was made of."""
    if not isinstance(value, dict):
        raise BadFile(f'is {_named(value)}, not an object such as {{"prompt": ...}}', row)
    if SURROGATE.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise BadFile(r"holds half of a surrogate pair (\ud800 to \udfff), which is no text", row) from None
    if text.count("[") + text.count("{") > DEPTH and _too_deep(value):
        raise BadFile(f"is nested more than {DEPTH} levels deep", row)
    return value


def _named(value: Any) -> str:
    if value is None:
        return "null"
    kinds: Mapping[type, str] = {list: "a list", str: "a text", bool: "true or false", int: "a number",
                                 float: "a number"}  # fmt: skip
    return kinds[type(value)]


def _too_deep(value: Any) -> bool:
    level: list[Any] = [value]
    for _ in range(DEPTH):
        level = [item for each in level for item in (each.values() if isinstance(each, dict) else each)
                 if isinstance(item, dict | list)]  # fmt: skip
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
    """JSON values of a text file one after another, of which a part is held at a time."""

    def __init__(self, text: io.TextIOBase) -> None:
        self._text, self._held, self._at, self._block = text, "", 0, BLOCK

    def next_sign(self) -> str:
        """The next character that is no space, without taking it; empty at the end."""
        while True:
            space = SPACE.match(self._held, self._at)
            assert space is not None
            self._at = space.end()
            if self._at < len(self._held):
                return self._held[self._at]
            if not self._more():
                return ""

    def skip(self) -> None:
        """Take the character that `next_sign` gave."""
        self._at += 1

    def value(self, row: int) -> Row:
        """Take an object."""
        while True:
            try:
                value, end = DECODER.raw_decode(self._held, self._at)
            except json.JSONDecodeError as problem:
                # Where the text held so far merely ends too early, more of it decides.
                cut = problem.msg.startswith("Unterminated string") or problem.pos > len(self._held) - 32
                if cut and self._more():
                    continue
                raise BadFile(f"is not JSON: {problem.msg}", row) from None
            except RecursionError:
                raise BadFile(f"is nested more than {DEPTH} levels deep", row) from None
            except BadFile as problem:
                raise BadFile(problem.problem, row) from None
            except ValueError as problem:
                raise BadFile(f"holds a number that cannot be read ({_line(problem)})", row) from None
            text, self._at, self._block = self._held[self._at : end], end, BLOCK
            return _checked(value, text, row)

    def _more(self) -> bool:
        """Read on, twice as much each time that a value is still not whole."""
        new = self._text.read(self._block)
        self._held, self._at, self._block = self._held[self._at :] + new, 0, 2 * self._block
        return bool(new)


def _json(handle: Handle) -> Iterator[Row]:
    """A list of objects, or objects one after another."""
    start = handle.read(2)
    handle.seek(0)
    _refuse_wide(start)
    with io.TextIOWrapper(handle, "utf-8-sig") as text:
        yield from _scanned(_Scanner(text))


def _scanned(scanner: _Scanner) -> Iterator[Row]:
    row = 0
    sign = scanner.next_sign()
    if sign == "{":
        while scanner.next_sign():
            row += 1
            yield scanner.value(row)
        return
    if sign != "[":
        raise BadFile("holds no list of objects; a .json file is [{...}, {...}], or objects one after another")
    scanner.skip()
    if scanner.next_sign() == "]":
        scanner.skip()
    else:
        following = ","
        while following == ",":
            row += 1
            scanner.next_sign()
            yield scanner.value(row)
            following = scanner.next_sign()
            if following not in (",", "]"):
                raise BadFile(f"is not JSON after this row: {following!r} where , or ] belongs" if following else
                              "ends after this row without the closing ]", row)  # fmt: skip
            scanner.skip()
    if scanner.next_sign():
        raise BadFile("has something after the closing ] of its list")


def _csv(handle: Handle) -> Iterator[Row]:
    """A header, then rows; every field is the text that was written."""
    start = handle.read(2)
    handle.seek(0)
    _refuse_wide(start)
    with io.TextIOWrapper(handle, "utf-8-sig", newline="") as text:
        yield from _csv_rows(text)


def _csv_rows(text: io.TextIOBase) -> Iterator[Row]:
    csv.field_size_limit(sys.maxsize)
    lines = csv.reader(text, strict=True)
    row = 0
    try:
        names = next((line for line in lines if line), [])
        _check_header(names)
        for fields in lines:
            if not fields:
                continue
            row += 1
            if len(fields) != len(names):
                raise BadFile(f"has {len(fields)} fields, but the header has {len(names)}; a comma or a quote is "
                              "missing or too many", row)  # fmt: skip
            yield dict(zip(names, fields, strict=True))
    except csv.Error as problem:
        raise BadFile(f"is not CSV ({problem})", row + 1) from None


def _check_header(names: list[str]) -> None:
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise BadFile(f"has the column {twice[:60]!r} twice")
    other = next((sign for sign in ";\t|" if len(names) == 1 and sign in names[0]), None)
    if other:
        raise BadFile(f"has {other!r} between its columns; save it with commas")


def _parquet(handle: Handle) -> Iterator[Row]:
    file = parquet.ParquetFile(handle, pre_buffer=False)
    names = file.schema_arrow.names
    if len(set(names)) != len(names):
        raise BadFile(f"has the column {next(name for name in names if names.count(name) > 1)[:60]!r} twice")
    yield from _batches(file.iter_batches(BATCH))


def _arrow(handle: Handle) -> Iterator[Row]:
    yield from _batches(pa.ipc.open_stream(handle))


def _batches(batches: Iterable[Any]) -> Iterator[Row]:
    """Rows of Arrow batches, which are checked before a value is read: a damaged one may point anywhere."""
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
    ".jsonl": _jsonl, ".json": _json, ".parquet": _parquet, ".csv": _csv,
}  # fmt: skip
