"""From a source to trees: read, format, split by group, pair, render, drop and count.

`prepare` gives token trees in memory, `prepare_to` writes them to disk as they are made, and `load` gives text trees
without a tokenizer. All of them read rows with `read_trees`, as `data.inspect` does.
"""

import logging
import multiprocessing
import os
from array import array
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from itertools import count, islice
from pathlib import Path
from typing import Literal

from treeward.data import formats, sources, store
from treeward.data.account import Account
from treeward.data.columns import SAMPLE, Layout, Names, as_word, layout
from treeward.data.formats import PREFERENCE_PURPOSES, TIED, UNITS, UNRANKED, Purpose, for_purpose, pair_labelled
from treeward.data.render import token_trees
from treeward.data.sources import BadRow, Row, Rows
from treeward.data.splits import PARTS, Edges, Part, Shares, edges, named, part_at, unit
from treeward.data.store import Placed, Prepared
from treeward.errors import UserError
from treeward.trees.text import Tree
from treeward.trees.tokens import Tokenizer, TokenTree

log = logging.getLogger(__name__)

UNPAIRED = "text without a partner of the other label"
IDENTICAL = "identical after truncation"
"""Trees dropped because fewer than two responses differ, and responses cut because a better one has the same ids."""
REPEATED = "response that stands in its ranking twice"
"""Responses cut because a better one has the same text."""
LEAKED = "training example whose group is held out too"
"""Trees dropped with `data.leaks drop`."""
NO_FAULT = (UNPAIRED, TIED, UNRANKED, LEAKED)
"""Reasons for dropping that are no fault of the data: ties, texts without a partner, leaks that the user drops."""
COMPARED = ("pairs", "ranked", "unpaired")
"""The purposes for which two responses with the same ids carry no information."""

CHUNK = 512
"""Rows that a worker of `prepare_to` renders at a time."""
WAITING = 2
"""Chunks for each process that are being rendered or wait to be written."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the data is, how it is read, split and cut."""

    source: str = "world"
    """A file (jsonl, jsonl.gz, json, parquet, csv), a directory (also one of `inspect --save`), a hub id, or `world`
    / `world-texts` (embedded)."""
    format: str = "auto"
    """preference, compared, transcripts, graded, answers, helpsteer, messages, completion, labelled, text, prompts;
    auto infers it from the columns."""
    split: str | None = None
    """Read one split of the source (by its files or its `split` column) and split its rows again; null keeps the
    source's own splits."""
    splits: Literal["given", "ignore"] = "given"
    """given: a row that names its split stays in it; ignore: split all rows again."""
    leaks: Literal["refuse", "drop"] = "refuse"
    """Where a group is both in training and held out: refuse the data, or drop its training examples."""
    columns: dict[str, str | list[str]] = field(default_factory=dict)
    """Which column is what, {ours: theirs}: {prompt: instruction}; {winner: label} for two outputs; {prompt:
    [instruction, input]} joins two; {subset: category} reports each category apart."""
    winner: dict[str | int | float | bool, str | int] = field(default_factory=dict)
    """What the winner's values mean: {value: 1}, 2 or tie, such as {a: 1, b: 2, c: tie}; by default inferred."""
    ignore: tuple[str, ...] = ()
    """Columns to leave out of everything, such as [label]."""
    keep: tuple[str, ...] = ()
    """Columns that scorers see in each response's row, even where they are also read; their meaning is never inferred.
    Columns that nothing else reads are always in the row."""
    limit: int | None = None
    """Read only the first rows, this many."""
    turns: Literal["last", "all"] = "last"
    """In sft on dialogues: train on the last assistant turn, or on each."""
    validation: float = 0.1
    """Share of the groups on which the best step is chosen; of rows that name no split."""
    test: float = 0.1
    """Share of the groups on which before and after are measured; of rows that name no split. With 0, half of the
    validation groups serve, and the other half chooses the best step."""
    shares: Shares = "expected"
    """expected: assign each group by hash, so adding rows never moves existing ones. exact: match the requested sizes
    as closely as possible without splitting a group."""
    max_prompt: int = 512
    """Longest prompt in tokens; a longer one is cut on the left."""
    max_response: int = 512
    """Longest response in tokens, end token included; a longer one is cut on the right and gets no end token."""
    seed: int = 0
    """Seed of the splits, of the pairing of labelled texts and of the embedded world."""

    def __post_init__(self) -> None:
        if self.validation < 0 or self.test < 0 or self.validation + self.test >= 1:
            raise UserError(f"data.validation {self.validation} and data.test {self.test}: their sum must be below 1")
        for name in ("max_prompt", "max_response"):
            if getattr(self, name) < 1:
                raise UserError(f"data.{name} is {getattr(self, name)}; it must be at least 1")
        if self.limit is not None and self.limit < 1:
            raise UserError(f"data.limit is {self.limit}; it must be at least 1")
        sides = {"1": 1, "2": 2, "0": 0, "tie": 0}
        for value, side in self.winner.items():
            if str(side) not in sides:
                raise UserError(f"data.winner says {value!r} means {side!r}; it means 1, 2 or tie")
        object.__setattr__(self, "winner", {as_word(value): sides[str(side)] for value, side in self.winner.items()})

    @property
    def keeps_splits(self) -> bool:
        """Whether a row stays in the split that it names."""
        return self.splits == "given" and self.split is None


def source_rows(config: DataConfig) -> Rows:
    """The rows of `config.source`; of a file whose `split` column names several splits, those of `config.split`.

    Raises:
        UserError: the source cannot be read, or has no such split.
    """
    column = config.columns.get("split", "split")
    if config.split is not None and isinstance(column, str) and Path(config.source).is_file():
        rows = sources.open_source(config.source, None, None, config.seed)
        if column in next(iter(rows)):
            return sources.SplitRows(rows, column, config.split, config.limit)
    return sources.open_source(config.source, config.split, config.limit, config.seed)


# Reading rows ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reading:
    """How rows become trees: the configuration, the meaning of their columns, the purpose.

    `ends` are the edges of the parts, where they are computed before the rows are read in chunks.
    """

    config: DataConfig
    layout: Layout
    purpose: Purpose
    ends: Edges | None = None

    @classmethod
    def of(cls, rows: Rows | Sequence[Row], config: DataConfig, purpose: Purpose) -> "Reading":
        """The reading of these rows; their columns are inferred from the first of them.

        Raises:
            NoFormat: the columns fit no format.
            UserError: a named column does not exist, or one looks like a winner or a split and is not read.
        """
        sample = list(islice(rows, SAMPLE))
        winner = {str(value): int(side) for value, side in config.winner.items()}
        try:
            columns = layout(
                sample, purpose, format=config.format, columns=config.columns, ignore=config.ignore, keep=config.keep,
                winner=winner, given_splits=config.keeps_splits,
            )  # fmt: skip
        except UserError as problem:
            raise type(problem)(f"data.source {config.source!r}: {problem}") from None
        return cls(config, columns, purpose)

    @property
    def format(self) -> str:
        """The format's name."""
        return self.layout.format

    @property
    def pairs_texts(self) -> bool:
        """Whether labelled texts are paired: positive against negative."""
        return self.format == "text" and self.purpose in ("pairs", "ranked")

    @property
    def joined(self) -> bool:
        """Whether rows are joined: labelled texts are paired, and single ratings of one prompt become one tree."""
        rated = self.format in ("graded", "helpsteer", "answers") and self.purpose in PREFERENCE_PURPOSES
        return self.pairs_texts or rated

    @property
    def alone(self) -> bool:
        """Whether each row gives its trees by itself: none is joined or dropped because of another row."""
        return not self.joined and self.config.leaks == "refuse"

    def place(self, number: int) -> str:
        """The source and the number of a row, counted from 1."""
        split = f", split {self.config.split}" if self.config.split else ""
        return f"{self.config.source}{split}, row {number}"

    def part(self, row: Row) -> Part | None:
        """The part that a row names.

        Raises:
            UserError: the name is unknown.
        """
        return named(row["split"]) if self.config.keeps_splits and row.get("split") else None

    def trees(self, row: Row, read: formats.Reader) -> list[Tree]:
        """The trees of a row in our columns.

        Raises:
            Dropped: it has none.
            UserError: it cannot be understood, or its ratings have other names than the first row's.
        """
        trees = read(row)
        if self.format == "graded":
            for tree in trees:
                formats.check_rating_names(tree.attributes, self.layout.attributes)
        return trees

    def account(self, rows: int) -> Account:
        """An account for this many rows, without losses yet."""
        made = "pairs of a positive and a negative text" if self.pairs_texts else UNITS[self.purpose]
        return Account(rows=rows, made=made, layout=self.layout.description, unread=list(self.layout.unread))


@dataclass(frozen=True)
class ReadRow:
    """A row of a source and the trees made of it.

    `row` has our columns beside the source's; it is None where that failed. `part` is the one that the row names.
    `fault` is why there are no trees: the row was dropped, or it cannot be understood.
    """

    number: int
    raw: Row
    row: Row | None
    trees: list[Tree] = field(default_factory=list)
    part: Part | None = None
    fault: formats.Dropped | UserError | None = None


def read_trees(rows: Iterable[Row], reading: Reading, first: int = 0) -> Iterator[ReadRow]:
    """Every row with its trees; `first` is the number of the first row, from 0.

    Raises:
        BadRow: a row lacks a column that the others have, or names an unknown split.
    """
    read = formats.reader(reading.format, reading.purpose, reading.config.turns)
    for number, raw in enumerate(rows, first):
        row: Row | None = None
        try:
            row = reading.layout.row(raw)
            trees = reading.trees(row, read)
        except KeyError as missing:
            raise BadRow(number, f"it has no column {missing}; it has {', '.join(sorted(raw))}") from None
        except (formats.Dropped, UserError) as fault:
            yield ReadRow(number, raw, row, fault=fault)
            continue
        try:
            part = reading.part(row)
        except UserError as problem:
            raise BadRow(number, str(problem)) from None
        yield ReadRow(number, raw, row, trees, part)


def annotated(tree: Tree, row: Row, account: Account) -> Tree:
    """The tree with the row's subset, weight and (of a pair) margin; weights and margins are counted.

    Raises:
        UserError: a weight or margin is not a number.
    """
    subset = row.get("subset")
    weight, margin = (formats.optional(formats.as_number)(row.get(name), name) for name in ("weight", "margin"))
    if subset:
        tree = replace(tree, subset=str(subset))
    if weight is not None and weight != 1:
        account.columns["weight"] += 1
        tree = replace(tree, weight=weight)
    if margin is not None and len(tree.responses) == 2:
        account.columns["margin"] += 1
        tree = replace(tree, margin=margin)
    return tree


def _text_trees(
    rows: Sequence[Row], reading: Reading, account: Account, first: int
) -> tuple[dict[Part, list[Tree]], Placed | None]:
    """The trees of these rows by part, complete with their rows and annotations, before they are joined."""
    trees: list[tuple[Part | None, Tree]] = []
    for read in read_trees(rows, reading, first):
        if isinstance(read.fault, formats.Dropped):
            account.dropped[str(read.fault)] += 1
            continue
        if read.fault is not None or read.row is None:
            raise BadRow(read.number, str(read.fault)) from None
        scorer_row = reading.layout.scorer_row(read.raw) or None
        try:
            annotations = [replace(annotated(tree, read.row, account), row=scorer_row) for tree in read.trees]
        except UserError as problem:
            raise BadRow(read.number, str(problem)) from None
        if read.part is not None:
            account.columns["split"] += 1
        trees += [(read.part, tree) for tree in annotations]
    return _placed(trees, reading)


def _placed(
    trees: Sequence[tuple[Part | None, Tree]], reading: Reading
) -> tuple[dict[Part, list[Tree]], Placed | None]:
    """Trees by part: the one that their row names, else the one of their group; and the groups placed by chance."""
    config = reading.config
    places = {tree.group: unit(tree.group, config.seed) for _, tree in trees}
    free = [places[tree.group] for part, tree in trees if part is None]
    ends = reading.ends or edges(free, config.validation, config.test, config.shares)
    placed = None
    if config.shares == "expected" and free:
        shares: dict[Part, float] = {"test": config.test, "validation": config.validation}
        placed = Placed(Counter(part_at(place, ends) for place in set(free)), shares)
    parts: dict[Part, list[Tree]] = {part: [] for part in PARTS}
    for part, tree in trees:
        parts[part or part_at(places[tree.group], ends)].append(tree)
    return parts, placed


def _handle_leaks(texts: dict[Part, list[Tree]], account: Account, reading: Reading) -> None:
    """Treat groups that are both in training and held out.

    With `data.leaks drop` their training examples are dropped. Texts that are to be paired are counted here, since the
    pairs will have groups of their own; the groups of other trees are seen by check F04.
    """
    held_out = [tree for part in ("validation", "test") for tree in texts[part]]
    groups = {tree.group for tree in texts["train"]} & {tree.group for tree in held_out}
    if not groups:
        return
    clean = [tree for tree in texts["train"] if tree.group not in groups]
    if reading.config.leaks == "drop":
        account.dropped[LEAKED] += len(texts["train"]) - len(clean)
        texts["train"] = clean
    elif reading.pairs_texts:
        account.leaked = Counter({
            "groups": len(groups), "training": len(texts["train"]) - len(clean),
            "held out": sum(tree.group in groups for tree in held_out), "of held out": len(held_out),
        })  # fmt: skip
        account.leaks = sorted(groups)[:3]


# Token trees in memory -------------------------------------------------------------------------------------------


def prepare(config: DataConfig, tokenizer: Tokenizer, purpose: Purpose, attributes: Sequence[str] = ()) -> Prepared:
    """Read `config.source` and render it for a purpose: "pairs" (two branches, chosen first), "ranked" (several, best
    first), "graded" (rated ones), "unpaired" (one with a label, or a pair), "sft" (one) or "prompts" (none).

    `attributes` are the names of the model head's ratings: named ratings are put into that order.

    Raises:
        UserError: the source, a column or a value is wrong, the ratings have other names, or nothing is left to train
            on.
    """
    if store.is_prepared(config.source):
        prepared = store.load(config.source, asdict(config), asdict(DataConfig()), tokenizer, purpose)
        return _with_attributes(prepared, attributes, config)
    source = source_rows(config)
    rows = list(source)
    with source.located():
        prepared = render_rows(rows, Reading.of(rows, config, purpose), tokenizer)
    _require_trees(prepared.account, config)
    return _with_attributes(prepared, attributes, config)


def render_rows(rows: Sequence[Row], reading: Reading, tokenizer: Tokenizer, first: int = 0) -> Prepared:
    """These rows as texts and ids by part, with their account; `first` is the number of the first row, from 0.

    Raises:
        BadRow: a column or a value is wrong.
    """
    config, purpose = reading.config, reading.purpose
    account = reading.account(len(rows))
    texts, placed = _text_trees(rows, reading, account, first)
    _handle_leaks(texts, account, reading)
    if reading.pairs_texts:
        single = sum(map(len, texts.values()))
        texts = {part: pair_labelled(trees, config.seed) for part, trees in texts.items()}
        unpaired = single - 2 * sum(map(len, texts.values()))
        if unpaired:
            account.dropped[UNPAIRED] += unpaired
    elif purpose in PREFERENCE_PURPOSES:
        texts = {part: for_purpose(trees, purpose, account.dropped) for part, trees in texts.items()}
    prepared = Prepared({}, {}, account, reading.format, placed=placed)
    for part in PARTS:
        _render(texts[part], part, prepared, config, tokenizer, purpose)
    best = [row["best_accuracy"] for row in rows if isinstance(row.get("best_accuracy"), float)]
    prepared.best_accuracy = sum(best) / len(best) if best and purpose == "pairs" else None
    account.used = sum(map(len, prepared.parts.values()))
    return prepared


def _render(
    texts: list[Tree], part: Part, prepared: Prepared, config: DataConfig, tokenizer: Tokenizer, purpose: Purpose
) -> None:
    rendered = token_trees(texts, tokenizer, config.max_prompt, config.max_response, prepared.account)
    rows: list[tuple[Tree, TokenTree]] = []
    for tree, tokens in zip(texts, rendered, strict=True):
        if purpose not in COMPARED or len(set(tokens.branches)) == len(tokens.branches):
            rows.append((tree, tokens))
        elif distinct := _distinct(tree, tokens, prepared.account):
            rows.append(distinct)
    prepared.texts[part] = [tree for tree, _ in rows]
    prepared.parts[part] = [tokens for _, tokens in rows]


def _distinct(tree: Tree, tokens: TokenTree, account: Account) -> tuple[Tree, TokenTree] | None:
    """The tree without the responses whose ids a better one has; None where fewer than two are left."""
    first: dict[tuple[int, ...], int] = {}
    for number, ids in enumerate(tokens.branches):
        first.setdefault(ids, number)
    if len(first) < 2:
        account.dropped[IDENTICAL] += 1
        return None
    lost = len(tokens.branches) - len(first)
    repeated = min(lost, len(tree.responses) - len({response.text for response in tree.responses}))
    account.cut += Counter({REPEATED: repeated, IDENTICAL: lost - repeated})
    numbers = list(first.values())
    ratings = tuple(tokens.ratings[n] for n in numbers) if tokens.ratings else ()
    return (
        formats.with_responses(tree, [tree.responses[n] for n in numbers]),
        replace(tokens, branches=tuple(first), ratings=ratings),
    )


def _with_attributes(prepared: Prepared, attributes: Sequence[str], config: DataConfig) -> Prepared:
    """Named ratings in the order of the head's names."""
    if attributes:
        try:
            for part, trees in prepared.parts.items():
                prepared.parts[part] = [tree.with_attributes(attributes) for tree in trees]
        except UserError as problem:
            raise UserError(f"{config.source}, row 1: {problem}") from None
    return prepared


def _require_trees(account: Account, config: DataConfig) -> None:
    """Refuse data of which nothing is left, with the fix where only data.limit is at fault."""
    if account.used:
        return
    one_label = config.limit is not None and account.dropped[UNPAIRED] == account.rows
    fix = f"; the first {config.limit} rows have one label only: raise data.limit, or mix the rows of the file"
    raise UserError(f"data.source {config.source!r}: nothing is left of {account}{fix if one_label else ''}")


def unheld(account: Account, config: DataConfig) -> str:
    """How to fix data of which nothing is held out."""
    rows_with_split = account.columns["split"]
    if rows_with_split:
        return (
            f"the data names the split of {rows_with_split} of {account.rows} rows, none of them validation or test; "
            "split all of them anew with --data.splits ignore, or raise data.limit to reach held-out rows"
        )
    if config.test + config.validation == 0:
        return "data.test and data.validation are 0; set --data.test above 0"
    return (
        f"{account.used} {account.made} are too few for data.test {config.test:g} and data.validation "
        f"{config.validation:g} to hold one out; bring more rows"
    )


# Token trees on disk ---------------------------------------------------------------------------------------------

Chunk = tuple[int, tuple[Row, ...]]
"""The number of the first row, from 0, and the rows."""


@dataclass
class RenderedChunk:
    """The lines of one chunk by part, and what became of its rows."""

    lines: dict[Part, list[str]]
    account: Account
    best_accuracy: float | None
    chats: bool


@dataclass(frozen=True)
class Renderer:
    """Rows to lines; what a worker process gets."""

    reading: Reading
    tokenizer: Tokenizer = field(repr=False)

    def __call__(self, chunk: Chunk) -> RenderedChunk:
        first, rows = chunk
        prepared = render_rows(rows, self.reading, self.tokenizer, first)
        lines = {part: list(store.lines(prepared, part)) for part in PARTS}
        return RenderedChunk(lines, prepared.account, prepared.best_accuracy, store.has_chats(prepared.texts))


def prepare_to(path: Path, config: DataConfig, tokenizer: Tokenizer, purpose: Purpose, processes: int = 1) -> Account:
    """`prepare` into the new directory `path`, which `data.source` reads back; returns the account.

    Rows are read in chunks, rendered by worker processes and written as they are done: memory holds a few chunks for
    each process and, with exact shares, one number a row. Where rows are joined (labelled texts, single ratings of one
    prompt) all of them are prepared in memory, in this process.

    Raises:
        UserError: as `prepare`, the directory exists, or `processes` is not positive.
    """
    if processes < 1:
        raise UserError(f"processes is {processes}; it must be at least 1")
    rows = source_rows(config)
    reading = Reading.of(rows, config, purpose)
    with rows.located(), store.writing(path) as writer:
        if not reading.alone:
            prepared = prepare(config, tokenizer, purpose)
            store.write_all(writer, prepared, tokenizer, asdict(config), purpose)
            return prepared.account
        renderer = Renderer(replace(reading, ends=_ends(rows, reading)), tokenizer)
        account = Account()
        best_accuracy: float | None = None
        for chunk in _rendered_chunks(renderer, _chunks(rows), processes):
            for part, lines in chunk.lines.items():
                writer.add(part, lines)
            writer.chats = writer.chats or chunk.chats
            if chunk.best_accuracy is not None:
                before = (best_accuracy or 0.0) * account.rows
                total = account.rows + chunk.account.rows
                best_accuracy = (before + chunk.best_accuracy * chunk.account.rows) / total
            account.add(chunk.account)
        _require_trees(account, config)
        writer.close(account, reading.format, best_accuracy, tokenizer, asdict(config), purpose)
    return account


def _ends(rows: Rows, reading: Reading) -> Edges:
    """The edges of the parts; exact shares need one pass over the rows for them."""
    config = reading.config
    places = array("d")
    if config.shares == "exact":
        for read in read_trees(rows, reading):
            if read.part is None:
                places.extend(unit(tree.group, config.seed) for tree in read.trees)
    return edges(places, config.validation, config.test, config.shares)


def _chunks(rows: Iterable[Row]) -> Iterator[Chunk]:
    remaining = iter(rows)
    for first in count(0, CHUNK):
        chunk = tuple(islice(remaining, CHUNK))
        if not chunk:
            return
        yield first, chunk


def _rendered_chunks(renderer: Renderer, chunks: Iterator[Chunk], processes: int) -> Iterator[RenderedChunk]:
    """The chunks rendered, in order; no more of them are read than the processes can hold."""
    if processes == 1:
        yield from map(renderer, chunks)
        return
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, spawn, _start_worker, (renderer,)) as pool:
        waiting: deque[Future[RenderedChunk]] = deque()
        for chunk in chunks:
            waiting.append(pool.submit(_render_in_worker, chunk))
            if len(waiting) > WAITING * processes:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


_worker: list[Renderer] = []


def _start_worker(renderer: Renderer) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _worker[:] = [renderer]


def _render_in_worker(chunk: Chunk) -> RenderedChunk:
    return _worker[0](chunk)


# Text trees ------------------------------------------------------------------------------------------------------

LOADED: Mapping[str, Purpose] = {
    "prompts": "prompts", "messages": "sft", "completion": "sft", "labelled": "unpaired", "text": "unpaired",
    "preference": "pairs", "transcripts": "pairs", "compared": "pairs", "graded": "graded", "helpsteer": "graded",
    "answers": "graded",
}  # fmt: skip
"""What `load` makes of each format."""


@dataclass(frozen=True, repr=False)
class Dataset:
    """Text trees by part. No prompt is in two parts, unless the source's own splits put it there.

    `format` is how the rows were read, `columns` are those of each tree's `row`, and `account` counts what was dropped.
    """

    train: list[Tree]
    validation: list[Tree]
    test: list[Tree]
    format: str
    columns: tuple[str, ...]
    account: Account

    def __repr__(self) -> str:
        """One line: how many trees, of what, with which columns, and what was dropped."""
        counts = ", ".join(f"{len(getattr(self, part))} {part}" for part in PARTS)
        columns = f"; row: {', '.join(self.columns)}" if self.columns else ""
        dropped = ", ".join(f"{n} {reason}" for reason, n in sorted(self.account.dropped.items()))
        lost = f"; dropped: {dropped}" if dropped else ""
        return f"Dataset({counts}; {self.account.made}; {self.account.layout}{columns}{lost})"


def load(
    source: str | Path,
    *,
    format: str = "auto",
    columns: Mapping[str, Names] | None = None,
    keep: Sequence[str] = (),
    split: str | None = None,
    validation: float = 0.1,
    test: float = 0.1,
    limit: int | None = None,
    seed: int = 0,
) -> Dataset:
    """Text trees of a file, a directory, a hub id or the embedded world, split by prompt; no tokenizer is needed.

    Pairs have two responses, the chosen one first; rated responses to one prompt are one tree, best first; completions,
    dialogues and texts have one response; prompts have none. A file whose columns fit no format, but which has a
    prompt, is read as prompts.

    Args:
        source: as `data.source`.
        format: as `data.format`; "auto" infers it from the columns.
        columns: which column is what, {ours: theirs}, such as {"prompt": "question"}.
        keep: columns that scorers see in `Tree.row`; their meaning is never inferred. Columns that nothing else reads
            are always in the row.
        split: read one split of the source and split its rows again; None keeps the source's own splits.
        validation: share of the groups in `Dataset.validation`, of rows that name no split.
        test: share of the groups in `Dataset.test`, of rows that name no split.
        limit: read only the first rows, this many.
        seed: of the split and of the embedded world.

    Raises:
        UserError: the source, a column or a value is wrong, or no row gives a tree.
    """
    config = DataConfig(
        source=str(source),
        format=format,
        columns={
            name: list(theirs) if isinstance(theirs, list) else theirs for name, theirs in (columns or {}).items()
        },
        keep=(keep,) if isinstance(keep, str) else tuple(keep),
        split=split,
        validation=validation,
        test=test,
        limit=limit,
        seed=seed,
    )
    if store.is_prepared(config.source):
        raise UserError(f"source {config.source!r} is prepared data; load the source that it was made from")
    source_of_rows = source_rows(config)
    rows = list(source_of_rows)
    with source_of_rows.located():
        reading = _loading(rows, config)
        account = reading.account(len(rows))
        texts, _ = _text_trees(rows, reading, account, 0)
    if reading.purpose in PREFERENCE_PURPOSES:
        texts = {part: for_purpose(trees, reading.purpose, account.dropped) for part, trees in texts.items()}
    account.used = sum(map(len, texts.values()))
    _require_trees(account, config)
    held_out = {tree.group for part in ("validation", "test") for tree in texts[part]}
    leaked = len({tree.group for tree in texts["train"]} & held_out)
    if leaked:
        log.warning("%s: the source's own splits put %d prompts both into training and held out", source, leaked)
    names = tuple(dict.fromkeys((*reading.layout.unread, *config.keep)))
    return Dataset(texts["train"], texts["validation"], texts["test"], reading.format, names, account)


def _loading(rows: Sequence[Row], config: DataConfig) -> Reading:
    """How `load` reads these rows: with all responses that the columns give, else as prompts."""
    try:
        reading = Reading.of(rows, config, "graded")
    except formats.NoFormat as problem:
        try:
            return Reading.of(rows, config, "prompts")
        except formats.NoFormat:
            raise problem from None
    purpose = LOADED.get(reading.format, "graded")
    has_label = reading.format == "completion" and config.format == "auto" and "label" in reading.layout.unread
    if has_label and all(str(row.get("label")).lower() in formats.LABELS for row in rows):
        purpose = "unpaired"
    return Reading.of(rows, config, purpose)
