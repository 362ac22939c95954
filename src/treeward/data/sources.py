"""Rows from anywhere: a file, a directory of files, a saved data set, a hub id, or the embedded world.

Local files are read by `data.files`. Only a hub id reaches the network. Errors are one line and name the place and the
fix.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

from treeward.data import files, hub, world
from treeward.data.files import BadFile, Piece
from treeward.data.files import Row as Row
from treeward.errors import UserError


class BadRow(UserError):
    """A row that cannot be used: its number counted from 0, and the problem. `Flow.located` says where it stands."""

    def __init__(self, number: int, problem: str) -> None:
        super().__init__(number, problem)
        self.number = number
        self.problem = problem

    def __str__(self) -> str:
        return f"row {self.number + 1}: {self.problem}"


class Flow:
    """Rows that stay where they are: each pass reads them anew."""

    def __init__(
        self, source: str, parts: Mapping[str, Sequence[Piece]], limit: int | None = None, option: str = "data.source"
    ) -> None:
        self._name, self._parts, self._limit = f"{option} {source!r}", parts, limit
        self._rows: int | None = None

    def __len__(self) -> int:
        """The number of rows; the first call reads them all."""
        if self._rows is None:
            self._rows = sum(1 for _ in self)
        return self._rows

    def __contains__(self, row: object) -> bool:
        return any(row == each for each in self)

    def __iter__(self) -> Iterator[Row]:
        return islice(self._all(), self._limit)

    def _all(self) -> Iterator[Row]:
        single = len(self._parts) == 1
        for name, pieces in self._parts.items():
            for piece in pieces:
                try:
                    yield from piece.read() if single else ({"split": name, **row} for row in piece.read())
                except BadFile as problem:
                    raise UserError(f"{self._place(piece, problem.row)} {problem.problem}") from None

    def _place(self, piece: Piece, row: int | None) -> str:
        return f"{self._name}{f', {piece.name!r}' if piece.name else ''}{f', row {row}' if row else ''}"

    @contextmanager
    def located(self) -> Iterator[None]:
        """Tells a `BadRow` of these rows as an error that names the file and the row in it, counted from 1."""
        try:
            yield
        except BadRow as problem:
            left = problem.number
            for piece in (piece for pieces in self._parts.values() for piece in pieces):
                rows = sum(1 for _ in islice(piece.read(), left + 1))
                if rows > left:
                    raise UserError(f"{self._place(piece, left + 1)}: {problem.problem}") from None
                left -= rows
            raise


def flow(
    source: str, split: str | None = None, limit: int | None = None, seed: int = 0, option: str = "data.source"
) -> Flow:
    """The rows of `source`, each with a `split` key where the source has several splits.

    `source` is "world", "world-texts" or "world-graded" (the embedded world; "world:20000" for that many rows), a path
    (jsonl, json, parquet, csv, each also as .gz, a directory that `datasets` saved or that holds such files), or a hub
    id, which alone reaches the network. `option` is what the user set, for messages.

    Raises:
        UserError: the source does not exist, cannot be read, has no such split or has no rows.
    """
    make = world.source(source)
    if make and split is not None:
        raise UserError(f"data.split {split!r} is not in {source!r}, which has no splits; add --data.split null")
    if make:
        made = make(seed)
        return Flow(source, {"train": [Piece("", lambda: made)]}, limit, option)
    rows = Flow(source, _chosen(_parts(source, option), source, split), limit, option)
    if next(iter(rows), None) is None:
        raise UserError(f"{option} {source!r} has no rows")
    return rows


def rows(source: str, split: str | None = None, limit: int | None = None, seed: int = 0) -> list[Row]:
    """`flow`, read into memory."""
    return list(flow(source, split, limit, seed))


def _parts(source: str, option: str) -> Mapping[str, Sequence[Piece]]:
    """The pieces of a source by split; those of a single file are its "train"."""
    path = Path(source).expanduser()
    try:
        if path.is_dir():
            return files.directory(path)
        if path.is_file():
            return {"train": [files.piece(path)]}
    except BadFile as problem:
        raise UserError(f"{option} {source!r} {problem.problem}") from None
    if path.exists():
        raise UserError(f"{option} {source!r} is neither a file nor a directory")
    if not hub.is_id(source) or source.count("/") != 1 or set(path.suffixes) & set(files.READERS):
        raise UserError(f"{option} {source!r} does not exist")
    return hub.pieces(source, option)


def _chosen(parts: Mapping[str, Sequence[Piece]], source: str, split: str | None) -> Mapping[str, Sequence[Piece]]:
    if split is None:
        return parts
    if split not in parts:
        raise UserError(
            f"data.split {split!r} is not in {source!r}; it has {', '.join(sorted(parts))}: name one of them, or read "
            "everything with --data.split null"
        )
    return {split: parts[split]}
