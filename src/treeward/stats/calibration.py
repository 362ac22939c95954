"""Calibration of a reward model's probabilities: reliability, calibration error, temperature, rank correlation.

Notation: P pairs; `p` is the model's probability that the chosen response is the better one, in (0, 1). The confidence
of a pair is max(p, 1 - p).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats

from treeward.stats.intervals import Floats, Interval, by_group, clustered_mean, share

REPLICATES = 1_000
"""Replicates of a bootstrap or a simulated test."""
CHUNK = 4_000_000
"""Random numbers drawn at once, to limit memory."""


@dataclass(frozen=True)
class Bin:
    """One point of a reliability plot.

    Attributes:
        confidence: Mean confidence over groups.
        accuracy: Mean accuracy over groups, ties one half.
        low: Lower bound of the accuracy.
        high: Upper bound of the accuracy.
        n: The number of pairs.
    """

    confidence: float
    accuracy: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class CalibrationError:
    """The expected calibration error (ECE) over bins of equal mass, with a test of calibration.

    There is no interval: a bootstrap has the same bias as the plug-in estimate and does not cover the true value.

    Attributes:
        value: The debiased ECE.
        plug_in: The usual ECE: the mean over pairs of |accuracy - confidence| of their bin.
        expected_if_exact: The mean plug-in ECE of a calibrated model at this n; it is above zero.
        p: The p value of the test that the model is calibrated.
        n: The number of groups.
    """

    value: float
    plug_in: float
    expected_if_exact: float
    p: float
    n: int


@dataclass(frozen=True)
class BinnedMean:
    """One bin of x: the mean of x, the mean of y over groups with its interval, and the number of rows n."""

    x: float
    y: float
    low: float
    high: float
    n: int


def binned_means(x: ArrayLike, y: ArrayLike, groups: Sequence[str], bins: int = 8) -> list[BinnedMean]:
    """The mean of `y` over groups in bins of equal mass of `x`. Equal values of `x` are in the same bin."""
    xs, ys, names = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64), np.asarray(groups)
    points = []
    for rows in equal_mass(xs, bins):
        mean = clustered_mean(ys[rows], names[rows])
        points.append(BinnedMean(float(xs[rows].mean()), mean.value, mean.low, mean.high, len(rows)))
    return points


def equal_mass(values: Floats, bins: int) -> list[NDArray[np.intp]]:
    """The rows of each bin, for bins with equally many rows, lowest values first. Equal values are in the same bin."""
    bin_of_row = ((stats.rankdata(values) - 0.5) * bins / len(values)).astype(int)
    return [np.flatnonzero(bin_of_row == number) for number in np.unique(bin_of_row)]


def reliability(p: ArrayLike, groups: Sequence[str], bins: int = 10) -> list[Bin]:
    """The points of a reliability plot: bins of equal mass of the confidence, with the accuracy in each."""
    confidence, correct = _confidence(p)
    names = np.asarray(groups)
    points = []
    for rows in equal_mass(confidence, bins):
        accuracy = share(correct[rows], names[rows])
        mean_confidence = float(by_group(confidence[rows], names[rows]).mean())
        points.append(Bin(mean_confidence, accuracy.value, accuracy.low, accuracy.high, len(rows)))
    return points


def calibration_error(p: ArrayLike, groups: Sequence[str], bins: int = 10, seed: int = 0) -> CalibrationError:
    """The plug-in ECE, the debiased ECE, the ECE expected of a calibrated model, and a test of calibration.

    The gap of bin b (accuracy - confidence) has a standard error s_b. If the true gap were d in every bin, the expected
    plug-in ECE would be sum_b w_b E|N(d, s_b^2)|, where w_b is the bin's share of the pairs. `value` is the d for which
    this equals the plug-in ECE, or 0 if d = 0 already gives as much. `expected_if_exact` is the sum for d = 0.

    p is the share of tables simulated under calibration whose plug-in ECE is at least as large. If every group has one
    pair, outcomes are drawn from the stated probabilities, which also give s_b. Otherwise the pairs of a group may be
    correlated: the sign of each group's deviations is flipped at random (wild bootstrap, Liu 1988), and s_b is
    clustered by group.

    Args:
        p: The stated probability of each pair (P,).
        groups: The group (prompt) of each pair (P,).
        bins: The number of bins.
        seed: The seed of the simulation.
    """
    confidence, correct = _confidence(p)
    rows_of_bin = equal_mass(confidence, bins)
    bin_of_row = np.empty(len(confidence), dtype=np.intp)
    for number, rows in enumerate(rows_of_bin):
        bin_of_row[rows] = number
    total = len(confidence)
    gaps = np.bincount(bin_of_row, correct - confidence) / total
    plug_in = float(np.abs(gaps).sum())
    names, group = np.unique(np.asarray(groups), return_inverse=True)
    generator = np.random.default_rng(seed)
    if len(names) == total:
        variance = np.where(confidence == 0.5, 0.0, confidence * (1 - confidence))
        standard_errors = np.sqrt(np.bincount(bin_of_row, variance)) / total
        simulated = _simulate_outcomes(confidence, bin_of_row, generator)
    else:
        size = np.bincount(bin_of_row)
        sums, centred = np.zeros((2, len(names), len(rows_of_bin)))
        np.add.at(sums, (group, bin_of_row), (correct - confidence) / total)
        np.add.at(centred, (group, bin_of_row), (correct - confidence - (gaps * total / size)[bin_of_row]) / total)
        standard_errors = np.sqrt((centred**2).sum(0) * size / np.maximum(size - 1, 1))
        simulated = _simulate_signs(sums, generator)
    at_least_as_large = int((simulated >= plug_in - 1e-12).sum())

    def expected_plug_in(d: float) -> float:
        return float(_mean_absolute_normal(d * np.bincount(bin_of_row) / total, standard_errors).sum())

    exact = expected_plug_in(0.0)
    value = 0.0 if exact >= plug_in else float(optimize.brentq(lambda d: expected_plug_in(d) - plug_in, 0.0, 2.0))
    return CalibrationError(value, plug_in, exact, (1 + at_least_as_large) / (1 + REPLICATES), len(names))


def fit_temperature(p: ArrayLike) -> float:
    """The temperature T that maximises the likelihood of sigma(logit(p) / T). Above 1 the model is overconfident."""
    logits = _logits(p)

    def nll(log_t: float) -> float:
        return float(np.logaddexp(0, -logits / math.exp(log_t)).mean())

    log_t = optimize.minimize_scalar(nll, bounds=(-5.0, 5.0), method="bounded").x
    return math.exp(float(log_t))


def apply_temperature(p: ArrayLike, t: float) -> Floats:
    """sigma(logit(p) / T)."""
    return np.asarray(1 / (1 + np.exp(-_logits(p) / t)), dtype=np.float64)


def rank_correlation(a: ArrayLike, b: ArrayLike, groups: Sequence[str], seed: int = 0) -> Interval:
    """Spearman's rank correlation with a bootstrap interval over groups; NaN if one side is constant."""
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)

    def statistic(rows: NDArray[np.intp]) -> float:
        if x[rows].std() == 0 or y[rows].std() == 0:
            return math.nan
        return float(np.corrcoef(stats.rankdata(x[rows]), stats.rankdata(y[rows]))[0, 1])

    return bootstrap_interval(statistic, groups, seed)


def bootstrap_interval(
    statistic: Callable[[NDArray[np.intp]], float], groups: Sequence[str], seed: int = 0
) -> Interval:
    """A statistic with its percentile bootstrap interval; whole groups are resampled.

    Args:
        statistic: A function of row numbers.
        groups: The group of each row.
        seed: The seed of the resampling.
    """
    names, index = np.unique(np.asarray(groups), return_inverse=True)
    order = np.argsort(index, kind="stable")
    rows_of_group = np.split(order, np.cumsum(np.bincount(index))[:-1])
    generator = np.random.default_rng(seed)
    values = []
    for _ in range(REPLICATES):
        drawn = generator.integers(0, len(names), len(names))
        values.append(statistic(np.concatenate([rows_of_group[group] for group in drawn])))
    low, high = np.nanquantile(values, [0.025, 0.975]) if not np.isnan(values).all() else (math.nan, math.nan)
    return Interval(statistic(np.arange(len(index))), float(low), float(high), len(names))


def _confidence(p: ArrayLike) -> tuple[Floats, Floats]:
    """The confidence max(p, 1 - p) of each pair, and whether the more likely side is the chosen one (ties one half)."""
    stated = np.asarray(p, dtype=np.float64)
    return np.maximum(stated, 1 - stated), np.where(stated == 0.5, 0.5, (stated > 0.5).astype(np.float64))


def _mean_absolute_normal(mean: Floats, sd: Floats) -> Floats:
    """E|N(mean, sd^2)|: sd sqrt(2 / pi) exp(-mean^2 / (2 sd^2)) + mean (1 - 2 Phi(-mean / sd))."""
    z = mean / np.maximum(sd, 1e-300)
    return np.asarray(sd * math.sqrt(2 / math.pi) * np.exp(-(z**2) / 2) + mean * (1 - 2 * stats.norm.cdf(-z)))


def _simulate_outcomes(confidence: Floats, bin_of_row: NDArray[np.intp], generator: np.random.Generator) -> Floats:
    """The plug-in ECE of tables whose outcomes are drawn from the stated probabilities."""
    rows = len(bin_of_row)
    membership = np.zeros((rows, int(bin_of_row.max()) + 1))
    membership[np.arange(rows), bin_of_row] = 1 / rows
    stated = confidence @ membership
    size = max(1, CHUNK // rows)
    errors = []
    for start in range(0, REPLICATES, size):
        uniform = generator.random((min(size, REPLICATES - start), rows))
        correct = np.where(confidence == 0.5, 0.5, uniform < confidence)
        errors.append(np.abs(correct @ membership - stated).sum(1))
    return np.concatenate(errors)


def _simulate_signs(sums: Floats, generator: np.random.Generator) -> Floats:
    """The plug-in ECE if the deviations of each group, (G, bins), have random signs."""
    size = max(1, CHUNK // len(sums))
    errors = []
    for start in range(0, REPLICATES, size):
        signs = generator.integers(0, 2, (min(size, REPLICATES - start), len(sums))) * 2.0 - 1.0
        errors.append(np.abs(signs @ sums).sum(1))
    return np.concatenate(errors)


def _logits(p: ArrayLike) -> Floats:
    stated = np.clip(np.asarray(p, dtype=np.float64), 1e-12, 1 - 1e-12)
    return np.asarray(np.log(stated) - np.log1p(-stated), dtype=np.float64)
