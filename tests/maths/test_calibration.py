"""Calibration by written-out numbers and by draws whose truth is known: R8 and the temperature."""

import math

import numpy as np
import pytest

from treeward.maths import calibration


def test_r8_a_coin_is_calibrated_and_says_nothing() -> None:
    p = np.full(100, 0.5)
    assert calibration.ece(p) == 0.0
    assert calibration.reliability(p) == [calibration.Bin(0.5, 0.5, 100)]
    assert calibration.tempered(p, 3.0).tolist() == [0.5] * 100


def test_r8_nine_tenths_stated_and_six_tenths_right() -> None:
    p = np.array([0.9] * 60 + [0.1] * 40)
    assert calibration.ece(p) == pytest.approx(0.3, abs=1e-12)
    assert all(point.confidence == pytest.approx(0.9) for point in calibration.reliability(p))


def test_bins_hold_equal_mass_and_rise() -> None:
    p = np.random.default_rng(0).uniform(0.01, 0.99, 1003)
    points = calibration.reliability(p, 10)
    assert {point.n for point in points} == {100, 101}
    assert [point.confidence for point in points] == sorted(point.confidence for point in points)


def test_true_probabilities_are_calibrated_and_sharpened_ones_are_not() -> None:
    draw = np.random.default_rng(1)
    truth = draw.uniform(0.5, 1.0, 20_000)
    stated = np.where(draw.uniform(size=20_000) < truth, truth, 1 - truth)
    assert calibration.ece(stated) < 0.02
    assert calibration.temperature(stated) == pytest.approx(1.0, abs=0.05)
    sharp = calibration.tempered(stated, 1 / 3)
    assert calibration.ece(sharp) > 0.1
    assert calibration.temperature(sharp) == pytest.approx(3.0, abs=0.15)
    np.testing.assert_allclose(calibration.tempered(sharp, 3.0), stated, atol=1e-4)


def test_rank_correlation_with_its_interval() -> None:
    x = np.arange(50.0)
    groups = [str(n) for n in range(50)]
    up = calibration.rank_correlation(x, x**3, groups)
    assert (up.value, up.low, up.high, up.n) == (pytest.approx(1.0), pytest.approx(1.0), pytest.approx(1.0), 50)
    noise = calibration.rank_correlation(x, np.random.default_rng(3).normal(size=50), groups)
    assert noise.low < 0 < noise.high
    assert math.isnan(calibration.rank_correlation(x, np.zeros(50), groups).value)


def test_whole_groups_are_resampled() -> None:
    """Ten copies of each value carry no more knowledge than one."""
    x = np.random.default_rng(4).normal(size=30)
    one = calibration.bootstrapped(lambda rows: float(x[rows].mean()), [str(n) for n in range(30)])
    ten = np.repeat(x, 10)
    many = calibration.bootstrapped(
        lambda rows: float(ten[rows].mean()), [str(n) for n in range(30) for _ in range(10)]
    )
    assert many.n == 30
    assert many.high - many.low == pytest.approx(one.high - one.low, rel=0.01)


def test_levels_written_out() -> None:
    """Six rows in three bins of two; equal spreads stay together, whatever the order of the rows."""
    x, y = [3.0, 1.0, 2.0, 1.0, 2.0, 5.0], [0.9, 0.1, 0.4, 0.3, 0.6, 0.7]
    found = calibration.levels(x, y, list("abcdef"), 3)
    assert [(level.x, level.n) for level in found] == [(1.0, 2), (2.0, 2), (4.0, 2)]
    assert [level.y for level in found] == pytest.approx([0.2, 0.5, 0.8])
    assert all(level.low <= level.y <= level.high for level in found)
    assert (found[0].low, found[0].high) == pytest.approx((0.1, 0.3))
    assert [level.n for level in calibration.levels([1.0] * 4, y[:4], list("abcd"))] == [4]


def test_an_interval_of_a_level_counts_groups_not_rows() -> None:
    y = np.random.default_rng(0).normal(size=20)
    alone = calibration.levels(np.zeros(200), np.repeat(y, 10), [str(n) for n in range(200)])[0]
    grouped = calibration.levels(np.zeros(200), np.repeat(y, 10), [str(n // 10) for n in range(200)])[0]
    assert (grouped.high - grouped.low) > 2.5 * (alone.high - alone.low)
