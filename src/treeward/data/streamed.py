"""Prepared data straight to disk: rows in chunks, rendered by worker processes, written as they come.

Memory holds a few chunks for each process, and with exact shares one number a row. Where rows do not stand alone
(labelled texts, single ratings of one prompt) all of them are prepared in memory, in this process.
"""

import multiprocessing
import os
from array import array
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from itertools import count, islice
from pathlib import Path

from treeward.data import formats, sources, store
from treeward.data.prepare import DataConfig, Prepared, Reading, Rows, lost, prepare, rendered, source_rows
from treeward.data.render import Account
from treeward.data.shapes import Purpose
from treeward.data.splits import PARTS, Edges, Part, edges, unit
from treeward.errors import UserError
from treeward.trees.tokens import Tokenizer

CHUNK = 512
"""Rows a worker renders at a time."""
WAITING = 2
"""Chunks a process that are handed out or wait to be written."""

Chunk = tuple[int, tuple[sources.Row, ...]]


@dataclass
class Total:
    """What was made so far, as `store` keeps it beside the trees."""

    account: Account
    format: str
    best_accuracy: float | None = None


@dataclass
class Rendered:
    """One chunk's lines by part, and what became of its rows."""

    lines: dict[Part, list[str]]
    account: Account
    best_accuracy: float | None
    chats: bool


@dataclass(frozen=True)
class Renderer:
    """Rows to lines; what a worker is given."""

    reading: Reading
    tokenizer: Tokenizer = field(repr=False)

    def __call__(self, chunk: Chunk) -> Rendered:
        first, rows = chunk
        found = rendered(rows, self.reading, self.tokenizer, first)
        written = {part: list(store.lines(found, part)) for part in PARTS}
        return Rendered(written, found.account, found.best_accuracy, store.chats(found.texts))


def prepare_to(path: Path, config: DataConfig, tokenizer: Tokenizer, purpose: Purpose, processes: int = 1) -> Account:
    """`prepare` into the new directory `path`, which `data.source` reads back; returns the account.

    Raises:
        UserError: as `prepare`, the directory exists, or `processes` is not positive.
    """
    if processes < 1:
        raise UserError(f"processes is {processes}; it must be at least 1")
    rows = source_rows(config)
    reading = Reading.of(rows, config, purpose)
    with rows.located(), store.writing(path) as writer:
        total: Total | Prepared
        if reading.alone:
            total = _streamed(rows, replace(reading, ends=ends_of(rows, reading)), tokenizer, processes, writer)
        else:
            total = prepare(config, tokenizer, purpose)
            for part in PARTS:
                writer.add(part, len(total.parts[part]), store.lines(total, part))
            writer.chats = store.chats(total.texts)
        if not total.account.used:
            raise UserError(f"data.source {config.source!r}: nothing is left of {lost(total.account, config)}")
        writer.close(total, tokenizer, asdict(config), purpose)
    return total.account


def ends_of(rows: Rows, reading: Reading) -> Edges:
    """Where the parts end; exact shares need one pass over the rows for it."""
    config = reading.config
    if config.shares == "expected":
        return edges((), config.validation, config.test)
    places = array("d")
    read = formats.reader(reading.format, reading.purpose, config.turns)
    for raw in rows:
        try:
            row = reading.layout.row(raw)
            trees = read(row)
        except (formats.Dropped, ValueError, KeyError):
            continue
        if reading.part(row) is None:
            places.extend(unit(tree.group, config.seed) for tree in trees)
    return edges(places, config.validation, config.test, config.shares)


def _streamed(
    rows: Iterable[sources.Row], reading: Reading, tokenizer: Tokenizer, processes: int, writer: store.Writer
) -> Total:
    total = Total(Account(), reading.format)
    for done in _done(Renderer(reading, tokenizer), _chunks(rows), processes):
        _add(done, writer, total)
    return total


def _chunks(rows: Iterable[sources.Row]) -> Iterator[Chunk]:
    waiting = iter(rows)
    for first in count(0, CHUNK):
        chunk = tuple(islice(waiting, CHUNK))
        if not chunk:
            return
        yield first, chunk


def _add(done: Rendered, writer: store.Writer, total: Total) -> None:
    for part, written in done.lines.items():
        writer.add(part, len(written), written)
    writer.chats = writer.chats or done.chats
    account, more = total.account, done.account
    if done.best_accuracy is not None:
        before = (total.best_accuracy or 0.0) * account.rows
        total.best_accuracy = (before + done.best_accuracy * more.rows) / (account.rows + more.rows)
    for name in ("rows", "used", "responses", "ended"):
        setattr(account, name, getattr(account, name) + getattr(more, name))
    account.dropped += more.dropped
    account.cut += more.cut
    account.columns += more.columns
    account.response_lengths += more.response_lengths
    account.made, account.layout, account.unread = more.made, more.layout, more.unread


def _done(renderer: Renderer, chunks: Iterator[Chunk], processes: int) -> Iterator[Rendered]:
    """The chunks rendered, in order; no more of them are read than the processes can hold."""
    if processes == 1:
        yield from map(renderer, chunks)
        return
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, fresh, _begin, (renderer,)) as pool:
        waiting: deque[Future[Rendered]] = deque()
        for chunk in chunks:
            waiting.append(pool.submit(_work, chunk))
            if len(waiting) > WAITING * processes:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


_worker: list[Renderer] = []


def _begin(renderer: Renderer) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _worker[:] = [renderer]


def _work(chunk: Chunk) -> Rendered:
    return _worker[0](chunk)
