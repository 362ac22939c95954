"""How diverse are samples? Pooled token entropy, distinct n-grams, repetition; on ids, numpy only, no torch.

All models are compared at one token budget m, the smallest pool's: a longer pool is cut in a fixed order that takes
the first response of every prompt, then the second, and so on (`cut`). The entropy has the Miller-Madow correction
(1955): the plug-in value is too low by about (V_seen - 1) / (2m).

Intervals are bootstraps over prompts, whole groups with one draw for all models. A replicate repeats prompts, which
lowers every one of these figures by itself, so the replicates are moved to their own mean: only their spread is used.

Letters: m pooled tokens, G groups (prompts), V distinct n-grams seen, B replicates.
Left out: n-grams across two responses.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import sparse

from treeward.maths.statistics import Floats, Interval

REPLICATES = 1_000
CHUNK = 20
"""Replicates whose counts are held at a time."""
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
    """A difference to the first model, with its interval."""

    value: float
    low: float
    high: float


def miller_madow(counts: Floats) -> Floats:
    """The entropy of each column of counts, (V, B), plus (V_seen - 1) / (2m), in nats; 0 where there are none."""
    m, seen = np.maximum(counts.sum(0), 1.0), (counts > 0).sum(0)
    logs = np.log(np.where(counts > 0, counts, 1.0))
    return np.asarray(np.log(m) - (counts * logs).sum(0) / m + np.maximum(seen - 1, 0) / (2 * m))


def distinct(counts: Floats) -> Floats:
    """Unique n-grams as a share of all of them, by column of counts, (V, B); 0 where there are none."""
    return np.asarray((counts > 0).sum(0) / np.maximum(counts.sum(0), 1.0))


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
    weights = draws(len(names))
    found = {}
    for name, (n, statistic) in _STATISTICS.items():
        most = 1.0 if name.startswith("distinct") else math.inf
        tables = [_counts(part, n, names) for part in parts]
        values = [float(_replicated(t, np.ones((1, len(names))), statistic)[0]) for t in tables]
        replicates = np.stack([_replicated(t, weights, statistic) for t in tables])
        found[name] = (
            [spread(value, row, len(names), most) for value, row in zip(values, replicates, strict=True)],
            [
                gap(value - values[0], row - replicates[0], len(names))
                for value, row in zip(values, replicates, strict=True)
            ],
        )
    return found


def perplexity(nll: Sequence[ArrayLike], lengths: Sequence[ArrayLike], groups: Sequence[Sequence[str]]) -> tuple[
    list[Interval], list[Gap]
]:  # fmt: skip
    """exp(sum of NLL / sum of tokens) of every model, with intervals, and the gaps to the first.

    `nll` and `lengths` hold one number a response: the sum over its tokens under the start model, and their count.
    """
    names = sorted(set(groups[0]))
    weights = draws(len(names))
    values, rows = [], []
    for losses, counts, of in zip(nll, lengths, groups, strict=True):
        index = np.searchsorted(names, np.asarray(of))
        sums, tokens = (np.bincount(index, np.asarray(x, dtype=np.float64), len(names)) for x in (losses, counts))
        values.append(float(np.exp(sums.sum() / tokens.sum())))
        rows.append(np.exp(weights @ sums / (weights @ tokens)))
    return (
        [spread(value, row, len(names)) for value, row in zip(values, rows, strict=True)],
        [gap(value - values[0], row - rows[0], len(names)) for value, row in zip(values, rows, strict=True)],
    )


def draws(groups: int, replicates: int = REPLICATES, seed: int = 0) -> Floats:
    """How often each group stands in each bootstrap replicate, (B, G); the same for equal numbers of groups."""
    found = np.random.default_rng(seed).multinomial(groups, np.full(groups, 1 / groups), replicates)
    return np.asarray(found, dtype=np.float64)


def spread(value: float, replicates: Floats, n: int, most: float = math.inf) -> Interval:
    """The value with the replicates' 95 % spread about their own mean, within 0 and `most`; unknown for one group."""
    low, high = _reach(replicates, n)
    return Interval(float(value), float(np.maximum(0.0, value + low)), float(np.minimum(most, value + high)), n)


def gap(value: float, replicates: Floats, n: int) -> Gap:
    """A difference with the replicates' 95 % spread about their own mean; unknown for one group."""
    low, high = _reach(replicates, n)
    return Gap(float(value), float(value) + low, float(value) + high)


def _reach(replicates: Floats, n: int) -> tuple[float, float]:
    if n < 2:
        return math.nan, math.nan
    low, high = np.quantile(replicates - replicates.mean(), [0.025, 0.975])
    return float(low), float(high)


def _counts(pool: Pool, n: int, names: Sequence[str]) -> sparse.csr_array:
    """How often each n-gram stands in each group: (V, G)."""
    place = {name: number for number, name in enumerate(names)}
    known: dict[tuple[int, ...], int] = {}
    rows, columns = [], []
    for ids, group in zip(pool.responses, pool.groups, strict=True):
        for gram in ngrams(ids, n):
            rows.append(known.setdefault(gram, len(known)))
            columns.append(place[group])
    shape = (max(1, len(known)), len(names))
    return sparse.csr_array((np.ones(len(rows)), (rows, columns)), shape=shape)


def _replicated(table: sparse.csr_array, weights: Floats, statistic: "Statistic") -> Floats:
    parts = []
    for start in range(0, len(weights), CHUNK):
        counts = np.asarray(table @ weights[start : start + CHUNK].T)
        parts.append(statistic(counts))
    return np.concatenate(parts)


Statistic = Callable[[Floats], Floats]
_STATISTICS: Mapping[str, tuple[int, Statistic]] = {
    "token_entropy": (1, miller_madow), "distinct_1": (1, distinct), "distinct_2": (2, distinct),
    "distinct_3": (3, distinct),
}  # fmt: skip
