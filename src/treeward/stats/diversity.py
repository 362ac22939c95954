"""Diversity of samples, on token ids: pooled entropy, distinct n-grams, perplexity, repetition and self-BLEU.

Pooled figures depend on the number of tokens, so all models are compared at one token budget m, that of the smallest
pool. A longer pool is cut: the first response of every prompt is kept first, then the second, and so on (`cut`). The
entropy has the Miller-Madow correction (1955), because the plug-in value is too low by about (V - 1) / (2m).

The intervals are jackknife intervals over prompts, of the expected figure at this budget and number of prompts. In the
interval of a difference, both models leave out the same prompt at a time. For such figures the jackknife variance is
too large rather than too small on average (Efron and Stein 1981), whereas a bootstrap repeats prompts, which biases a
diversity. bench/calibration.py simulates the coverage.

Notation: m pooled tokens, G groups (prompts), V distinct n-grams. Left out: n-grams across two responses.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sacrebleu.metrics.bleu import BLEU
from scipy import stats

from treeward.errors import UserError
from treeward.stats.intervals import FEW, Floats, Interval, constant_change_bounds, off_mode

Ids: TypeAlias = Sequence[int]
"""The token ids of a response."""

# --------------------------------------------------------------------------- one response, or one prompt


def ngrams(ids: Ids, n: int) -> list[tuple[int, ...]]:
    """The n-grams of a response, in order."""
    return [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]


def repetition(ids: Ids, n: int = 4) -> float:
    """The share of a response's n-grams that have occurred in it before, in [0, 1); 0 if it has no n-gram."""
    grams = ngrams(ids, n)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def self_bleu(samples: Sequence[Ids]) -> float:
    """Self-BLEU-4 of the samples of one prompt, by sacrebleu, in [0, 1]; higher is less diverse, 1 if all are equal.

    Each sample is scored with the other samples as references, and the scores are averaged. Tokens are ids. An n-gram
    order without a match counts half of the previous such order (smoothing "exp"); orders longer than the response are
    left out.

    Raises:
        UserError: There are fewer than two samples.
    """
    if len(samples) < 2:
        raise UserError(f"self-BLEU is given {len(samples)} samples of a prompt; it needs two, so set samples to 2")
    bleu = BLEU(tokenize="none", smooth_method="exp", effective_order=True)
    lines = [" ".join(map(str, ids)) for ids in samples]
    scores = [bleu.sentence_score(line, lines[:i] + lines[i + 1 :]).score for i, line in enumerate(lines)]
    return sum(scores) / len(scores) / 100


# --------------------------------------------------------------------------- the pooled responses of a model


@dataclass(frozen=True)
class Pool:
    """The responses of one model, and the group (prompt) of each."""

    responses: Sequence[Ids]
    groups: Sequence[str]

    @property
    def tokens(self) -> int:
        """m, the number of tokens."""
        return sum(map(len, self.responses))


def cut(pool: Pool, budget: int) -> Pool:
    """The first `budget` tokens of a pool: the first response of every group, then the second, and so on.

    Groups are sorted; the responses of a group keep their order. The last response may be cut short.
    """
    responses_so_far: Counter[str] = Counter()
    order = []
    for index, group in enumerate(pool.groups):
        order.append((responses_so_far[group], group, index))
        responses_so_far[group] += 1
    responses, groups, remaining = [], [], budget
    for _, group, index in sorted(order):
        if remaining > 0:
            ids = pool.responses[index][:remaining]
            remaining -= len(ids)
            responses.append(ids)
            groups.append(group)
    return Pool(responses, groups)


@dataclass(frozen=True)
class Counts:
    """How often each n-gram occurs in each group, as a sparse table.

    Attributes:
        gram: The index of the n-gram, for each nonzero cell.
        group: The index of the group, for each nonzero cell.
        count: The count of each nonzero cell.
        groups: G.
    """

    gram: NDArray[np.intp]
    group: NDArray[np.intp]
    count: Floats
    groups: int

    def without_each(self, of_counts: Callable[[Floats], Floats]) -> tuple[float, Floats]:
        """The sum over n-grams of a function of their counts, and this sum without each group (G,)."""
        total = np.asarray(np.bincount(self.gram, self.count), dtype=np.float64)
        change = of_counts(total[self.gram] - self.count) - of_counts(total[self.gram])
        whole = float(of_counts(total).sum())
        return whole, np.asarray(whole + np.bincount(self.group, change, self.groups), dtype=np.float64)

    @property
    def tokens(self) -> tuple[float, Floats]:
        """The number of n-grams, and that without each group."""
        return self.without_each(lambda count: count)

    @property
    def distinct(self) -> tuple[float, Floats]:
        """V, and V without each group."""
        return self.without_each(lambda count: (count > 0).astype(np.float64))


def miller_madow(counts: Counts) -> tuple[float, Floats]:
    """The entropy of the n-grams plus (V - 1) / (2m), in nats, and that without each group; 0 if there are none."""
    (m, m_without), (v, v_without) = counts.tokens, counts.distinct
    logs, logs_without = counts.without_each(lambda c: c * np.log(np.maximum(c, 1.0)))

    def entropy(tokens: Floats, grams: Floats, total: Floats) -> Floats:
        size = np.maximum(tokens, 1.0)
        return np.asarray(np.log(size) - total / size + np.maximum(grams - 1, 0.0) / (2 * size))

    whole = entropy(np.array(m), np.array(v), np.array(logs))
    return float(whole), entropy(m_without, v_without, logs_without)


def distinct(counts: Counts) -> tuple[float, Floats]:
    """Distinct-n, V over the number of n-grams, and that without each group; 0 if there are none."""
    (m, m_without), (v, v_without) = counts.tokens, counts.distinct
    return v / max(m, 1.0), v_without / np.maximum(m_without, 1.0)


def _counts(pool: Pool, n: int, names: Sequence[str]) -> Counts:
    """The counts of a pool's n-grams; `names` are the groups, in the order of their indices."""
    group_index = {name: index for index, name in enumerate(names)}
    gram_index: dict[tuple[int, ...], int] = {}
    grams, groups = [], []
    for ids, group in zip(pool.responses, pool.groups, strict=True):
        for gram in ngrams(ids, n):
            grams.append(gram_index.setdefault(gram, len(gram_index)))
            groups.append(group_index[group])
    cell_of_gram = np.array(grams, dtype=np.intp) * len(names) + np.array(groups, dtype=np.intp)
    cells, count = np.unique(cell_of_gram, return_counts=True)
    return Counts(cells // len(names), cells % len(names), count.astype(np.float64), len(names))


# --------------------------------------------------------------------------- several models compared


@dataclass(frozen=True)
class Gap:
    """A model's figure minus the first model's, with its 95 % interval; bounds and `reliable` as in `Interval`."""

    value: float
    low: float
    high: float
    reliable: bool = True


FIGURES: Mapping[str, tuple[int, Callable[[Counts], tuple[float, Floats]]]] = {
    "token_entropy": (1, miller_madow),
    "distinct_1": (1, distinct),
    "distinct_2": (2, distinct),
    "distinct_3": (3, distinct),
}
"""The figures of `measure`: the length of the n-grams, and the statistic of their counts."""


def measure(pools: Sequence[Pool]) -> dict[str, tuple[list[Interval], list[Gap]]]:
    """The `FIGURES` of every model at the budget of the smallest pool.

    Args:
        pools: One pool per model. All models have answered the same prompts.

    Returns:
        For each figure, one interval per model (n is the number of prompts) and each model's gap to the first.
    """
    assert len({frozenset(pool.groups) for pool in pools}) == 1, "all models answered the same prompts"
    names = sorted(set(pools[0].groups))
    budget = min(pool.tokens for pool in pools)
    equal_pools = [cut(pool, budget) for pool in pools]
    figures = {}
    for name, (n, statistic) in FIGURES.items():
        values = [statistic(_counts(pool, n, names)) for pool in equal_pools]
        figures[name] = _jackknifed(values, 1.0 if name.startswith("distinct") else math.inf)
    return figures


def perplexity(
    nll: Sequence[ArrayLike], lengths: Sequence[ArrayLike], groups: Sequence[Sequence[str]]
) -> tuple[list[Interval], list[Gap]]:
    """The perplexity of every model's samples under the start model, exp(sum of NLL / number of tokens).

    Args:
        nll: For each model, the NLL of each response under the start model, summed over its tokens, in nats.
        lengths: For each model, the number of tokens of each response.
        groups: For each model, the group of each response.

    Returns:
        One interval per model, and each model's gap to the first.
    """
    names = sorted(set(groups[0]))
    values = []
    for response_nll, response_lengths, response_groups in zip(nll, lengths, groups, strict=True):
        index = np.searchsorted(names, np.asarray(response_groups))
        sums, tokens = (
            np.bincount(index, np.asarray(column, dtype=np.float64), len(names))
            for column in (response_nll, response_lengths)
        )
        other_tokens = np.maximum(tokens.sum() - tokens, 1e-300)
        values.append((math.exp(sums.sum() / tokens.sum()), np.exp((sums.sum() - sums) / other_tokens)))
    return _jackknifed(values, math.inf)


def _jackknifed(values: Sequence[tuple[float, Floats]], largest: float) -> tuple[list[Interval], list[Gap]]:
    """The intervals of the models' figures, within [0, `largest`], and of their gaps to the first model.

    `values` has the figure of each model, and the figure without each group (G,).
    """
    n = len(values[0][1])
    intervals, gaps = [], []
    for value, without in values:
        low, high, reliable = _jackknife(value, without)
        intervals.append(Interval(value, max(low, 0.0), min(high, largest), n, reliable))
        gap = value - values[0][0]
        low, high, reliable = _jackknife(gap, without - values[0][1])
        if not (reliable or low < high):
            low, high = constant_change_bounds(gap, n)
        gaps.append(Gap(gap, low, high, reliable))
    return intervals, gaps


def _jackknife(value: float, without: Floats) -> tuple[float, float, bool]:
    """The jackknife's 95 % interval from the values without each group (G,), and whether it is reliable.

    The bounds are NaN if leaving out any group makes the same difference, because the variance is then unknown.
    """
    n, off = len(without), off_mode(without)
    if off == 0:
        return math.nan, math.nan, False
    half = float(stats.t.ppf(0.975, n - 1)) * math.sqrt((n - 1) / n * float(((without - without.mean()) ** 2).sum()))
    return value - half, value + half, off >= FEW
