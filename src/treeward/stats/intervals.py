"""Intervals and tests, on numpy arrays; no torch, so that reports can use it.

Every interval is 95 %, every test two-sided. `groups` says which values belong to one prompt: each group counts once,
by the mean of its values, because samples of one prompt are not independent. Which interval when:

| values | of a mean | of a paired difference |
|---|---|---|
| 1, 0 and ties (1/2), one a group | `share`: Wilson's | `paired_share`: Tango's, with the exact McNemar test |
| any in [0, 1] | `share`: Wilson's at the effective n | `paired_share`: Tango's at the effective n |
| unbounded | `clustered_mean`: t | `paired_mean`: t |

The effective n is the number of 0/1 outcomes whose mean would vary as much as these values do (the inverse of Kish's
design effect, 1965). Where fewer than FEW groups differ from the most frequent value, their variance is not known:
bounded values then get the largest variance that their mean allows, and intervals of unbounded ones say that they are
not `reliable`. bench/calibration.py simulates what each of these covers; docs/calibration.md has the figures.

The interval of a difference excludes zero if and only if p < .05. No p is below 2^(1 - m), m the number of groups that
differ from zero: of the 2^m ways to flip their signs two are as far from zero as any outcome can be.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from treeward.errors import UserError

Z = 1.959963984540054
POWER = 0.8416212335729143
FEW = 10
"""Groups off the most frequent value below which their variance says nothing."""
SHOWN_BY = 7.906
"""Mean number of outcomes, all in one direction, at which six or more come with probability .8 (Poisson): the fewest
for which an exact two-sided test can give p < .05."""
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval and the number of independent units behind it.

    `reliable` is False where too few outcomes differ for the interval to cover what it should; `low` and `high` are NaN
    where nothing can be said.
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

    `reliable` is False where too few outcomes differ for the interval to cover what it should; `low`, `high` and
    `minimum_detectable` are NaN where nothing can be said.
    """

    value: float
    low: float
    high: float
    p: float
    test: str
    minimum_detectable: float
    reliable: bool = True

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of zero; the same as p < .05."""
        return self.low > 0 or self.high < 0


def wilson(successes: float, n: int) -> Interval:
    """Wilson's score interval of a share (1927); `successes` may hold halves, for ties."""
    if n <= 0:
        raise UserError(f"n is {n}; an interval needs at least one trial")
    low, high = _wilson_limits(successes / n, n, Z)
    return Interval(successes / n, low, high, n)


def by_group(values: ArrayLike, groups: ArrayLike) -> Floats:
    """The mean of each group's values, groups in sorted order."""
    array = np.asarray(values, dtype=np.float64)
    _, index = np.unique(np.asarray(groups), return_inverse=True)
    if len(index) != len(array):
        raise UserError(f"{len(array)} values but {len(index)} groups; there must be one group a value")
    counts = np.bincount(index)
    return np.asarray(np.bincount(index, weights=array) / counts, dtype=np.float64)


def off_mode(values: Floats) -> int:
    """How many groups' values differ from the most frequent one; those that differ by rounding alone are one value."""
    scale = float(np.abs(values).max())
    rounded = np.round(values / scale, 9) if scale else values
    return len(values) - int(np.unique(rounded, return_counts=True)[1].max())


def clustered_mean(values: ArrayLike, groups: ArrayLike) -> Interval:
    """Mean over groups of the group means of unbounded values, with the t interval.

    Where all groups have one mean, or there is one group, nothing is known of the others: low and high are NaN.
    """
    means = by_group(values, groups)
    n, mean, off = len(means), float(means.mean()), off_mode(means)
    if off == 0:
        return Interval(mean, math.nan, math.nan, n, reliable=False)
    half = float(stats.t.ppf(0.975, n - 1)) * float(means.std(ddof=1)) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n, reliable=off >= FEW)


def share(results: ArrayLike, groups: ArrayLike) -> Interval:
    """Mean over groups of the group means of values in [0, 1], with Wilson's interval: at n where each group has one
    result, 1, 0 or a tie, and at the effective n otherwise.
    """
    means = by_group(results, groups)
    mean = float(means.mean())
    n, q = (len(means), Z) if _outcomes(results, groups) else _effective(means, mean * (1 - mean))
    return Interval(mean, *_wilson_limits(mean, n, q), len(means))


def all_alike(change: float, n: int) -> tuple[float, float]:
    """Bounds of a mean change where n groups all change by the same amount, if others do so too or do not change: the
    amount times Wilson's interval of n out of n. Of no change, or of one group, nothing is known: NaN.
    """
    if change == 0 or n == 1:
        return math.nan, math.nan
    least = change * _wilson_limits(1.0, n, Z)[0]
    return min(change, least), max(change, least)


def paired_mean(before: ArrayLike, after: ArrayLike, groups: ArrayLike) -> Difference:
    """Mean over groups of after - before, of unbounded values, with the t interval and test of the group means.

    Where all groups differ by the same amount, the bounds are those of `all_alike`.
    """
    gain = by_group(np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64), groups)
    n, mean, off, test = len(gain), float(gain.mean()), off_mode(gain), "paired t by group"
    if off == 0:
        p = _floor(gain)
        return Difference(mean, *_agreeing(*all_alike(mean, n), p), p, test, math.nan, reliable=False)
    error = float(gain.std(ddof=1)) / math.sqrt(n)
    half = float(stats.t.ppf(0.975, n - 1)) * error
    p = max(float(2 * stats.t.sf(abs(mean) / error, n - 1)), _floor(gain))
    low, high = _agreeing(mean - half, mean + half, p)
    return Difference(mean, low, high, p, test, (Z + POWER) * error, reliable=off >= FEW)


def paired_share(before: ArrayLike, after: ArrayLike, groups: ArrayLike) -> Difference:
    """Mean over groups of after - before, of values in [0, 1] on the same rows, with Tango's score interval (1998).

    Where each group has one result, 1, 0 or a tie, the test is McNemar's exact one, and the interval is extended to
    zero where that does not exclude it. Otherwise interval and score test stand at the effective n.
    """
    a, b = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    if a.shape != b.shape:
        raise UserError(f"{len(a)} results before but {len(b)} after; a paired test needs the same rows")
    if _outcomes(a, groups) and _outcomes(b, groups):
        return mcnemar(a, b)
    gain = by_group(b - a, groups)
    up, down = float(gain.clip(0).mean()), float((-gain).clip(0).mean())
    mean = up - down
    n, q = _effective(gain, up + down - mean**2)
    z = abs(mean) / math.sqrt((up + down) / n) if up + down > 0 else 0.0
    tail = stats.norm.sf(z) if q == Z else stats.t.sf(z, len(gain) - 1)
    p = max(float(2 * tail), _floor(gain))
    low, high = _agreeing(*_tango_limits(up, down, n, q), p)
    return Difference(mean, low, high, p, "score test by group", _least(up, down, gain))


def mcnemar(before: ArrayLike, after: ArrayLike) -> Difference:
    """Exact McNemar test (1947) of two accuracies on the same pairs; each entry is 1 right, 0 wrong, 0.5 a tie.

    A tie on one side counts half a discordant pair: the exact test uses whole ones, rounded down to be cautious. The
    interval is Tango's score interval (Statistics in Medicine 17, 1998), extended to zero where p is at least .05.
    """
    a, b = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    if a.shape != b.shape:
        raise UserError(f"{len(a)} results before but {len(b)} after; a paired test needs the same rows")
    change = b - a
    up, down = float(change.clip(0).mean()), float((-change).clip(0).mean())
    p = _exact(int(change.clip(0).sum()), int((-change).clip(0).sum()))
    low, high = _agreeing(*_tango_limits(up, down, len(a), Z), p)
    return Difference(up - down, low, high, p, "mcnemar", _least(up, down, change))


def sign_test(results: ArrayLike) -> Difference:
    """Exact test of an accuracy against one half, for a start that is constant by construction; ties are left out.

    The interval is Wilson's, less one half, extended to zero where p is at least .05.
    """
    outcome = np.asarray(results, dtype=np.float64)
    p = _exact(int((outcome > 0.5).sum()), int((outcome < 0.5).sum()))
    interval = wilson(float(outcome.sum()), len(outcome))
    low, high = _agreeing(interval.low - 0.5, interval.high - 0.5, p)
    detectable = (Z + POWER) * 0.5 / math.sqrt(len(outcome))
    return Difference(interval.value - 0.5, low, high, p, "exact sign test against one half", detectable)


def against_half(results: ArrayLike, groups: ArrayLike) -> Difference:
    """An accuracy against one half: the sign test where each group has one result, 1, 0 or a tie; else Wilson's score
    test and interval at the effective n, by group.
    """
    if _outcomes(results, groups):
        return sign_test(results)
    means = by_group(results, groups)
    mean = float(means.mean())
    n, q = _effective(means, mean * (1 - mean))
    z = abs(mean - 0.5) / (0.5 / math.sqrt(n))
    tail = stats.norm.sf(z) if q == Z else stats.t.sf(z, len(means) - 1)
    p = max(float(2 * tail), _floor(means - 0.5))
    low, high = _wilson_limits(mean, n, q)
    low, high = _agreeing(low - 0.5, high - 0.5, p)
    test = "score test by group against one half"
    return Difference(mean - 0.5, low, high, p, test, (Z + POWER) * 0.5 / math.sqrt(n))


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


def _outcomes(results: ArrayLike, groups: ArrayLike) -> bool:
    """Whether every group has one result, and each is 1, 0 or a tie."""
    every, names = np.asarray(results, dtype=np.float64), np.asarray(groups)
    return len(np.unique(names)) == len(names) and bool(np.isin(every, (0.0, 0.5, 1.0)).all())


def _effective(values: Floats, largest: float) -> tuple[float, float]:
    """The effective n of groups' values whose variance is at most `largest`, and the quantile that goes with it.

    With fewer than FEW off the most frequent value: the number of groups, as for outcomes, and the normal quantile.
    """
    n = len(values)
    if off_mode(values) < FEW:
        return float(n), Z
    return n * largest / float(values.var(ddof=1)), float(stats.t.ppf(0.975, n - 1))


def _wilson_limits(mean: float, n: float, q: float) -> tuple[float, float]:
    centre = (mean + q**2 / (2 * n)) / (1 + q**2 / n)
    half = q * math.sqrt(mean * (1 - mean) / n + q**2 / (4 * n**2)) / (1 + q**2 / n)
    low = 0.0 if mean == 0 else max(0.0, centre - half)
    return low, 1.0 if mean == 1 else min(1.0, centre + half)


def _tango_limits(up: float, down: float, n: float, q: float) -> tuple[float, float]:
    """All differences d with (up - down - d)^2 <= q^2 v(d) / n, v the variance of the difference where it is d.

    `up` and `down` are the shares that changed to 1 and to 0. v(d) = 2 s + d (1 - d), s the most likely share that
    changed to 0 if the difference is d: the positive root of 2 s^2 + ((2 - up + down) d - up - down) s - down d (1 - d)
    (Tango 1998).
    """

    def outside(d: float) -> bool:
        b = (2 - up + down) * d - up - down
        s = (math.sqrt(max(0.0, b * b + 8 * down * d * (1 - d))) - b) / 4
        return (up - down - d) ** 2 * n > q**2 * (2 * s + d * (1 - d))

    limits = []
    for end in (-1.0, 1.0):
        inner, outer = up - down, end
        for _ in range(42):
            middle = (inner + outer) / 2
            inner, outer = (inner, middle) if outside(middle) else (middle, outer)
        limits.append(inner)
    return limits[0], limits[1]


def _exact(up: int, down: int) -> float:
    return float(stats.binomtest(up, up + down, 0.5).pvalue) if up + down else 1.0


def _floor(gain: Floats) -> float:
    """The least p that these differences can have: that of flipping the signs of those which are not zero."""
    return min(1.0, 2.0 ** (1 - int(np.count_nonzero(gain))))


def _least(up: float, down: float, gain: Floats) -> float:
    """The least difference of shares that as many groups show at 80 % power. Where few changed, each side counts one
    outcome more (Bonett and Price 2012), and it is at least what six changes in one direction ask for.
    """
    n = len(gain)
    if off_mode(gain) >= FEW:
        return (Z + POWER) * float(gain.std(ddof=1)) / math.sqrt(n)
    up, down = (up * n + 1) / (n + 2), (down * n + 1) / (n + 2)
    error = math.sqrt((up + down - (up - down) ** 2) / (n + 2))
    return min(1.0, max((Z + POWER) * error, SHOWN_BY / n))


def _agreeing(low: float, high: float, p: float) -> tuple[float, float]:
    """The interval, extended to zero where the test does not exclude it."""
    return (low, high) if p < 0.05 else (min(low, 0.0), max(high, 0.0))
