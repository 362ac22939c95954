"""Are stated probabilities right? Calibration of pairs and of score distributions, on numpy arrays.

Letters: P pairs, `p` the stated probability that the chosen response is the better one, in (0, 1).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats

from treeward.maths.statistics import Floats, Interval

REPLICATES = 1_000


@dataclass(frozen=True)
class Bin:
    """One point of a reliability plot: mean confidence, accuracy (ties half), and how many pairs."""

    confidence: float
    accuracy: float
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
    """Means of `y` in bins of equal mass of `x`; equal values of `x` share a bin."""
    across, up = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    names = np.asarray(groups)
    found = []
    for part in equal_mass(across, bins):
        mean = bootstrapped(partial(_mean, up[part]), list(names[part]))
        found.append(Level(float(across[part].mean()), mean.value, mean.low, mean.high, len(part)))
    return found


def equal_mass(values: Floats, bins: int) -> list[NDArray[np.intp]]:
    """Rows in bins of equal mass, lowest values first; equal values share a bin, so the order of rows is nothing."""
    place = ((stats.rankdata(values) - 0.5) * bins / len(values)).astype(int)
    return [np.flatnonzero(place == number) for number in np.unique(place)]


def reliability(p: ArrayLike, bins: int = 10) -> list[Bin]:
    """Equal-mass bins of the confidence max(p, 1 - p) with the accuracy of the side that it names, ties half."""
    stated = np.asarray(p, dtype=np.float64)
    confidence = np.maximum(stated, 1 - stated)
    right = np.where(stated == 0.5, 0.5, (stated > 0.5).astype(np.float64))
    parts = equal_mass(confidence, bins)
    return [Bin(float(confidence[part].mean()), float(right[part].mean()), len(part)) for part in parts]


def ece(p: ArrayLike, bins: int = 10) -> float:
    """Expected calibration error: the mean over pairs of |accuracy - confidence| of their bin."""
    found = reliability(p, bins)
    return sum(b.n * abs(b.accuracy - b.confidence) for b in found) / max(1, sum(b.n for b in found))


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


def _mean(values: Floats, rows: NDArray[np.intp]) -> float:
    return float(values[rows].mean())


def _logits(p: ArrayLike) -> Floats:
    stated = np.clip(np.asarray(p, dtype=np.float64), 1e-12, 1 - 1e-12)
    return np.asarray(np.log(stated) - np.log1p(-stated), dtype=np.float64)
