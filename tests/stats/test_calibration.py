"""Calibration by written-out numbers, and on random data whose true probabilities are known."""

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from treeward.stats import calibration


def names(n: int) -> list[str]:
    """n pairs of a group each."""
    return [str(i) for i in range(n)]


def test_r8_probabilities_of_one_half_are_calibrated() -> None:
    p = np.full(100, 0.5)
    error = calibration.calibration_error(p, names(100))
    assert (error.plug_in, error.value, error.expected_if_exact, error.p) == (0.0, 0.0, 0.0, 1.0)
    (point,) = calibration.reliability(p, names(100))
    assert (point.confidence, point.accuracy, point.n) == (0.5, 0.5, 100)
    assert calibration.apply_temperature(p, 3.0).tolist() == [0.5] * 100


def test_r8_nine_tenths_stated_and_six_tenths_right() -> None:
    p = np.array([0.9] * 60 + [0.1] * 40)
    error = calibration.calibration_error(p, names(100))
    assert error.plug_in == pytest.approx(0.3, abs=1e-12)
    assert error.value == pytest.approx(0.3, abs=1e-6)
    assert error.p == 1 / 1001
    assert all(point.confidence == pytest.approx(0.9) for point in calibration.reliability(p, names(100)))


def test_one_bin_by_its_closed_form() -> None:
    """100 probabilities of 0.9 in one bin: the standard error of the gap is 0.03, so a calibrated model has 0.03
    sqrt(2/pi) on average. The debiased value is the d for which the mean of |N(d, 0.03^2)| is the plug-in value."""
    p = np.array([0.9] * 94 + [0.1] * 6)
    error = calibration.calibration_error(p, names(100))
    assert error.expected_if_exact == pytest.approx(0.03 * math.sqrt(2 / math.pi))
    assert error.plug_in == pytest.approx(0.04)
    assert stats.foldnorm.mean(error.value / 0.03, scale=0.03) == pytest.approx(0.04, abs=1e-6)
    exact = stats.binom.pmf([k for k in range(101) if abs(k - 90) >= 4], 100, 0.9).sum()
    assert error.p == pytest.approx(exact, abs=0.04)


def stated(draw: np.random.Generator, n: int, sharpen: float = 1.0) -> Any:
    """P(chosen) of n pairs whose truth lies in [.5, 1), stated with `sharpen` times their log-odds."""
    truth = draw.beta(4, 2, n)
    truth = np.maximum(truth, 1 - truth)
    right = draw.uniform(size=n) < truth
    said = 1 / (1 + ((1 - truth) / truth) ** sharpen)
    return np.where(right, said, 1 - said)


@pytest.mark.slow
def test_f73_right_probabilities_are_not_called_wrong() -> None:
    """n=225: the plug-in value is 0.07 for a calibrated model, and its bootstrap interval never covers 0. So the
    expected value is reported too, the debiased value is a third of it, and the test rejects 5 %."""
    draw = np.random.default_rng(0)
    errors = [calibration.calibration_error(stated(draw, 225), names(225)) for _ in range(200)]
    plug_in, exact, value = (
        float(np.mean([getattr(e, key) for e in errors])) for key in ("plug_in", "expected_if_exact", "value")
    )
    assert plug_in == pytest.approx(exact, rel=0.05)
    assert plug_in > 0.06
    assert value < 0.4 * plug_in
    assert 2 <= sum(e.p < 0.05 for e in errors) <= 20
    assert not any(hasattr(e, "low") for e in errors)


@pytest.mark.slow
def test_overconfidence_is_found_and_measured() -> None:
    draw = np.random.default_rng(1)
    errors = [calibration.calibration_error(stated(draw, 225, 3.0), names(225)) for _ in range(100)]
    assert float(np.mean([e.value for e in errors])) == pytest.approx(0.158, abs=0.015)
    assert sum(e.p < 0.05 for e in errors) > 95


def test_pairs_of_one_prompt_are_clustered_in_the_calibration_test() -> None:
    """Ten copies of each pair: as independent pairs, calibrated probabilities would nearly always be rejected."""
    draw = np.random.default_rng(2)
    groups = [str(n) for n in range(100) for _ in range(10)]
    rejected = [calibration.calibration_error(np.repeat(stated(draw, 100), 10), groups).p < 0.05 for _ in range(60)]
    apart = calibration.calibration_error(np.repeat(stated(draw, 100), 10), names(1000))
    assert sum(rejected) <= 8
    assert apart.p < 0.01


def test_points_of_the_reliability_plot_count_prompts() -> None:
    p = np.repeat([0.9] * 30 + [0.1] * 10, 10)
    (alone,) = calibration.reliability(p, names(400))
    (grouped,) = calibration.reliability(p, [str(n // 10) for n in range(400)])
    assert alone.accuracy == grouped.accuracy == 0.75
    assert grouped.high - grouped.low > 2.5 * (alone.high - alone.low)


def test_bins_hold_equal_mass_and_rise() -> None:
    p = np.random.default_rng(0).uniform(0.01, 0.99, 1003)
    points = calibration.reliability(p, names(1003), 10)
    assert {point.n for point in points} == {100, 101}
    assert [point.confidence for point in points] == sorted(point.confidence for point in points)


def test_true_probabilities_are_calibrated_and_sharpened_ones_are_not() -> None:
    draw = np.random.default_rng(1)
    truth = draw.uniform(0.5, 1.0, 20_000)
    stated = np.where(draw.uniform(size=20_000) < truth, truth, 1 - truth)
    assert calibration.calibration_error(stated, names(20_000)).value < 0.02
    assert calibration.fit_temperature(stated) == pytest.approx(1.0, abs=0.05)
    sharp = calibration.apply_temperature(stated, 1 / 3)
    assert calibration.calibration_error(sharp, names(20_000)).value > 0.1
    assert calibration.fit_temperature(sharp) == pytest.approx(3.0, abs=0.15)
    np.testing.assert_allclose(calibration.apply_temperature(sharp, 3.0), stated, atol=1e-4)


@pytest.mark.slow
def test_rank_correlation_with_its_interval() -> None:
    x = np.arange(50.0)
    groups = [str(n) for n in range(50)]
    up = calibration.rank_correlation(x, x**3, groups)
    assert (up.value, up.low, up.high, up.n) == (pytest.approx(1.0), pytest.approx(1.0), pytest.approx(1.0), 50)
    noise = calibration.rank_correlation(x, np.random.default_rng(3).normal(size=50), groups)
    assert noise.low < 0 < noise.high
    assert math.isnan(calibration.rank_correlation(x, np.zeros(50), groups).value)


def test_whole_groups_are_resampled() -> None:
    """Ten copies of each value carry no more information than one."""
    x = np.random.default_rng(4).normal(size=30)
    one = calibration.bootstrap_interval(lambda rows: float(x[rows].mean()), [str(n) for n in range(30)])
    ten = np.repeat(x, 10)
    many = calibration.bootstrap_interval(
        lambda rows: float(ten[rows].mean()), [str(n) for n in range(30) for _ in range(10)]
    )
    assert many.n == 30
    assert many.high - many.low == pytest.approx(one.high - one.low, rel=0.01)


def test_binned_means_by_hand() -> None:
    """Six rows in three bins of two. Equal values are in one bin, whatever the order of the rows."""
    x, y = [3.0, 1.0, 2.0, 1.0, 2.0, 5.0], [0.9, 0.1, 0.4, 0.3, 0.6, 0.7]
    bins = calibration.binned_means(x, y, list("abcdef"), 3)
    assert [(level.x, level.n) for level in bins] == [(1.0, 2), (2.0, 2), (4.0, 2)]
    assert [level.y for level in bins] == pytest.approx([0.2, 0.5, 0.8])
    assert (bins[0].low, bins[0].high) == pytest.approx((0.2 - 1.2706205, 0.2 + 1.2706205))
    assert [level.n for level in calibration.binned_means([1.0] * 4, y[:4], list("abcd"))] == [4]


def test_the_interval_of_a_binned_mean_counts_groups_not_rows() -> None:
    y = np.random.default_rng(0).normal(size=20)
    alone = calibration.binned_means(np.zeros(200), np.repeat(y, 10), [str(n) for n in range(200)])[0]
    grouped = calibration.binned_means(np.zeros(200), np.repeat(y, 10), [str(n // 10) for n in range(200)])[0]
    assert (grouped.high - grouped.low) > 2.5 * (alone.high - alone.low)
