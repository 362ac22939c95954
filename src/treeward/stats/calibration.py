"""Are stated probabilities right? Calibration of pairs and of score distributions, on numpy arrays.

Letters: P pairs, `p` the stated probability that the chosen response is the better one, in (0, 1).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats

from treeward.stats.intervals import Floats, Interval, by_group, clustered_mean, share

REPLICATES = 1_000
CHUNK = 4_000_000
"""Random numbers drawn at a time, to bound memory."""


@dataclass(frozen=True)
class Bin:
    """One point of a reliability plot: mean confidence and accuracy (ties half) over groups, the accuracy's interval,
    and how many pairs.
    """

    confidence: float
    accuracy: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class CalibrationError:
    """The expected calibration error (ECE) over bins of equal mass, and whether it is more than chance.

    `plug_in` is the mean over pairs of |accuracy - confidence| of their bin. It is above zero for right probabilities
    too: `expected_if_exact` is what they show on average at this n. `value` is debiased. `p` tests that the stated
    probabilities are right. n counts the groups. There is no interval: resampling repeats the bias and covers nothing.
    """

    value: float
    plug_in: float
    expected_if_exact: float
    p: float
    n: int


@dataclass(frozen=True)
class Level:
    """One point of a plot of means: mean of x, mean of y with its interval over whole groups, and how many rows."""

    x: float
    y: float
    low: float
    high: float
    n: int


def levels(x: ArrayLike, y: ArrayLike, groups: Sequence[str], bins: int = 8) -> list[Level]:
    """Means of `y` over groups in bins of equal mass of `x`; equal values of `x` share a bin."""
    across, up, names = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64), np.asarray(groups)
    points = []
    for part in equal_mass(across, bins):
        mean = clustered_mean(up[part], names[part])
        points.append(Level(float(across[part].mean()), mean.value, mean.low, mean.high, len(part)))
    return points


def equal_mass(values: Floats, bins: int) -> list[NDArray[np.intp]]:
    """Rows in bins of equal mass, lowest values first; equal values share a bin, so the order of rows is nothing."""
    place = ((stats.rankdata(values) - 0.5) * bins / len(values)).astype(int)
    return [np.flatnonzero(place == number) for number in np.unique(place)]


def reliability(p: ArrayLike, groups: Sequence[str], bins: int = 10) -> list[Bin]:
    """Equal-mass bins of the confidence max(p, 1 - p) with the accuracy of the side that it names, ties half."""
    confidence, right = _sides(p)
    names = np.asarray(groups)
    points = []
    for part in equal_mass(confidence, bins):
        accuracy = share(right[part], names[part])
        stated = float(by_group(confidence[part], names[part]).mean())
        points.append(Bin(stated, accuracy.value, accuracy.low, accuracy.high, len(part)))
    return points


def calibration_error(p: ArrayLike, groups: Sequence[str], bins: int = 10, seed: int = 0) -> CalibrationError:
    """ECE, debiased, beside the value that exactly right probabilities would show, and a test of calibration.

    The gap g_b of bin b (accuracy - confidence) varies by s_b around its true size. Were that size d in every bin, the
    plug-in would be sum_b w_b E|N(d, s_b^2)| on average, w_b the bin's share of the pairs. `value` is the d at which
    this is the plug-in that was seen, and 0 where d = 0 gives as much; `expected_if_exact` is the average at d = 0.

    p is the share of tables drawn under right probabilities whose plug-in is at least as large. With one pair a group
    outcomes are drawn from the stated probabilities and s_b follows from them. Pairs of one group may go together: then
    whole groups' deviations change their sign at random (wild bootstrap, Liu 1988), and s_b is clustered by group.
    """
    confidence, right = _sides(p)
    parts = equal_mass(confidence, bins)
    of = np.empty(len(confidence), dtype=np.intp)
    for number, part in enumerate(parts):
        of[part] = number
    total = len(confidence)
    gaps = np.bincount(of, right - confidence) / total
    plug_in = float(np.abs(gaps).sum())
    names, group = np.unique(np.asarray(groups), return_inverse=True)
    draws = np.random.default_rng(seed)
    if len(names) == total:
        doubt = np.sqrt(np.bincount(of, np.where(confidence == 0.5, 0.0, confidence * (1 - confidence)))) / total
        drawn = _outcomes_drawn(confidence, of, draws)
    else:
        size = np.bincount(of)
        sums, centred = np.zeros((2, len(names), len(parts)))
        np.add.at(sums, (group, of), (right - confidence) / total)
        np.add.at(centred, (group, of), (right - confidence - (gaps * total / size)[of]) / total)
        doubt = np.sqrt((centred**2).sum(0) * size / np.maximum(size - 1, 1))
        drawn = _signs_drawn(sums, draws)
    at_least = int((drawn >= plug_in - 1e-12).sum())

    def shown(d: float) -> float:
        return float(_folded(d * np.bincount(of) / total, doubt).sum())

    exact = shown(0.0)
    value = 0.0 if shown(0.0) >= plug_in else float(optimize.brentq(lambda d: shown(d) - plug_in, 0.0, 2.0))
    return CalibrationError(value, plug_in, exact, (1 + at_least) / (1 + REPLICATES), len(names))


def temperature(p: ArrayLike) -> float:
    """T that makes sigma(logit(p) / T) most likely; above 1 the model was too sure of itself."""
    logits = _logits(p)

    def nll(log_t: float) -> float:
        return float(np.logaddexp(0, -logits / math.exp(log_t)).mean())

    found = optimize.minimize_scalar(nll, bounds=(-5.0, 5.0), method="bounded")
    return math.exp(float(found.x))


def tempered(p: ArrayLike, t: float) -> Floats:
    """sigma(logit(p) / T)."""
    return np.asarray(1 / (1 + np.exp(-_logits(p) / t)), dtype=np.float64)


def rank_correlation(a: ArrayLike, b: ArrayLike, groups: Sequence[str], seed: int = 0) -> Interval:
    """Spearman's rank correlation with a percentile interval over whole groups; NaN where one side is constant."""
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)

    def statistic(rows: NDArray[np.intp]) -> float:
        if x[rows].std() == 0 or y[rows].std() == 0:
            return math.nan
        return float(np.corrcoef(stats.rankdata(x[rows]), stats.rankdata(y[rows]))[0, 1])

    return bootstrapped(statistic, groups, seed)


def bootstrapped(statistic: Callable[[NDArray[np.intp]], float], groups: Sequence[str], seed: int = 0) -> Interval:
    """A statistic of rows with its percentile interval, whole groups resampled; n counts the groups."""
    names, index = np.unique(np.asarray(groups), return_inverse=True)
    order = np.argsort(index, kind="stable")
    rows = np.split(order, np.cumsum(np.bincount(index))[:-1])
    draws = np.random.default_rng(seed)
    found = []
    for _ in range(REPLICATES):
        drawn = draws.integers(0, len(names), len(names))
        found.append(statistic(np.concatenate([rows[group] for group in drawn])))
    low, high = np.nanquantile(found, [0.025, 0.975]) if not np.isnan(found).all() else (math.nan, math.nan)
    return Interval(statistic(np.arange(len(index))), float(low), float(high), len(names))


def _sides(p: ArrayLike) -> tuple[Floats, Floats]:
    """The confidence max(p, 1 - p) of each pair, and whether the side that it names is the better one (ties half)."""
    stated = np.asarray(p, dtype=np.float64)
    return np.maximum(stated, 1 - stated), np.where(stated == 0.5, 0.5, (stated > 0.5).astype(np.float64))


def _folded(mean: Floats, sd: Floats) -> Floats:
    """E|N(mean, sd^2)|: sd sqrt(2 / pi) exp(-mean^2 / (2 sd^2)) + mean (1 - 2 Phi(-mean / sd))."""
    z = mean / np.maximum(sd, 1e-300)
    return np.asarray(sd * math.sqrt(2 / math.pi) * np.exp(-(z**2) / 2) + mean * (1 - 2 * stats.norm.cdf(-z)))


def _outcomes_drawn(confidence: Floats, of: NDArray[np.intp], draws: np.random.Generator) -> Floats:
    """The plug-in ECE of tables whose outcomes come from the stated probabilities."""
    bins = np.zeros((len(of), int(of.max()) + 1))
    bins[np.arange(len(of)), of] = 1 / len(of)
    stated = confidence @ bins
    size = max(1, CHUNK // len(of))
    parts = []
    for start in range(0, REPLICATES, size):
        uniform = draws.random((min(size, REPLICATES - start), len(of)))
        right = np.where(confidence == 0.5, 0.5, uniform < confidence)
        parts.append(np.abs(right @ bins - stated).sum(1))
    return np.concatenate(parts)


def _signs_drawn(sums: Floats, draws: np.random.Generator) -> Floats:
    """The plug-in ECE where each group's deviations, (G, bins), change their sign at random."""
    size = max(1, CHUNK // len(sums))
    parts = []
    for start in range(0, REPLICATES, size):
        signs = draws.integers(0, 2, (min(size, REPLICATES - start), len(sums))) * 2.0 - 1.0
        parts.append(np.abs(signs @ sums).sum(1))
    return np.concatenate(parts)


def _logits(p: ArrayLike) -> Floats:
    stated = np.clip(np.asarray(p, dtype=np.float64), 1e-12, 1 - 1e-12)
    return np.asarray(np.log(stated) - np.log1p(-stated), dtype=np.float64)
