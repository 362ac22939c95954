"""Intervals and tests, on numpy arrays; no torch, so that reports can use it.

Every interval is 95 %, every test two-sided. `groups` says which values belong to one prompt: they are resampled and
summed together, because samples of one prompt are not independent.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Z = 1.959963984540054
POWER = 0.8416212335729143
REPLICATES = 10_000
SAME = 1e-12
"""Differences that vary by less than this share of their mean are one number and its rounding."""
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval and the number of independent units behind it.

    `reliable` is False where too few outcomes differ for the interval to hold what it says.
    """

    value: float
    low: float
    high: float
    n: int
    reliable: bool = True

    def __str__(self) -> str:
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}] (n={self.n})"


@dataclass(frozen=True)
class Difference:
    """A paired difference, after minus before, its interval, and the least difference this n shows at 80 % power.

    `reliable` is False where too few outcomes differ for the interval to hold what it says.
    """

    value: float
    low: float
    high: float
    p: float
    test: str
    minimum_detectable: float
    reliable: bool = True


def wilson(successes: float, n: int) -> Interval:
    """Wilson's score interval of a share (1927); `successes` may hold halves, for ties."""
    if n <= 0:
        raise ValueError(f"n is {n}; an interval needs at least one trial")
    share = successes / n
    centre = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z * math.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2)) / (1 + Z**2 / n)
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return Interval(share, low, high, n)


def by_group(values: ArrayLike, groups: ArrayLike) -> Floats:
    """The mean of each group's values, groups in sorted order."""
    array = np.asarray(values, dtype=np.float64)
    _, index = np.unique(np.asarray(groups), return_inverse=True)
    if len(index) != len(array):
        raise ValueError(f"{len(array)} values but {len(index)} groups; there must be one group a value")
    counts = np.bincount(index)
    return np.asarray(np.bincount(index, weights=array) / counts, dtype=np.float64)


def clustered_mean(values: ArrayLike, groups: ArrayLike) -> Interval:
    """Mean over groups of the group means, with the standard error clustered by group (t interval)."""
    means = by_group(values, groups)
    return _t_interval(means)


def share(results: ArrayLike, groups: ArrayLike) -> Interval:
    """The mean of results in [0, 1]. Where every group is single its interval is Wilson's; else the clustered mean's,
    kept within 0 and 1, and where all groups have one mean, which gives that one no width, Wilson's over the groups.
    """
    means = by_group(results, groups)
    if _single(groups) or np.ptp(means) == 0:
        return wilson(float(means.sum()), len(means))
    found = _t_interval(means)
    return Interval(found.value, max(0.0, found.low), min(1.0, found.high), found.n)


def paired_bootstrap(before: ArrayLike, after: ArrayLike, groups: ArrayLike, seed: int = 0) -> Difference:
    """Percentile bootstrap of mean(after - before), whole groups resampled, the same draw for both sides.

    The p value is the t test's on the group differences; where they are all one and the same it is the sign-flip
    test's, 2^(1 - n), and 1 when that one is zero.
    """
    gain = by_group(np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64), groups)
    n = len(gain)
    draws = np.random.default_rng(seed)
    means = np.concatenate([gain[draws.integers(0, n, (100, n))].mean(1) for _ in range(REPLICATES // 100)])
    low, high = np.quantile(means, [0.025, 0.975])
    spread = float(gain.std(ddof=1)) if n > 1 else math.nan
    if spread > SAME * abs(float(gain.mean())):
        p = float(stats.ttest_1samp(gain, 0.0).pvalue)
    else:
        p = 2.0 ** (1 - n) if gain.any() else 1.0
    detectable = (Z + POWER) * spread / math.sqrt(n)
    return Difference(float(gain.mean()), float(low), float(high), p, "paired bootstrap by group", detectable)


def mcnemar(before: ArrayLike, after: ArrayLike) -> Difference:
    """Exact McNemar test of two accuracies on the same pairs; each entry is 1 right, 0 wrong, 0.5 a tie.

    A tie on one side counts half a discordant pair: the exact test uses whole ones, rounded down to be cautious.
    The interval of the difference is the paired normal one.
    """
    a, b = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    if a.shape != b.shape:
        raise ValueError(f"{len(a)} results before but {len(b)} after; McNemar's test needs the same pairs")
    change = b - a
    gained, lost = int(change.clip(0).sum()), int((-change).clip(0).sum())
    p = float(stats.binomtest(gained, gained + lost, 0.5).pvalue) if gained + lost else 1.0
    n = len(a)
    error = float(change.std(ddof=1)) / math.sqrt(n) if n > 1 else math.nan
    mean = float(change.mean())
    return Difference(mean, mean - Z * error, mean + Z * error, p, "mcnemar", (Z + POWER) * error)


def sign_test(results: ArrayLike) -> Difference:
    """Exact test of an accuracy against one half, for a start that is constant by construction; ties are left out."""
    outcome = np.asarray(results, dtype=np.float64)
    right, wrong = int((outcome > 0.5).sum()), int((outcome < 0.5).sum())
    p = float(stats.binomtest(right, right + wrong, 0.5).pvalue) if right + wrong else 1.0
    interval = wilson(float(outcome.sum()), len(outcome))
    detectable = (Z + POWER) * 0.5 / math.sqrt(len(outcome))
    return Difference(
        interval.value - 0.5, interval.low - 0.5, interval.high - 0.5, p, "exact sign test against one half", detectable
    )


def paired_share(before: ArrayLike, after: ArrayLike, groups: ArrayLike) -> Difference:
    """Two accuracies on the same rows: McNemar where every group is single, else the paired bootstrap by group."""
    return mcnemar(before, after) if _single(groups) else paired_bootstrap(before, after, groups)


def against_half(results: ArrayLike, groups: ArrayLike) -> Difference:
    """An accuracy against one half: the sign test where every group is single, else the paired bootstrap by group."""
    outcome = np.asarray(results, dtype=np.float64)
    half = np.full_like(outcome, 0.5)
    return sign_test(outcome) if _single(groups) else paired_bootstrap(half, outcome, groups)


def holm(p: Sequence[float]) -> list[float]:
    """p values of several tests, corrected by Holm's step-down method (1979), in order.

    Rejecting where the corrected value is below a level makes any false rejection at most that likely, however the
    tests depend on one another.
    """
    order = sorted(range(len(p)), key=lambda place: p[place])
    corrected, largest = [0.0] * len(p), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, p[place] * (len(p) - rank)))
        corrected[place] = largest
    return corrected


def spearman(a: ArrayLike, b: ArrayLike) -> float:
    """Rank correlation; NaN where one side is constant."""
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if x.std() == 0 or y.std() == 0:
        return math.nan
    result: Any = stats.spearmanr(x, y)
    return float(result.statistic)


def _single(groups: ArrayLike) -> bool:
    every = np.asarray(groups)
    return len(np.unique(every)) == len(every)


def _t_interval(means: Floats) -> Interval:
    n = len(means)
    if n < 2:
        return Interval(float(means.mean()), math.nan, math.nan, n)
    half = float(stats.t.ppf(0.975, n - 1)) * float(means.std(ddof=1)) / math.sqrt(n)
    return Interval(float(means.mean()), float(means.mean()) - half, float(means.mean()) + half, n)
