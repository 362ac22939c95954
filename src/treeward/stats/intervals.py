"""Confidence intervals and tests of means, shares and paired differences.

Every interval is a 95 % interval and every test is two-sided. `groups` gives the prompt (group) of each value. Samples
of one prompt are not independent, so each group counts once, with the mean of its values. Which function for which
values:

| values | of a mean | of a paired difference |
|---|---|---|
| 1, 0 and ties (1/2), one per group | `share`: Wilson's | `paired_share`: Tango's, with the exact McNemar test |
| any in [0, 1] | `share`: Wilson's at the effective n | `paired_share`: Tango's at the effective n |
| unbounded | `clustered_mean`: t | `paired_mean`: t |

The effective n is the number of 0/1 outcomes whose mean has the same variance as the mean of these values (n over
Kish's design effect, 1965). If fewer than `FEW` groups differ from the most frequent value, the variance cannot be
estimated. Bounded values then get the largest variance that their mean allows; intervals of unbounded values are marked
as not `reliable`. bench/calibration.py simulates the coverage of each interval; docs/calibration.md has the results.

The interval of a difference excludes zero if and only if p < .05. No p is below 2^(1 - m), where m is the number of
groups whose difference is not zero: it is the smallest p of a sign-flip test on m groups.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from treeward.errors import UserError

Z = 1.959963984540054
"""The 97.5 % quantile of the normal distribution."""
POWER = 0.8416212335729143
"""The 80 % quantile of the normal distribution, for 80 % power."""
FEW = 10
"""If fewer groups than this differ from the most frequent value, the variance cannot be estimated."""
SHOWN_BY = 7.906
"""The Poisson mean at which six or more events have probability .8. Six changes, all in one direction, are the fewest
for which an exact two-sided test can give p < .05."""
Floats: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval.

    Attributes:
        value: The estimate.
        low: Lower bound; NaN if there is no interval (one group, or all groups equal).
        high: Upper bound; NaN likewise.
        n: The number of groups.
        reliable: False if too few groups differ for 95 % coverage.
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
    """A paired difference, after minus before, with its 95 % interval and test.

    Attributes:
        value: The estimate.
        low: Lower bound; NaN if there is no interval.
        high: Upper bound; NaN likewise.
        p: The two-sided p value.
        test: The name of the test.
        minimum_detectable: The smallest difference that this n detects with 80 % power; NaN if unknown.
        reliable: False if too few groups differ for 95 % coverage.
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
        """Whether the interval is on one side of zero, which is equivalent to p < .05."""
        return self.low > 0 or self.high < 0


def wilson(successes: float, n: int) -> Interval:
    """Wilson's score interval of a share (1927); `successes` may be fractional, because ties count one half."""
    if n <= 0:
        raise UserError(f"n is {n}; an interval needs at least one outcome")
    low, high = _wilson_limits(successes / n, n, Z)
    return Interval(successes / n, low, high, n)


def by_group(values: ArrayLike, groups: ArrayLike) -> Floats:
    """The mean of each group's values, in the sorted order of the groups."""
    array = np.asarray(values, dtype=np.float64)
    _, index = np.unique(np.asarray(groups), return_inverse=True)
    if len(index) != len(array):
        raise UserError(f"{len(array)} values but {len(index)} groups; give one group for each value")
    counts = np.bincount(index)
    return np.asarray(np.bincount(index, weights=array) / counts, dtype=np.float64)


def off_mode(values: Floats) -> int:
    """The number of values that differ from the most frequent value, apart from rounding (one part in 10^9)."""
    scale = float(np.abs(values).max())
    rounded = np.round(values / scale, 9) if scale else values
    return len(values) - int(np.unique(rounded, return_counts=True)[1].max())


def clustered_mean(values: ArrayLike, groups: ArrayLike) -> Interval:
    """The mean over groups of the group means of unbounded values, with the t interval.

    If there is one group, or all groups have the same mean, there is no interval: low and high are NaN.
    """
    means = by_group(values, groups)
    n, mean, off = len(means), float(means.mean()), off_mode(means)
    if off == 0:
        return Interval(mean, math.nan, math.nan, n, reliable=False)
    half = float(stats.t.ppf(0.975, n - 1)) * float(means.std(ddof=1)) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n, reliable=off >= FEW)


def share(results: ArrayLike, groups: ArrayLike) -> Interval:
    """The mean over groups of the group means of values in [0, 1], with Wilson's interval.

    If each group has one result, and it is 1, 0 or a tie, n is the number of groups; otherwise the effective n.
    """
    means = by_group(results, groups)
    mean = float(means.mean())
    n, q = (len(means), Z) if _outcomes(results, groups) else _effective(means, mean * (1 - mean))
    return Interval(mean, *_wilson_limits(mean, n, q), len(means))


def constant_change_bounds(change: float, n: int) -> tuple[float, float]:
    """Bounds of a mean change if all n groups changed by the same amount.

    Other groups are assumed to change by this amount or not at all: the bounds are the amount times Wilson's interval
    of n out of n. NaN for no change, or a single group.
    """
    if change == 0 or n == 1:
        return math.nan, math.nan
    smallest = change * _wilson_limits(1.0, n, Z)[0]
    return min(change, smallest), max(change, smallest)


def paired_mean(before: ArrayLike, after: ArrayLike, groups: ArrayLike) -> Difference:
    """The mean over groups of after - before for unbounded values, with the t interval and test of the group means.

    If all groups differ by the same amount, the bounds are those of `constant_change_bounds`.
    """
    gain = by_group(np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64), groups)
    n, mean, off, test = len(gain), float(gain.mean()), off_mode(gain), "paired t by group"
    if off == 0:
        p = _smallest_p(gain)
        return Difference(mean, *_consistent(*constant_change_bounds(mean, n), p), p, test, math.nan, reliable=False)
    error = float(gain.std(ddof=1)) / math.sqrt(n)
    half = float(stats.t.ppf(0.975, n - 1)) * error
    p = max(float(2 * stats.t.sf(abs(mean) / error, n - 1)), _smallest_p(gain))
    low, high = _consistent(mean - half, mean + half, p)
    return Difference(mean, low, high, p, test, (Z + POWER) * error, reliable=off >= FEW)


def paired_share(before: ArrayLike, after: ArrayLike, groups: ArrayLike) -> Difference:
    """The mean over groups of after - before for values in [0, 1] on the same rows, with Tango's score interval (1998).

    If each group has one result, and it is 1, 0 or a tie: McNemar's exact test (`mcnemar`). Otherwise the interval and
    its score test use the effective n. The interval is extended to zero if p is at least .05.

    Raises:
        UserError: The two sides have different numbers of rows.
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
    p = max(float(2 * tail), _smallest_p(gain))
    low, high = _consistent(*_tango_limits(up, down, n, q), p)
    return Difference(mean, low, high, p, "score test by group", _minimum_detectable(up, down, gain))


def mcnemar(before: ArrayLike, after: ArrayLike) -> Difference:
    """The exact McNemar test (1947) of two accuracies on the same pairs; entries are 1 right, 0 wrong, 0.5 tie.

    A tie before or after counts as half a discordant pair. The exact test needs whole numbers, so counts are rounded
    down, which is conservative. The interval is Tango's score interval (Statistics in Medicine 17, 1998), extended to
    zero if p is at least .05.
    """
    a, b = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    if a.shape != b.shape:
        raise UserError(f"{len(a)} results before but {len(b)} after; a paired test needs the same rows")
    change = b - a
    up, down = float(change.clip(0).mean()), float((-change).clip(0).mean())
    p = _exact(int(change.clip(0).sum()), int((-change).clip(0).sum()))
    low, high = _consistent(*_tango_limits(up, down, len(a), Z), p)
    return Difference(up - down, low, high, p, "mcnemar", _minimum_detectable(up, down, change))


def sign_test(results: ArrayLike) -> Difference:
    """The exact sign test of an accuracy against one half; ties are left out.

    For a start model whose accuracy is one half by construction. The interval is Wilson's minus one half, extended to
    zero if p is at least .05. With many ties, which count one half in it, it may hold zero where the sign test rejects:
    p is then that of Wilson's score test, which is the more cautious.
    """
    outcome = np.asarray(results, dtype=np.float64)
    p = _exact(int((outcome > 0.5).sum()), int((outcome < 0.5).sum()))
    interval = wilson(float(outcome.sum()), len(outcome))
    error = 0.5 / math.sqrt(len(outcome))
    if p < 0.05 and interval.low <= 0.5 <= interval.high:
        p = max(0.05, float(2 * stats.norm.sf(abs(interval.value - 0.5) / error)))
    low, high = _consistent(interval.low - 0.5, interval.high - 0.5, p)
    detectable = (Z + POWER) * error
    return Difference(interval.value - 0.5, low, high, p, "exact sign test against one half", detectable)


def against_half(results: ArrayLike, groups: ArrayLike) -> Difference:
    """An accuracy against one half, by group.

    If each group has one result, and it is 1, 0 or a tie: the sign test. Otherwise Wilson's score test and interval at
    the effective n.
    """
    if _outcomes(results, groups):
        return sign_test(results)
    means = by_group(results, groups)
    mean = float(means.mean())
    n, q = _effective(means, mean * (1 - mean))
    z = abs(mean - 0.5) / (0.5 / math.sqrt(n))
    tail = stats.norm.sf(z) if q == Z else stats.t.sf(z, len(means) - 1)
    p = max(float(2 * tail), _smallest_p(means - 0.5))
    low, high = _wilson_limits(mean, n, q)
    low, high = _consistent(low - 0.5, high - 0.5, p)
    test = "score test by group against one half"
    return Difference(mean - 0.5, low, high, p, test, (Z + POWER) * 0.5 / math.sqrt(n))


def holm(p: Sequence[float]) -> list[float]:
    """The p values of several tests, corrected by Holm's step-down method (1979), in the given order.

    Rejecting the corrected values below a level keeps the probability of any false rejection at or below that level,
    whatever the dependence between the tests.
    """
    order = sorted(range(len(p)), key=lambda index: p[index])
    corrected, largest = [0.0] * len(p), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, p[index] * (len(p) - rank)))
        corrected[index] = largest
    return corrected


def spearman(a: ArrayLike, b: ArrayLike) -> float:
    """Spearman's rank correlation; NaN if one side is constant."""
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if x.std() == 0 or y.std() == 0:
        return math.nan
    result: Any = stats.spearmanr(x, y)
    return float(result.statistic)


def _outcomes(results: ArrayLike, groups: ArrayLike) -> bool:
    """Whether every group has one result, and each result is 1, 0 or a tie."""
    values, names = np.asarray(results, dtype=np.float64), np.asarray(groups)
    return len(np.unique(names)) == len(names) and bool(np.isin(values, (0.0, 0.5, 1.0)).all())


def _effective(values: Floats, largest: float) -> tuple[float, float]:
    """The effective n of the groups' values, and the quantile to use with it. `largest` is the largest variance that
    values with this mean can have.

    If fewer than `FEW` values differ from the most frequent one: the number of groups and the normal quantile.
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
    """The interval of all differences d with (up - down - d)^2 <= q^2 v(d) / n  (Tango 1998), by bisection.

    `up` and `down` are the shares of pairs that changed to 1 and to 0. v(d) = 2 s + d (1 - d) is the variance if the
    true difference is d. s is the maximum-likelihood share that changed to 0 given d: the positive root of
    2 s^2 + ((2 - up + down) d - up - down) s - down d (1 - d).
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
    """The p value of the exact binomial test of `up` against `down` changes."""
    return float(stats.binomtest(up, up + down, 0.5).pvalue) if up + down else 1.0


def _smallest_p(gain: Floats) -> float:
    """The smallest p of a sign-flip test on these differences, 2^(1 - m) for m that are not zero."""
    return min(1.0, 2.0 ** (1 - int(np.count_nonzero(gain))))


def _minimum_detectable(up: float, down: float, gain: Floats) -> float:
    """The smallest difference of shares that this number of groups detects with 80 % power.

    If few groups changed, one outcome is added to each direction (Bonett and Price 2012), and the result is at least
    the share at which six changes in one direction are likely (`SHOWN_BY`).
    """
    n = len(gain)
    if off_mode(gain) >= FEW:
        return (Z + POWER) * float(gain.std(ddof=1)) / math.sqrt(n)
    up, down = (up * n + 1) / (n + 2), (down * n + 1) / (n + 2)
    error = math.sqrt((up + down - (up - down) ** 2) / (n + 2))
    return min(1.0, max((Z + POWER) * error, SHOWN_BY / n))


def _consistent(low: float, high: float, p: float) -> tuple[float, float]:
    """The interval, extended to zero if the test does not reject zero."""
    return (low, high) if p < 0.05 else (min(low, 0.0), max(high, 0.0))
