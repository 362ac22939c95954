"""What is in a data set, before anything is trained on it: rows, losses, splits, leaks, ratings, lengths, a word floor.

Faults of the data are counted here where training would drop or refuse them; only a source or a column that is not
there is an error. Pairs are counted as training would use them, before any cut.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from statistics import fmean
from typing import Any

import numpy as np

from treeward.data import formats, sources
from treeward.data.floor import Floor, floor
from treeward.data.lengths import WORDS, Figures, Lengths, bars, bars_of, describe, longer_wins, measure, quantiles
from treeward.data.prepare import DataConfig, placed, renamed
from treeward.data.render import Tokenizer
from treeward.data.shapes import Purpose, pair_labelled, shaped
from treeward.data.splits import PARTS, Part, named
from treeward.maths.statistics import Floats
from treeward.trees.text import Tree

BRANCHES: Mapping[str, int] = {"pairs": 2, "sft": 1, "prompts": 0}


@dataclass
class Gathered:
    """The rows of a source as trees by part, and what was wrong with the others."""

    format: str
    purpose: Purpose
    rows: int
    parts: dict[Part, list[Tree]] = field(default_factory=lambda: {part: [] for part in PARTS})
    part_groups: dict[Part, Counter[str]] = field(default_factory=dict)
    groups: set[str] = field(default_factory=set)
    dropped: Counter[str] = field(default_factory=Counter)
    unreadable: str | None = None
    duplicates: int = 0
    both_labels: int = 0
    own_split: bool = False

    @property
    def trees(self) -> list[Tree]:
        """All trees, part after part."""
        return [tree for part in PARTS for tree in self.parts[part]]


@dataclass(frozen=True)
class Counts:
    """Rows, prompts, splits and faults. A prompt is a group: its words, white space and capitals apart.

    `duplicates` are rows whose texts stood in an earlier row; `contradictions` pairs that are there with both labels;
    `held_out_leaked` held-out rows whose prompt is also in another part.
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
    """All figures of a source. `tokens` holds one flat mapping a tokenizer, the first one's names also stand alone."""

    data: DataConfig
    format: str
    purpose: Purpose
    counts: Counts
    ratings: Ratings
    characters: Figures
    floor: Floor | None
    tokens: tuple[Figures, ...]
    histograms: Mapping[str, Any]

    def flat(self) -> Figures:
        """What inspect.json holds."""
        gaps = self.ratings.rating_gaps
        beaten = self.floor
        return {
            "source": self.data.source, "format": self.format, "purpose": self.purpose,
            "max_prompt": self.data.max_prompt, "max_response": self.data.max_response, **asdict(self.counts),
            "rated_pairs": self.ratings.rated_pairs, "ties": self.ratings.ties,
            "rating_disagreements": self.ratings.rating_disagreements, "mean_rating_gap": gaps["mean"],
            **{f"rating_gap_{key}": value for key, value in gaps.items() if key != "mean"},
            **self.characters, "floor": beaten and beaten.accuracy.value, "floor_low": beaten and beaten.accuracy.low,
            "floor_high": beaten and beaten.accuracy.high, "floor_n": beaten and beaten.accuracy.n,
            "floor_pairs": beaten and beaten.pairs, "floor_words": beaten and beaten.words,
            **self.tokens[0], "tokens": list(self.tokens),
        }  # fmt: skip


def gather(config: DataConfig) -> Gathered:
    """Read `config.source`, count what is wrong with its rows, and split the rest by prompt.

    Raises:
        ValueError: the source, a column or the name of a split is wrong.
    """
    read_rows = sources.rows(config.source, config.split, config.limit, config.seed)
    rows = [renamed(row, config.columns) for row in read_rows]
    name, purpose = _kind(rows, config.format)
    found = Gathered(name, purpose, len(rows))
    read = formats.reader(name, purpose, config.turns)
    seen: set[bytes] = set()
    texts: list[tuple[Part | None, Tree]] = []
    for number, row in enumerate(rows):
        found.duplicates += _again(row, seen)
        try:
            trees = read(row)
        except KeyError as missing:
            raise ValueError(f"row {number} has no column {missing}; it has {', '.join(sorted(row))}") from None
        except (formats.Dropped, ValueError, TypeError, AttributeError, IndexError) as reason:
            _lose(found, row, number, read, reason)
            continue
        own = named(row["split"]) if row.get("split") else None
        found.own_split = found.own_split or own is not None
        for tree in trees:
            found.groups.add(tree.group)
            texts.append((own, tree))
    found.parts = placed(texts, config)
    found.part_groups = {part: Counter(tree.group for tree in trees) for part, trees in found.parts.items()}
    if name == "text" and purpose == "pairs":
        _pair_up(found, config.seed)
    elif name in ("graded", "helpsteer"):
        found.parts = {part: shaped(trees, "pairs", found.dropped) for part, trees in found.parts.items()}
    return found


def inspect(
    config: DataConfig,
    gathered: Gathered,
    tokenizers: Mapping[str, Tokenizer],
    embedding_rows: int | None = None,
    progress: Callable[[Sequence[Tree], str], Iterable[Tree]] = lambda trees, what: trees,
) -> Inspection:
    """The figures of rows gathered with `config`, lengths under each tokenizer by name (in words, if there is none).

    `embedding_rows` are those of the model that is to be trained; `progress` may show how far the counting is.

    Raises:
        ValueError: a tokenizer can neither open an empty prompt nor end a response.
    """
    trees = gathered.trees
    gaps = np.array([_gap(tree) for tree in trees]) if gathered.purpose == "pairs" else np.array([])
    budgets = (config.max_prompt, config.max_response)
    tokens: list[Figures] = []
    histograms: dict[str, Any] = {"rating_gap": bars(gaps[np.isfinite(gaps)])}
    for name, tokenizer in (tokenizers or {WORDS: None}).items():
        lengths = measure(progress(trees, f"tokens of {name}"), BRANCHES[gathered.purpose], tokenizer, embedding_rows)
        tokens.append({"tokenizer": name, **_vocabulary(tokenizer, lengths, embedding_rows),
                       **describe(lengths, gaps, budgets)})  # fmt: skip
        histograms[name] = bars_of(lengths)
    held_out = _texts(gathered, "test") or _texts(gathered, "validation")
    return Inspection(
        config, gathered.format, gathered.purpose, _counts(gathered), _ratings(gaps), _characters(gathered),
        floor(_texts(gathered, "train"), held_out), tuple(tokens), histograms,
    )  # fmt: skip


def _kind(rows: Sequence[sources.Row], asked: str) -> tuple[str, Purpose]:
    """The format, and what these rows could train: pairs if they can, else sft, else only prompts."""
    first = rows[0]
    name = asked
    if asked == "auto":
        name = formats.detect(first, first, "prompts" if set(first) <= {"prompt", "split"} else "pairs")
    if name == "prompts":
        return name, "prompts"
    labelled = name == "text" and {row.get("label") for row in rows} <= {0, 1}
    return name, "pairs" if labelled or name not in ("text", "messages", "completion") else "sft"


def _again(row: sources.Row, seen: set[bytes]) -> bool:
    """Whether these texts, ratings and labels apart from ids and splits, stood in a row before."""
    texts = {key: row[key] for key in ("prompt", "chosen", "rejected", "messages", "completion", "text") if key in row}
    mark = sha256(repr(texts).encode("utf-8", "surrogatepass")).digest()
    known = mark in seen
    seen.add(mark)
    return known


def _lose(found: Gathered, row: sources.Row, number: int, read: formats.Reader, reason: Exception) -> None:
    """Count a row that gives no tree; its prompt still counts as a prompt."""
    if isinstance(reason, formats.Dropped):
        found.dropped[str(reason)] += 1
    else:
        found.dropped["unreadable"] += 1
        found.unreadable = found.unreadable or f"row {number}: {reason}"
    try:
        found.groups |= {tree.group for tree in read(_answered(row))}
    except (formats.Dropped, ValueError, TypeError, AttributeError, KeyError, IndexError):
        return


def _answered(row: sources.Row) -> sources.Row:
    """The same prompt with two responses that will do."""
    chosen = row["chosen"]
    if isinstance(chosen, str):
        head = chosen.rpartition(formats.TURN)[0] + formats.TURN if row.get("prompt") is None else ""
        return {**row, "chosen": f"{head} a", "rejected": f"{head} b"}
    return {**row, **{side: [*chosen[:-1], {"role": "assistant", "content": side}] for side in ("chosen", "rejected")}}


def _pair_up(found: Gathered, seed: int) -> None:
    """Labelled texts are split first and then paired inside a split, as training does."""
    labels: dict[str, set[float | None]] = {}
    for tree in found.trees:
        labels.setdefault(tree.responses[0].text, set()).add(tree.responses[0].score)
    found.both_labels = sum(len(said) > 1 for said in labels.values())
    found.parts = {part: pair_labelled(trees, seed) for part, trees in found.parts.items()}


def _counts(found: Gathered) -> Counts:
    parts = found.part_groups
    sides = Counter(group for groups in parts.values() for group in groups)
    leaked = {group for group, n in sides.items() if n > 1}
    assert found.own_split or not leaked, "the built-in split put a prompt on two sides"
    named_here = ("identical pair", "prompts differ", "empty response")
    others = {reason: n for reason, n in sorted(found.dropped.items()) if reason not in named_here}
    reasons = ", ".join(f"{n} {reason}" for reason, n in others.items())
    pairs = found.purpose == "pairs"
    return Counts(
        rows=found.rows, used=sum(groups.total() for groups in parts.values()),
        pairs=len(found.trees) if pairs else None, prompts=len(found.groups), prompts_used=len(sides),
        train_rows=parts["train"].total(), validation_rows=parts["validation"].total(),
        test_rows=parts["test"].total(), own_split=found.own_split, prompts_in_both_splits=len(leaked),
        held_out_leaked=sum(parts[part][group] for part in ("validation", "test") for group in leaked),
        duplicates=found.duplicates,
        identical_pairs=found.dropped["identical pair"], differing_prompts=found.dropped["prompts differ"],
        empty_responses=found.dropped["empty response"],
        contradictions=found.both_labels or (_contradictions(found.trees) if pairs else 0),
        other_dropped=sum(others.values()),
        other_reasons=(f"{reasons}; {found.unreadable}" if found.unreadable else reasons) or None,
    )  # fmt: skip


def _contradictions(trees: Sequence[Tree]) -> int:
    """Pairs that are there in both orders, each counted once."""
    pairs = {(tree.group, tree.responses[0].text, tree.responses[1].text) for tree in trees}
    return sum((group, rejected, chosen) in pairs for group, chosen, rejected in pairs) // 2


def _gap(tree: Tree) -> float:
    chosen, rejected = (response.ratings for response in tree.responses)
    return fmean(chosen) - fmean(rejected) if chosen and rejected else math.nan


def _texts(found: Gathered, part: Part) -> list[tuple[str, str]]:
    """Chosen and rejected texts of a part; none where the data has no pairs."""
    trees = found.parts[part] if found.purpose == "pairs" else []
    return [(tree.responses[0].text, tree.responses[1].text) for tree in trees]


def _characters(found: Gathered) -> Figures:
    """Whether the longer response wins, in characters: a figure that depends on no tokenizer."""
    pairs = [(len(chosen), len(rejected)) for part in PARTS for chosen, rejected in _texts(found, part)]
    differences = np.array([chosen - rejected for chosen, rejected in pairs], dtype=np.int64)
    return longer_wins(differences, "longer_wins_characters") if pairs else {}


def _ratings(gaps: Floats) -> Ratings:
    known = gaps[np.isfinite(gaps)]
    return Ratings(len(known), int((known == 0).sum()), int((known < 0).sum()), quantiles(known))


def _vocabulary(tokenizer: Tokenizer | None, lengths: Lengths, rows: int | None) -> Figures:
    """The tokenizer's ids against the model's embedding rows."""
    if tokenizer is None:
        return {"vocabulary": None, "embedding_rows": rows, "ids_beyond_model": None, "tokens_beyond_model": None}
    ids = set(tokenizer.get_vocab().values())
    beyond = None if rows is None else sum(number >= rows for number in ids)
    return {"vocabulary": len(ids), "embedding_rows": rows, "ids_beyond_model": beyond,
            "tokens_beyond_model": None if rows is None else lengths.beyond}  # fmt: skip
