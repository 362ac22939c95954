"""What is in a data set, before anything is trained on it: rows, losses, splits, leaks, ratings, lengths, a word floor.

Faults of the data are counted where training would drop or refuse the rows; only a source or a column that does not
exist is an error. Pairs are counted as training would use them, before any cut.

Where rows stand alone no tree is kept in memory: the rows are read again on each pass, and each leaves some hundred
bytes of hashes and numbers behind. Labelled texts and single ratings of one prompt are kept, since they are joined.
"""

import math
from array import array
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from statistics import fmean
from typing import Any

import numpy as np

from treeward.data import formats
from treeward.data.figures import (
    WORDS,
    Figures,
    Floor,
    Ints,
    Lengths,
    bars,
    bars_of,
    describe,
    floor,
    longer_wins,
    measure,
    quantiles,
)
from treeward.data.formats import Purpose, for_purpose, pair_labelled
from treeward.data.prepare import NO_FAULT, DataConfig, Reading, read_trees, source_rows
from treeward.data.sources import Row, Rows
from treeward.data.splits import PARTS, Part, edges, part_at, unit
from treeward.data.store import BRANCHES
from treeward.errors import UserError
from treeward.stats.intervals import Floats
from treeward.trees.text import Tree
from treeward.trees.tokens import Tokenizer

FLOOR_PAIRS = 20_000
"""The word floor uses the first pairs of a part, this many."""

TEXT_COLUMNS = (
    "prompt", "chosen", "rejected", "response", "responses", "messages", "completion", "text", "response_1",
    "response_2", "answers",
)  # fmt: skip
"""The columns whose texts make two rows duplicates."""


# The rows --------------------------------------------------------------------------------------------------------


class TreesOfRows:
    """The trees of a source's rows, read again on each pass; rows that give none are left out."""

    def __init__(self, rows: Rows, reading: Reading, count: int) -> None:
        self._rows, self._reading, self._count = rows, reading, count

    def __len__(self) -> int:
        return self._count

    def __contains__(self, tree: object) -> bool:
        return any(tree == candidate for candidate in self)

    def __iter__(self) -> Iterator[Tree]:
        for read in read_trees(self._rows, self._reading):
            yield from read.trees


@dataclass
class Contents:
    """The rows of a source as trees with the part of each, and what was wrong with the others.

    `trees` and `parts` (numbers of `PARTS`) have the same order. `groups` are hashes of the names of all groups, and
    `part_groups` count the trees of each used group, by the group's hash. `unreadable` is the first row that cannot be
    understood, and why. `both_labels` counts texts that have both labels.
    """

    reading: Reading
    rows: int = 0
    trees: Collection[Tree] = ()
    parts: Sequence[int] = ()
    part_groups: dict[Part, Counter[bytes]] = field(default_factory=dict)
    groups: set[bytes] = field(default_factory=set)
    dropped: Counter[str] = field(default_factory=Counter)
    unreadable: str | None = None
    duplicates: int = 0
    both_labels: int = 0
    own_split: bool = False

    @property
    def format(self) -> str:
        """The format's name."""
        return self.reading.format

    @property
    def purpose(self) -> Purpose:
        """What the rows were read for."""
        return self.reading.purpose

    def with_parts(self) -> Iterator[tuple[Part, Tree]]:
        """Every tree with its part."""
        return ((PARTS[number], tree) for number, tree in zip(self.parts, self.trees, strict=True))

    def set_trees(self, parts: dict[Part, list[Tree]]) -> None:
        """Replace the trees by these, which stay in memory."""
        self.trees = [tree for part in PARTS for tree in parts[part]]
        self.parts = array("b", (number for number, part in enumerate(PARTS) for _ in parts[part]))


def read_contents(config: DataConfig) -> Contents:
    """Read `config.source`, count what is wrong with its rows, and split the rest by prompt.

    Raises:
        UserError: the source, a column or the name of a split is wrong.
    """
    rows = source_rows(config)
    with rows.located():
        return _contents(rows, config)


def _contents(rows: Rows, config: DataConfig) -> Contents:
    reading = _reading(rows, config)
    contents = Contents(reading)
    hashes: set[bytes] = set()
    places, own_parts = array("d"), array("b")
    for read in read_trees(rows, reading):
        contents.rows += 1
        if read.row is not None:
            texts = digest(repr({column: read.row[column] for column in TEXT_COLUMNS if column in read.row}))
            contents.duplicates += texts in hashes
            hashes.add(texts)
        if read.fault is not None:
            row = read.raw if read.row is None else read.row
            _count_fault(contents, row, reading.place(read.number + 1), read.fault)
            continue
        contents.own_split = contents.own_split or read.part is not None
        contents.groups |= {digest(tree.group) for tree in read.trees}
        places.extend(unit(tree.group, config.seed) for tree in read.trees)
        own_parts.extend([-1 if read.part is None else PARTS.index(read.part)] * len(read.trees))
    free = [place for place, own_part in zip(places, own_parts, strict=True) if own_part < 0]
    ends = edges(free, config.validation, config.test, config.shares)
    contents.trees = TreesOfRows(rows, reading, len(places))
    contents.parts = array(
        "b",
        (
            PARTS.index(part_at(place, ends)) if own_part < 0 else own_part
            for place, own_part in zip(places, own_parts, strict=True)
        ),
    )
    contents.part_groups = {part: Counter() for part in PARTS}
    for part, tree in contents.with_parts():
        contents.part_groups[part][digest(tree.group)] += 1
    if reading.joined:
        _join(contents, config.seed)
    return contents


def digest(text: str) -> bytes:
    """Sixteen bytes of a text's hash."""
    return sha256(text.encode("utf-8", "surrogatepass")).digest()[:16]


def _join(contents: Contents, seed: int) -> None:
    """Take all trees into memory, and join those that belong together, inside their parts as training does."""
    parts: dict[Part, list[Tree]] = {part: [] for part in PARTS}
    for part, tree in contents.with_parts():
        parts[part].append(tree)
    if contents.format == "text":
        labels: dict[str, set[float | None]] = {}
        for tree in (tree for trees in parts.values() for tree in trees):
            labels.setdefault(tree.responses[0].text, set()).add(tree.responses[0].score)
        contents.both_labels = sum(len(values) > 1 for values in labels.values())
        contents.set_trees({part: pair_labelled(trees, seed) for part, trees in parts.items()})
    else:
        contents.set_trees({part: for_purpose(trees, "pairs", contents.dropped) for part, trees in parts.items()})


def _reading(rows: Rows, config: DataConfig) -> Reading:
    """How these rows are read for the first purpose that they serve: pairs, else sft, else prompts."""
    first = next(iter(rows))
    if config.format == "prompts" or set(first) <= {"prompt", "split", *config.ignore, *config.keep}:
        return Reading.of(rows, config, "prompts")
    reading = Reading.of(rows, config, "pairs")
    name = reading.format
    labels = (str(reading.layout.row(row).get("label")).lower() for row in rows)
    labelled = name == "text" and all(label in formats.LABELS for label in labels)
    if labelled or name not in ("text", "messages", "completion"):
        return reading
    return Reading.of(rows, config, "sft")


def _count_fault(contents: Contents, row: Row, place: str, fault: Exception) -> None:
    """Count a row that gives no tree; its prompt still counts as a prompt."""
    if isinstance(fault, formats.Dropped):
        contents.dropped[str(fault)] += 1
    else:
        contents.dropped["unreadable"] += 1
        contents.unreadable = contents.unreadable or f"{place}: {fault}"
    reading = contents.reading
    read = formats.reader(reading.format, reading.purpose, reading.config.turns)
    try:
        contents.groups |= {digest(tree.group) for tree in read(_with_valid_responses(row))}
    except (formats.Dropped, UserError, KeyError):
        return


def _with_valid_responses(row: Row) -> Row:
    """The same prompt with two responses that differ."""
    compared = "response_1" in row
    sides = ("response_1", "response_2") if compared else ("chosen", "rejected")
    winner = {"winner": 1} if compared else {}
    first = row[sides[0]]
    if isinstance(first, list):
        return {**row, **winner, **{side: [*first[:-1], {"role": "assistant", "content": side}] for side in sides}}
    if not isinstance(first, str):
        raise UserError(f"{sides[0]!r} is neither a text nor messages, so the row has no prompt")
    is_transcript = not compared and row.get("prompt") is None
    head = first.rpartition(formats.TURN)[0] + formats.TURN if is_transcript else ""
    return {**row, **winner, **{side: f"{head} {side}" for side in sides}}


# The figures -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Counts:
    """Rows, prompts, splits and faults. A prompt is a group: white space and case do not matter.

    `duplicates` are rows whose texts were in an earlier row; `contradictions` pairs that are in the data with both
    labels; `held_out_leaked` held-out rows whose prompt is also in another part; `no_fault` rows that are dropped
    without a fault of the data, such as ties.
    """

    rows: int
    used: int
    pairs: int | None
    prompts: int
    prompts_used: int
    train_rows: int
    validation_rows: int
    test_rows: int
    own_split: bool
    prompts_in_both_splits: int
    held_out_leaked: int
    duplicates: int
    identical_pairs: int
    differing_prompts: int
    empty_responses: int
    contradictions: int
    no_fault: int
    other_dropped: int
    other_reasons: str | None


@dataclass(frozen=True)
class Ratings:
    """Rating differences, chosen minus rejected; `rating_disagreements` are pairs whose chosen side is rated lower."""

    rated_pairs: int
    ties: int
    rating_disagreements: int
    rating_gaps: Figures


@dataclass(frozen=True)
class Inspection:
    """All figures of a source. `tokens` holds one flat mapping for each tokenizer."""

    reading: Reading
    counts: Counts
    ratings: Ratings
    characters: Figures
    floor: Floor | None
    tokens: tuple[Figures, ...]
    histograms: Mapping[str, Any]

    def flat(self) -> Figures:
        """The content of inspect.json. The figures of the first tokenizer stand at the top level too."""
        config, layout = self.reading.config, self.reading.layout
        gaps, floor = self.ratings.rating_gaps, self.floor
        return {
            "source": config.source, "format": self.reading.format, "purpose": self.reading.purpose,
            "columns": layout.description, "columns_not_read": ", ".join(layout.unread) or None,
            "max_prompt": config.max_prompt, "max_response": config.max_response, **asdict(self.counts),
            "rated_pairs": self.ratings.rated_pairs, "ties": self.ratings.ties,
            "rating_disagreements": self.ratings.rating_disagreements, "mean_rating_gap": gaps["mean"],
            **{f"rating_gap_{key}": value for key, value in gaps.items() if key != "mean"},
            **self.characters, "floor": floor and floor.accuracy.value, "floor_low": floor and floor.accuracy.low,
            "floor_high": floor and floor.accuracy.high, "floor_n": floor and floor.accuracy.n,
            "floor_pairs": floor and floor.pairs, "floor_words": floor and floor.words,
            **self.tokens[0], "tokens": list(self.tokens),
        }  # fmt: skip


def inspect(
    contents: Contents,
    tokenizers: Mapping[str, Tokenizer],
    embedding_rows: int | None = None,
    progress: Callable[[Collection[Tree], str], Iterable[Tree]] = lambda trees, what: trees,
) -> Inspection:
    """The figures of a source, with lengths under each tokenizer by name (in words, if there is none).

    `embedding_rows` are those of the model that is to be trained; `progress` may show how far the counting is.

    Raises:
        UserError: a tokenizer can neither open an empty prompt nor end a response.
    """
    config = contents.reading.config
    pairs = _pair_figures(contents)
    gaps = pairs.gaps
    tokens: list[Figures] = []
    histograms: dict[str, Any] = {"rating_gap": bars(gaps[np.isfinite(gaps)])}
    for name, tokenizer in (tokenizers or {WORDS: None}).items():
        trees = progress(contents.trees, f"tokens of {name}")
        lengths = measure(trees, BRANCHES[contents.purpose], tokenizer, embedding_rows)
        tokens.append({
            "tokenizer": name, **_vocabulary(tokenizer, lengths, embedding_rows),
            **describe(lengths, gaps, pairs.groups, (config.max_prompt, config.max_response)),
        })  # fmt: skip
        histograms[name] = bars_of(lengths)
    differences = pairs.characters
    characters = longer_wins(differences, pairs.groups, "longer_wins_characters") if len(differences) else {}
    return Inspection(
        contents.reading, _counts(contents, pairs.contradictions), _ratings(gaps), characters,
        floor(pairs.texts["train"], *pairs.held_out), tuple(tokens), histograms,
    )  # fmt: skip


def _counts(contents: Contents, contradictions: int) -> Counts:
    parts, dropped = contents.part_groups, contents.dropped
    parts_of_group = Counter(group for groups in parts.values() for group in groups)
    leaked = {group for group, n in parts_of_group.items() if n > 1}
    assert contents.own_split or not leaked, "the built-in split put a prompt into two parts"
    counted = ("identical pair", "prompts differ", "empty response")
    others = {reason: n for reason, n in sorted(dropped.items()) if reason not in counted}
    reasons = ", ".join(f"{n} {reason}" for reason, n in others.items())
    return Counts(
        rows=contents.rows, used=sum(groups.total() for groups in parts.values()),
        pairs=len(contents.trees) if contents.purpose == "pairs" else None,
        prompts=len(contents.groups), prompts_used=len(parts_of_group),
        train_rows=parts["train"].total(), validation_rows=parts["validation"].total(),
        test_rows=parts["test"].total(), own_split=contents.own_split, prompts_in_both_splits=len(leaked),
        held_out_leaked=sum(parts[part][group] for part in ("validation", "test") for group in leaked),
        duplicates=contents.duplicates,
        identical_pairs=dropped["identical pair"], differing_prompts=dropped["prompts differ"],
        empty_responses=dropped["empty response"],
        contradictions=contents.both_labels or contradictions,
        no_fault=sum(n for reason, n in dropped.items() if reason in NO_FAULT),
        other_dropped=sum(others.values()),
        other_reasons=(f"{reasons}; {contents.unreadable}" if contents.unreadable else reasons) or None,
    )  # fmt: skip


@dataclass(frozen=True)
class PairFigures:
    """What one pass over the pairs gives.

    By pair: rating gaps, length differences in characters, and the number of the prompt. `contradictions` counts pairs
    that are there in both orders. `texts` are what the word floor is fitted to and measured on, FLOOR_PAIRS of each
    part at most, with their prompts' numbers in `text_groups`.
    """

    gaps: Floats
    characters: Ints
    groups: Ints
    contradictions: int
    texts: Mapping[Part, list[tuple[str, str]]]
    text_groups: Mapping[Part, list[int]]

    @property
    def held_out(self) -> tuple[list[tuple[str, str]], list[int]]:
        """The test part's texts with their prompts' numbers, else the validation part's."""
        part: Part = "test" if self.texts["test"] else "validation"
        return self.texts[part], self.text_groups[part]


def _pair_figures(contents: Contents) -> PairFigures:
    """Go through the pairs once; everything is empty where the data has none."""
    gaps, characters, groups = array("d"), array("q"), array("q")
    texts: dict[Part, list[tuple[str, str]]] = {part: [] for part in PARTS}
    text_groups: dict[Part, list[int]] = {part: [] for part in PARTS}
    numbers: dict[bytes, int] = {}
    forward: set[bytes] = set()
    backward: set[bytes] = set()
    for part, tree in contents.with_parts() if contents.purpose == "pairs" else ():
        chosen, rejected = (response.text for response in tree.responses)
        gaps.append(_gap(tree))
        characters.append(len(chosen) - len(rejected))
        groups.append(numbers.setdefault(digest(tree.group), len(numbers)))
        forward.add(digest(repr((tree.group, chosen, rejected))))
        backward.add(digest(repr((tree.group, rejected, chosen))))
        if len(texts[part]) < FLOOR_PAIRS:
            texts[part].append((chosen, rejected))
            text_groups[part].append(groups[-1])
    return PairFigures(
        np.array(gaps), np.array(characters, dtype=np.int64), np.array(groups, dtype=np.int64),
        len(forward & backward) // 2, texts, text_groups,
    )  # fmt: skip


def _gap(tree: Tree) -> float:
    chosen, rejected = (response.ratings for response in tree.responses)
    return fmean(chosen) - fmean(rejected) if chosen and rejected else math.nan


def _ratings(gaps: Floats) -> Ratings:
    rated = gaps[np.isfinite(gaps)]
    return Ratings(len(rated), int((rated == 0).sum()), int((rated < 0).sum()), quantiles(rated))


def _vocabulary(tokenizer: Tokenizer | None, lengths: Lengths, rows: int | None) -> Figures:
    """The tokenizer's ids against the model's embedding rows."""
    if tokenizer is None:
        return {"vocabulary": None, "embedding_rows": rows, "ids_beyond_model": None, "tokens_beyond_model": None}
    ids = set(tokenizer.get_vocab().values())
    return {
        "vocabulary": len(ids),
        "embedding_rows": rows,
        "ids_beyond_model": None if rows is None else sum(number >= rows for number in ids),
        "tokens_beyond_model": None if rows is None else lengths.beyond,
    }
