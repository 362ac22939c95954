"""What is in a data set, before anything is trained on it: rows, losses, splits, leaks, ratings, lengths, a word floor.

Faults of the data are counted here where training would drop or refuse them; only a source or a column that is not
there is an error. Pairs are counted as training would use them, before any cut.
"""

import math
from array import array
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import numpy as np

from treeward.data.floor import Floor, floor
from treeward.data.gather import Gathered, mark
from treeward.data.lengths import (
    WORDS,
    Figures,
    Ints,
    Lengths,
    bars,
    bars_of,
    describe,
    longer_wins,
    measure,
    quantiles,
)
from treeward.data.prepare import NO_FAULT, DataConfig
from treeward.data.shapes import Purpose
from treeward.data.splits import PARTS, Part
from treeward.stats.intervals import Floats
from treeward.trees.text import Tree
from treeward.trees.tokens import Tokenizer

FLOOR_PAIRS = 20_000
"""The word floor sees this many pairs of a part, the first ones."""

BRANCHES: Mapping[str, int] = {"pairs": 2, "sft": 1, "prompts": 0}


@dataclass(frozen=True)
class Counts:
    """Rows, prompts, splits and faults. A prompt is a group: its words, white space and capitals apart.

    `duplicates` are rows whose texts stood in an earlier row; `contradictions` pairs that are there with both labels;
    `held_out_leaked` held-out rows whose prompt is also in another part; `no_fault` rows that are dropped without a
    fault of the data, such as ties.
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
    """All figures of a source. `tokens` holds one flat mapping a tokenizer, the first one's names also stand alone."""

    data: DataConfig
    format: str
    purpose: Purpose
    columns: str
    unread: tuple[str, ...]
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
            "columns": self.columns, "columns_not_read": ", ".join(self.unread) or None,
            "max_prompt": self.data.max_prompt, "max_response": self.data.max_response, **asdict(self.counts),
            "rated_pairs": self.ratings.rated_pairs, "ties": self.ratings.ties,
            "rating_disagreements": self.ratings.rating_disagreements, "mean_rating_gap": gaps["mean"],
            **{f"rating_gap_{key}": value for key, value in gaps.items() if key != "mean"},
            **self.characters, "floor": beaten and beaten.accuracy.value, "floor_low": beaten and beaten.accuracy.low,
            "floor_high": beaten and beaten.accuracy.high, "floor_n": beaten and beaten.accuracy.n,
            "floor_pairs": beaten and beaten.pairs, "floor_words": beaten and beaten.words,
            **self.tokens[0], "tokens": list(self.tokens),
        }  # fmt: skip


def inspect(
    config: DataConfig,
    gathered: Gathered,
    tokenizers: Mapping[str, Tokenizer],
    embedding_rows: int | None = None,
    progress: Callable[[Collection[Tree], str], Iterable[Tree]] = lambda trees, what: trees,
) -> Inspection:
    """The figures of rows gathered with `config`, lengths under each tokenizer by name (in words, if there is none).

    `embedding_rows` are those of the model that is to be trained; `progress` may show how far the counting is.

    Raises:
        UserError: a tokenizer can neither open an empty prompt nor end a response.
    """
    trees = gathered.trees
    seen = glance(gathered)
    gaps = seen.gaps
    budgets = (config.max_prompt, config.max_response)
    tokens: list[Figures] = []
    histograms: dict[str, Any] = {"rating_gap": bars(gaps[np.isfinite(gaps)])}
    for name, tokenizer in (tokenizers or {WORDS: None}).items():
        lengths = measure(progress(trees, f"tokens of {name}"), BRANCHES[gathered.purpose], tokenizer, embedding_rows)
        tokens.append({"tokenizer": name, **_vocabulary(tokenizer, lengths, embedding_rows),
                       **describe(lengths, gaps, seen.groups, budgets)})  # fmt: skip
        histograms[name] = bars_of(lengths)
    characters = longer_wins(seen.characters, seen.groups, "longer_wins_characters") if len(seen.characters) else {}
    return Inspection(
        config, gathered.format, gathered.purpose, gathered.layout, gathered.unread,
        _counts(gathered, seen.contradictions), _ratings(gaps), characters,
        floor(seen.texts["train"], *seen.held_out), tuple(tokens), histograms,
    )  # fmt: skip


def _counts(found: Gathered, contradictions: int) -> Counts:
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
        contradictions=found.both_labels or contradictions,
        no_fault=sum(n for reason, n in found.dropped.items() if reason in NO_FAULT),
        other_dropped=sum(others.values()),
        other_reasons=(f"{reasons}; {found.unreadable}" if found.unreadable else reasons) or None,
    )  # fmt: skip


@dataclass(frozen=True)
class Glance:
    """What one pass over the pairs says: rating gaps, length differences in characters and the prompt's number by pair,
    how many are there in both orders, and the texts that the word floor is fitted to and measured on, FLOOR_PAIRS of
    each at most, with their prompts' numbers.
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


def glance(found: Gathered) -> Glance:
    """Go through the pairs once; nothing is found where the data has none."""
    gaps, characters, groups = array("d"), array("q"), array("q")
    texts: dict[Part, list[tuple[str, str]]] = {part: [] for part in PARTS}
    text_groups: dict[Part, list[int]] = {part: [] for part in PARTS}
    numbers: dict[bytes, int] = {}
    forward: set[bytes] = set()
    backward: set[bytes] = set()
    for part, tree in found.parted() if found.purpose == "pairs" else ():
        chosen, rejected = (response.text for response in tree.responses)
        gaps.append(_gap(tree))
        characters.append(len(chosen) - len(rejected))
        groups.append(numbers.setdefault(mark(tree.group), len(numbers)))
        forward.add(mark(repr((tree.group, chosen, rejected))))
        backward.add(mark(repr((tree.group, rejected, chosen))))
        if len(texts[part]) < FLOOR_PAIRS:
            texts[part].append((chosen, rejected))
            text_groups[part].append(groups[-1])
    return Glance(
        np.array(gaps), np.array(characters, dtype=np.int64), np.array(groups, dtype=np.int64),
        len(forward & backward) // 2, texts, text_groups,
    )  # fmt: skip


def _gap(tree: Tree) -> float:
    chosen, rejected = (response.ratings for response in tree.responses)
    return fmean(chosen) - fmean(rejected) if chosen and rejected else math.nan


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
