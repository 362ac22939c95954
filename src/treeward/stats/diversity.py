"""Diversity of samples.

Self-BLEU-4 among the samples of one prompt: how alike they are, by sacrebleu.

Each sample is scored against the others of its prompt as references, and the scores are averaged. Tokens are ids, so no
tokeniser comes between; n-grams up to 4, smoothing "exp" (an n-gram order without a match counts half of what the one
before would), orders longer than the response left out. 0 to 1; higher is less diverse.


---
How diverse are samples? Pooled token entropy, distinct n-grams, repetition; on ids, numpy only, no torch.

All models are compared at one token budget m, the smallest pool's: a longer pool is cut in a fixed order that takes
the first response of every prompt, then the second, and so on (`cut`). The entropy has the Miller-Madow correction
(1955): the plug-in value is too low by about (V_seen - 1) / (2m).

Intervals are of what the figure would be on average, at this budget and number of prompts. Their standard error is the
jackknife's over prompts, every model losing the same prompt at a time: for any such figure its variance is on average
too large rather than too small (Efron and Stein 1981), whatever the bias of the figure, where a bootstrap that repeats
prompts is off on either side. bench/calibration.py simulates what they cover.

Letters: m pooled tokens, G groups (prompts), V distinct n-grams seen.
Left out: n-grams across two responses.

"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sacrebleu.metrics.bleu import BLEU
from scipy import stats

from treeward.errors import UserError
from treeward.stats.intervals import FEW, Floats, Interval, all_alike, off_mode


def self_bleu(samples: Sequence[Sequence[int]]) -> float:
    """The mean over samples of BLEU-4 against the others; 1 for identical ones.

    Raises:
        UserError: there are fewer than two samples.
    """
    if len(samples) < 2:
        raise UserError(f"self-BLEU is given {len(samples)} samples of a prompt; it needs two, so set samples to 2")
    bleu = BLEU(tokenize="none", smooth_method="exp", effective_order=True)
    lines = [" ".join(map(str, ids)) for ids in samples]
    scores = [bleu.sentence_score(line, lines[:i] + lines[i + 1 :]).score for i, line in enumerate(lines)]
    return sum(scores) / len(scores) / 100


Ids = Sequence[int]


@dataclass(frozen=True)
class Pool:
    """The responses of one model, and the prompt (group) of each."""

    responses: Sequence[Ids]
    groups: Sequence[str]

    @property
    def tokens(self) -> int:
        """m, the number of tokens."""
        return sum(map(len, self.responses))


@dataclass(frozen=True)
class Gap:
    """A difference to the first model, with its interval; `reliable` and NaN bounds as those of an `Interval`."""

    value: float
    low: float
    high: float
    reliable: bool = True


@dataclass(frozen=True)
class Counts:
    """How often each n-gram stands in each group, as lists of the pairs that occur: n-gram, group, count."""

    gram: NDArray[np.intp]
    group: NDArray[np.intp]
    count: Floats
    groups: int

    def without_each(self, of_grams: Callable[[Floats], Floats]) -> tuple[float, Floats]:
        """The sum of a function of the n-grams' counts, and that sum without each group, (G,)."""
        total = np.asarray(np.bincount(self.gram, self.count), dtype=np.float64)
        lost = of_grams(total[self.gram] - self.count) - of_grams(total[self.gram])
        whole = float(of_grams(total).sum())
        return whole, np.asarray(whole + np.bincount(self.group, lost, self.groups), dtype=np.float64)

    @property
    def tokens(self) -> tuple[float, Floats]:
        """The number of n-grams, and that number without each group."""
        return self.without_each(lambda count: count)

    @property
    def seen(self) -> tuple[float, Floats]:
        """V, and V without each group."""
        return self.without_each(lambda count: (count > 0).astype(np.float64))


def miller_madow(counts: Counts) -> tuple[float, Floats]:
    """Entropy of the n-grams plus (V_seen - 1) / (2m), in nats, and that without each group; 0 where there are none."""
    (m, m_less), (seen, seen_less) = counts.tokens, counts.seen
    logs, logs_less = counts.without_each(lambda c: c * np.log(np.maximum(c, 1.0)))

    def entropy(tokens: Floats, grams: Floats, total: Floats) -> Floats:
        size = np.maximum(tokens, 1.0)
        return np.asarray(np.log(size) - total / size + np.maximum(grams - 1, 0.0) / (2 * size))

    whole = entropy(np.array(m), np.array(seen), np.array(logs))
    return float(whole), entropy(m_less, seen_less, logs_less)


def distinct(counts: Counts) -> tuple[float, Floats]:
    """Unique n-grams as a share of all of them, and that without each group; 0 where there are none."""
    (m, m_less), (seen, seen_less) = counts.tokens, counts.seen
    return seen / max(m, 1.0), seen_less / np.maximum(m_less, 1.0)


def repetition(ids: Ids, n: int = 4) -> float:
    """The share of a response's n-grams that stand in it before; 0 where it has none."""
    grams = ngrams(ids, n)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def ngrams(ids: Ids, n: int) -> list[tuple[int, ...]]:
    """The n-grams of a response, in order."""
    return [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]


def cut(pool: Pool, budget: int) -> Pool:
    """The first `budget` tokens of a pool: the first response of every group, then the second, and so on.

    Groups stand in sorted order, responses of a group in their own; the last response may be cut.
    """
    taken: Counter[str] = Counter()
    place = []
    for number, group in enumerate(pool.groups):
        place.append((taken[group], group, number))
        taken[group] += 1
    responses, groups, left = [], [], budget
    for _, group, number in sorted(place):
        if left > 0:
            part = pool.responses[number][:left]
            left -= len(part)
            responses.append(part)
            groups.append(group)
    return Pool(responses, groups)


def measured(pools: Sequence[Pool]) -> dict[str, tuple[list[Interval], list[Gap]]]:
    """`token_entropy` and `distinct_1` to `distinct_3` of every model at the smallest pool's budget.

    Each with one interval a model and its gap to the first model; n is the number of prompts.
    """
    assert len({frozenset(pool.groups) for pool in pools}) == 1, "all models answered the same prompts"
    names = sorted(set(pools[0].groups))
    budget = min(pool.tokens for pool in pools)
    parts = [cut(pool, budget) for pool in pools]
    figures = {}
    for name, (n, statistic) in _STATISTICS.items():
        values = [statistic(_counts(part, n, names)) for part in parts]
        figures[name] = _jackknifed(values, 1.0 if name.startswith("distinct") else math.inf)
    return figures


def perplexity(nll: Sequence[ArrayLike], lengths: Sequence[ArrayLike], groups: Sequence[Sequence[str]]) -> tuple[
    list[Interval], list[Gap]
]:  # fmt: skip
    """exp(sum of NLL / sum of tokens) of every model, with intervals, and the gaps to the first.

    `nll` and `lengths` hold one number a response: the sum over its tokens under the start model, and their count.
    """
    names = sorted(set(groups[0]))
    values = []
    for losses, counts, of in zip(nll, lengths, groups, strict=True):
        index = np.searchsorted(names, np.asarray(of))
        sums, tokens = (np.bincount(index, np.asarray(x, dtype=np.float64), len(names)) for x in (losses, counts))
        rest = np.maximum(tokens.sum() - tokens, 1e-300)
        values.append((math.exp(sums.sum() / tokens.sum()), np.exp((sums.sum() - sums) / rest)))
    return _jackknifed(values, math.inf)


def _jackknifed(values: Sequence[tuple[float, Floats]], most: float) -> tuple[list[Interval], list[Gap]]:
    """Intervals of values given with those without each group, within 0 and `most`, and of the gaps to the first."""
    n = len(values[0][1])
    intervals, gaps = [], []
    for value, less in values:
        low, high, reliable = _jackknife(value, less)
        intervals.append(Interval(value, max(low, 0.0), min(high, most), n, reliable))
        gap = value - values[0][0]
        low, high, reliable = _jackknife(gap, less - values[0][1])
        gaps.append(Gap(gap, *((low, high) if reliable or low < high else all_alike(gap, n)), reliable))
    return intervals, gaps


def _jackknife(value: float, less: Floats) -> tuple[float, float, bool]:
    """The jackknife's 95 % interval from the values without each group, (G,), and whether it is reliable; NaN where
    every group makes the same difference, since nothing is known of others then.
    """
    n, off = len(less), off_mode(less)
    if off == 0:
        return math.nan, math.nan, False
    half = float(stats.t.ppf(0.975, n - 1)) * math.sqrt((n - 1) / n * float(((less - less.mean()) ** 2).sum()))
    return value - half, value + half, off >= FEW


def _counts(pool: Pool, n: int, names: Sequence[str]) -> Counts:
    """How often each n-gram stands in each group."""
    place = {name: number for number, name in enumerate(names)}
    numbers: dict[tuple[int, ...], int] = {}
    grams, groups = [], []
    for ids, group in zip(pool.responses, pool.groups, strict=True):
        for gram in ngrams(ids, n):
            grams.append(numbers.setdefault(gram, len(numbers)))
            groups.append(place[group])
    cells, count = np.unique(np.array(grams, dtype=np.intp) * len(names) + np.array(groups, dtype=np.intp),
                             return_counts=True)  # fmt: skip
    return Counts(cells // len(names), cells % len(names), count.astype(np.float64), len(names))


Statistic = Callable[[Counts], tuple[float, Floats]]
_STATISTICS: Mapping[str, tuple[int, Statistic]] = {
    "token_entropy": (1, miller_madow), "distinct_1": (1, distinct), "distinct_2": (2, distinct),
    "distinct_3": (3, distinct),
}  # fmt: skip
