"""The whole way from a source to token trees: read, format, split by group, pair, render, drop and count."""

import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from treeward.data import formats, sources, store, values
from treeward.data.batched import token_trees
from treeward.data.columns import LOOK, Layout, as_word, layout
from treeward.data.render import Account
from treeward.data.shapes import MADE, UNRANKED, Purpose, pair_labelled, replace_responses, shaped
from treeward.data.splits import NAMES, PARTS, Edges, Part, Shares, edges, named, part_at, unit
from treeward.errors import UserError
from treeward.trees.text import Tree
from treeward.trees.tokens import Tokenizer, TokenTree

log = logging.getLogger(__name__)

UNPAIRED = "text without a partner of the other label"
IDENTICAL = "identical after truncation"
"""Trees dropped because fewer than two branches differ, and branches dropped because a better one has their ids."""
REPEATED = "response that stands in its ranking twice"
"""Branches dropped because a better one has their text."""
VerdictPart = Literal["test", "validation", "half of validation"]
LEAKED = "training example whose group is held out too"
"""Trees dropped with `data.leaks drop`."""
NO_FAULT = (UNPAIRED, formats.TIED, UNRANKED, LEAKED)
"""Reasons for dropping what is no fault of the data: ties, texts without a partner, leaks that the user drops."""
COMPARED = ("pairs", "ranked", "unpaired")
"""The purposes for which two branches with the same ids say nothing."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the data is, how it is read, split and cut."""

    source: str = "world"
    """A file (jsonl, jsonl.gz, json, parquet, csv), a directory (also one of `inspect --save`), a hub id, or `world`
    / `world-texts` (embedded)."""
    format: str = "auto"
    """preference, compared, transcripts, graded, answers, helpsteer, messages, completion, labelled, text, prompts;
    auto goes by the columns."""
    split: str | None = None
    """Read only this split of a source, by its parts or its `split` column, and split its rows anew; null reads all,
    each in its part."""
    splits: Literal["given", "ignore"] = "given"
    """given: rows whose split is named stay in it; ignore: all rows are split anew."""
    leaks: Literal["refuse", "drop"] = "refuse"
    """Where a group stands in training and held out: refuse the data, or drop its training examples."""
    columns: dict[str, str | list[str]] = field(default_factory=dict)
    """Which column is what, {ours: theirs}: {prompt: instruction}; {winner: label} for two outputs; {prompt:
    [instruction, input]} joins two; {subset: category} reports each category apart."""
    winner: dict[str | int | float | bool, str | int] = field(default_factory=dict)
    """What the winner's values mean: {value: 1}, 2 or tie, such as {a: 1, b: 2, c: tie}; by default from the values."""
    ignore: tuple[str, ...] = ()
    """Columns to leave out of everything, such as [label]."""
    limit: int | None = None
    """Read only this many rows."""
    turns: Literal["last", "all"] = "last"
    """In sft on dialogues: train on the last assistant turn, or on each."""
    validation: float = 0.1
    """Share of the groups on which the best step is chosen; of rows without a named split."""
    test: float = 0.1
    """Share of the groups on which before and after are measured; of rows without a named split. With 0, half of the
    validation groups serve, and the other half chooses the best step."""
    shares: Shares = "expected"
    """expected: each group falls by its own chance, and new rows move no old ones; exact: the parts have the nearest
    count of rows that cuts no group."""
    max_prompt: int = 512
    """Longest prompt in tokens; a longer one is cut on the left."""
    max_response: int = 512
    """Longest response in tokens, end token included; a longer one is cut on the right and gets no end token."""
    seed: int = 0
    """Seeds the splits, the pairing of labelled texts and the embedded world."""

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


@dataclass(frozen=True)
class Placed:
    """How many groups fell into each part by chance, and the shares asked for."""

    groups: Counter[Part]
    shares: dict[Part, float]


@dataclass
class Prepared:
    """Token trees and the texts they came from, by part, in equal order; and the account of what was lost. `placed`
    counts the groups that fell into each part by chance, with the shares asked for; it is not kept on disk.
    """

    parts: dict[Part, list[TokenTree]]
    texts: dict[Part, list[Tree]]
    account: Account
    format: str
    best_accuracy: float | None = None
    verdict_on: VerdictPart = "test"
    """Which groups are measured before and after; `apart` decides."""
    placed: "Placed | None" = field(default=None, compare=False)

    @property
    def train(self) -> list[TokenTree]:
        """The trees to train on."""
        return self.parts["train"]

    @property
    def held_out(self) -> list[TokenTree]:
        """The trees to measure before and after on; after `apart` nothing is chosen on their groups."""
        return self.parts["test"]

    def apart(self, chooses: bool, seed: int) -> "Prepared":
        """The same trees, with a test part on whose groups nothing is chosen.

        `chooses`: the run compares several checkpoints on the validation part. A given test part stays; validation
        trees whose group is in it go. Without one the validation groups serve: half of them, by a hash of their own,
        become the test part, and all of them where nothing is chosen.
        """
        test = {tree.group for tree in self.parts["test"]}
        groups = {tree.group for tree in self.parts["validation"]}
        if test:
            shared = groups & test
            if not shared:
                return self
            log.info("%d validation groups stand in the test part too, which gives the verdict: they choose nothing",
                     len(shared))  # fmt: skip
            return self._moved(lambda part, group: None if part == "validation" and group in shared else part)
        judging = groups
        if chooses:
            ranked = sorted(groups, key=lambda group: unit(group, seed, "verdict"))
            judging = set(ranked[: (len(ranked) + 1) // 2])
        found = self._moved(lambda part, group: "test" if part == "validation" and group in judging else part)
        return replace(found, verdict_on="half of validation" if chooses else "validation")

    def verdict_facts(self) -> dict[str, Any]:
        """`groups` that give the verdict, from which `part`; the checkpoint is chosen on `chosen_on` other groups."""
        groups, chosen_on = (len({tree.group for tree in self.parts[part]}) for part in ("test", "validation"))
        return {"groups": groups, "chosen_on": chosen_on, "part": self.verdict_on}

    def _moved(self, place: Callable[[Part, str], Part | None]) -> "Prepared":
        """Every tree in the part that `place` names for its part and group; None leaves it out."""
        parts: dict[Part, list[TokenTree]] = {part: [] for part in PARTS}
        texts: dict[Part, list[Tree]] = {part: [] for part in PARTS}
        for part in PARTS:
            for tokens, text in zip(self.parts[part], self.texts[part], strict=True):
                to = place(part, tokens.group)
                if to is not None:
                    parts[to].append(tokens)
                    texts[to].append(text)
        return replace(self, parts=parts, texts=texts)


def prepare(config: DataConfig, tokenizer: Tokenizer, purpose: Purpose, attributes: Sequence[str] = ()) -> Prepared:
    """Read `config.source` and render it for a purpose: "pairs" (two branches, chosen first), "ranked" (several, best
    first), "graded" (rated ones), "unpaired" (one with a label, or a pair), "sft" (one) or "prompts" (none).

    `attributes` are the names of the ratings in the order that the model's head has them: named ratings are put into
    that order.

    Raises:
        UserError: the source, a column or a value is wrong, the ratings have other names, or nothing is left to train
            on.
    """
    if store.is_prepared(config.source):
        kept = store.load(config.source, asdict(config), asdict(DataConfig()), tokenizer, purpose)
        return _in_order(Prepared(**vars(kept)), attributes, config)
    flow = source_rows(config)
    rows = list(flow)
    with flow.located():
        prepared = rendered(rows, Reading.of(rows, config, purpose), tokenizer)
    if not prepared.account.used:
        raise UserError(f"data.source {config.source!r}: nothing is left of {lost(prepared.account, config)}")
    return _in_order(prepared, attributes, config)


def _in_order(prepared: Prepared, attributes: Sequence[str], config: DataConfig) -> Prepared:
    """Named ratings in the order of the head's names."""
    if attributes:
        try:
            for part, trees in prepared.parts.items():
                prepared.parts[part] = [tree.with_attributes(attributes) for tree in trees]
        except ValueError as problem:
            raise UserError(f"{config.source}, row 1: {problem}") from None
    return prepared


def lost(account: Account, config: DataConfig) -> str:
    """The account, with the fix where the limit alone is to blame."""
    sorted_by_label = config.limit is not None and account.dropped[UNPAIRED] == account.rows
    more = f"; the first {config.limit} rows have one label only: raise data.limit, or mix the rows of the file"
    return f"{account}{more if sorted_by_label else ''}"


def unheld(account: Account, config: DataConfig) -> str:
    """What to do about data of which nothing is held out."""
    named_here = account.columns["split"]
    if named_here:
        return (
            f"the data names the split of {named_here} of {account.rows} rows, none of them validation or test; split "
            "all of them anew with --data.splits ignore, or raise data.limit to reach held-out rows"
        )
    if config.test + config.validation == 0:
        return "data.test and data.validation are 0; set --data.test above 0"
    return (
        f"{account.used} {account.made} are too few for data.test {config.test:g} and data.validation "
        f"{config.validation:g} to hold one out; bring more rows"
    )


class Chosen(Collection[sources.Row]):
    """The rows of one split, by a column that names it; read anew on each pass."""

    def __init__(self, rows: sources.Flow, column: str, split: str, limit: int | None) -> None:
        self._rows, self._column, self._limit = rows, column, limit
        self._name = NAMES.get(split.lower(), split)
        counts: Counter[str] = Counter(str(row.get(column)) for row in rows)
        self._count = sum(n for name, n in counts.items() if self._is(name))
        if not self._count:
            have = ", ".join(f"{name} ({n} rows)" for name, n in counts.most_common(6))
            raise UserError(f"data.split is {split!r}, but column {column!r} names {have}")

    def _is(self, value: object) -> bool:
        return NAMES.get(str(value).lower(), str(value)) == self._name

    def __len__(self) -> int:
        return self._count if self._limit is None else min(self._count, self._limit)

    def __contains__(self, row: object) -> bool:
        return any(row == each for each in self)

    def __iter__(self) -> Iterator[sources.Row]:
        return islice((row for row in self._rows if self._is(row.get(self._column))), self._limit)

    @contextmanager
    def located(self) -> Iterator[None]:
        """Reports a `BadRow` of these rows as an error that names the file and the row in it, counted from 1."""
        with self._rows.located():
            try:
                yield
            except sources.BadRow as problem:
                places = (place for place, row in enumerate(self._rows) if self._is(row.get(self._column)))
                raise sources.BadRow(next(islice(places, problem.number, None)), problem.problem) from None


Rows = sources.Flow | Chosen
"""The rows of a source, read anew on each pass."""


def source_rows(config: DataConfig) -> Rows:
    """The rows of `config.source`; of a file whose `split` column names several splits, those of `config.split`.

    Raises:
        UserError: the source cannot be read, or has no such split.
    """
    column = config.columns.get("split", "split")
    if config.split is not None and isinstance(column, str) and Path(config.source).is_file():
        rows = sources.flow(config.source, None, None, config.seed)
        if column in next(iter(rows)):
            return Chosen(rows, column, config.split, config.limit)
    return sources.flow(config.source, config.split, config.limit, config.seed)


@dataclass(frozen=True)
class Reading:
    """How rows become trees: the configuration, what their columns are, the purpose; the parts' ends if known."""

    config: DataConfig
    layout: Layout
    purpose: Purpose
    ends: Edges | None = None

    @classmethod
    def of(cls, rows: Rows | Sequence[sources.Row], config: DataConfig, purpose: Purpose) -> "Reading":
        """The reading of these rows, of which the first are looked at.

        Raises:
            UserError: the columns fit no format, or one looks like a winner or a split and is not read.
        """
        sample = list(islice(rows, LOOK))
        winner = {str(value): int(side) for value, side in config.winner.items()}
        try:
            columns = layout(
                sample, purpose, format=config.format, columns=config.columns, ignore=config.ignore, winner=winner,
                given_splits=config.keeps_splits,
            )  # fmt: skip
        except ValueError as problem:
            raise UserError(f"data.source {config.source!r}: {problem}") from None
        return cls(config, columns, purpose)

    @property
    def format(self) -> str:
        """The format's name."""
        return self.layout.format

    @property
    def joined(self) -> bool:
        """Whether rows are joined: labelled texts are paired, and single ratings gathered."""
        paired = self.format == "text" and self.purpose in ("pairs", "ranked")
        return paired or (self.format in ("graded", "helpsteer", "answers") and self.purpose in formats.JUDGED)

    @property
    def alone(self) -> bool:
        """Whether each row gives its trees by itself: none is joined or dropped because of another."""
        return not self.joined and self.config.leaks == "refuse"

    def place(self, number: int) -> str:
        """Where a row stands, counted from 1."""
        split = f", split {self.config.split}" if self.config.split else ""
        return f"{self.config.source}{split}, row {number}"

    def part(self, row: sources.Row) -> Part | None:
        """The part that a row itself names.

        Raises:
            UserError: the name is unknown.
        """
        return named(row["split"]) if self.config.keeps_splits and row.get("split") else None

    def trees(self, row: sources.Row, read: formats.Reader) -> list[Tree]:
        """The trees of a row in our columns.

        Raises:
            Dropped: it has none.
            UserError: it cannot be understood, or names its ratings otherwise than the first row.
        """
        trees = read(row)
        for tree in trees:
            if self.format == "graded":
                formats.check_rating_names(tree.attributes, self.layout.attributes)
        return trees

    def made(self) -> str:
        """What the rows become, for the log."""
        if self.joined and self.format == "text":
            return "pairs of a positive and a negative text"
        return MADE[self.purpose]


def rendered(rows: Sequence[sources.Row], reading: Reading, tokenizer: Tokenizer, first: int = 0) -> Prepared:
    """These rows as texts and ids by part, with their account; `first` is the number of the first row, from 0.

    Raises:
        BadRow: a column or a value is wrong.
    """
    config, purpose = reading.config, reading.purpose
    account = Account(rows=len(rows), made=reading.made(), layout=reading.layout.said)
    account.unread = list(reading.layout.unread)
    texts, fallen = placed(_trees(rows, reading, account, first), reading)
    _leaks(texts, account, reading)
    if reading.format == "text" and purpose in ("pairs", "ranked"):
        unpaired = {part: len(trees) for part, trees in texts.items()}
        texts = {part: pair_labelled(trees, config.seed) for part, trees in texts.items()}
        left = sum(unpaired.values()) - 2 * sum(map(len, texts.values()))
        if left:
            account.dropped[UNPAIRED] += left
    elif purpose in formats.JUDGED:
        texts = {part: shaped(trees, purpose, account.dropped) for part, trees in texts.items()}
    prepared = Prepared({}, {}, account, reading.format, placed=fallen)
    for part in PARTS:
        _render(texts[part], part, prepared, config, tokenizer, purpose)
    best = [row["best_accuracy"] for row in rows if isinstance(row.get("best_accuracy"), float)]
    prepared.best_accuracy = sum(best) / len(best) if best and purpose == "pairs" else None
    account.used = sum(map(len, prepared.parts.values()))
    return prepared


def _trees(
    rows: Iterable[sources.Row], reading: Reading, account: Account, first: int
) -> list[tuple[Part | None, Tree]]:
    read = formats.reader(reading.format, reading.purpose, reading.config.turns)
    texts: list[tuple[Part | None, Tree]] = []
    for number, raw in enumerate(rows, first):
        try:
            row = reading.layout.row(raw)
            others = reading.layout.others(raw) or None
            trees = [replace(annotated(tree, row, account), row=others) for tree in reading.trees(row, read)]
            part = reading.part(row)
        except formats.Dropped as reason:
            account.dropped[str(reason)] += 1
            continue
        except KeyError as missing:
            raise sources.BadRow(number, absent(missing, raw)) from None
        except ValueError as problem:
            raise sources.BadRow(number, str(problem)) from None
        if part is not None:
            account.columns["split"] += 1
        texts += [(part, tree) for tree in trees]
    return texts


def absent(missing: KeyError, row: sources.Row) -> str:
    """That a row lacks a column that other rows have."""
    return f"it has no column {missing}; it has {', '.join(sorted(row))}"


def annotated(tree: Tree, row: sources.Row, account: Account) -> Tree:
    """The tree with the row's subset, weight and (of a pair) margin; weights and margins are counted.

    Raises:
        UserError: a weight or margin is not a number.
    """
    subset = row.get("subset")
    weight, margin = (values.optional(values.number)(row.get(name), name) for name in ("weight", "margin"))
    if subset:
        tree = replace(tree, subset=str(subset))
    if weight is not None and weight != 1:
        account.columns["weight"] += 1
        tree = replace(tree, weight=weight)
    if margin is not None and len(tree.responses) == 2:
        account.columns["margin"] += 1
        tree = replace(tree, margin=margin)
    return tree


def placed(trees: Sequence[tuple[Part | None, Tree]], reading: Reading) -> tuple[dict[Part, list[Tree]], Placed | None]:
    """Trees by part: the one that their row names, else the one of their group; and how the groups fell, where each
    falls by a chance of its own.
    """
    config = reading.config
    places = {tree.group: unit(tree.group, config.seed) for _, tree in trees}
    free = [places[tree.group] for given, tree in trees if given is None]
    ends = reading.ends or edges(free, config.validation, config.test, config.shares)
    fallen = None
    if config.shares == "expected" and free:
        shares: dict[Part, float] = {"test": config.test, "validation": config.validation}
        fallen = Placed(Counter(part_at(place, ends) for place in set(free)), shares)
    parts: dict[Part, list[Tree]] = {part: [] for part in PARTS}
    for given, tree in trees:
        parts[given or part_at(places[tree.group], ends)].append(tree)
    return parts, fallen


def _leaks(texts: dict[Part, list[Tree]], account: Account, reading: Reading) -> None:
    """Drop the groups that stand in training and held out from training, where the user asked for it. Of texts that are
    to be paired count them: the pairs will have groups of their own; other trees show their groups to check F04.
    """
    held_out = {tree.group for part in ("validation", "test") for tree in texts[part]}
    groups = {tree.group for tree in texts["train"]} & held_out
    if not groups:
        return
    clean = [tree for tree in texts["train"] if tree.group not in groups]
    if reading.config.leaks == "drop":
        account.dropped[LEAKED] += len(texts["train"]) - len(clean)
        texts["train"] = clean
    elif reading.joined and reading.format == "text":
        _count_leaks(texts, groups, account)


def _count_leaks(texts: dict[Part, list[Tree]], groups: set[str], account: Account) -> None:
    held_out = [tree for part in ("validation", "test") for tree in texts[part]]
    account.leaked = Counter({
        "groups": len(groups), "training": sum(tree.group in groups for tree in texts["train"]),
        "held out": sum(tree.group in groups for tree in held_out), "of held out": len(held_out),
    })  # fmt: skip
    account.leaks = sorted(groups)[:3]


def _render(
    texts: list[Tree], part: Part, prepared: Prepared, config: DataConfig, tokenizer: Tokenizer, purpose: Purpose
) -> None:
    kept: list[tuple[Tree, TokenTree]] = []
    rendered = token_trees(texts, tokenizer, config.max_prompt, config.max_response, prepared.account)
    for tree, tokens in zip(texts, rendered, strict=True):
        if purpose not in COMPARED or len(set(tokens.branches)) == len(tokens.branches):
            kept.append((tree, tokens))
        elif found := _distinct(tree, tokens, prepared.account):
            kept.append(found)
    prepared.texts[part] = [tree for tree, _ in kept]
    prepared.parts[part] = [tokens for _, tokens in kept]


def _distinct(tree: Tree, tokens: TokenTree, account: Account) -> tuple[Tree, TokenTree] | None:
    """The tree without the branches whose ids a better one has; None where fewer than two are left."""
    first: dict[tuple[int, ...], int] = {}
    for number, ids in enumerate(tokens.branches):
        first.setdefault(ids, number)
    if len(first) < 2:
        account.dropped[IDENTICAL] += 1
        return None
    lost = len(tokens.branches) - len(first)
    repeated = min(lost, len(tree.responses) - len({response.text for response in tree.responses}))
    account.cut += Counter({REPEATED: repeated, IDENTICAL: lost - repeated})
    keep = list(first.values())
    ratings = tuple(tokens.ratings[n] for n in keep) if tokens.ratings else ()
    return (
        replace_responses(tree, [tree.responses[n] for n in keep]),
        replace(tokens, branches=tuple(first), ratings=ratings),
    )
