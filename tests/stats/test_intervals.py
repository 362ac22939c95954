"""Intervals and tests: known values (E1, E5, E6, E7), scipy's exact tests, and enumeration."""

import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, stats

from treeward.stats.intervals import (
    Interval,
    _tango_limits,
    against_half,
    by_group,
    clustered_mean,
    mcnemar,
    paired_mean,
    paired_share,
    share,
    sign_test,
    spearman,
    wilson,
)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(0.66 * 868, 868, 0.6278, 0.6907), (505.0, 889, 0.5353, 0.6003)],
)
def test_e5_wilson_intervals(successes: float, n: int, low: float, high: float) -> None:
    interval = wilson(successes, n)
    assert interval.value == pytest.approx(successes / n)
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=5e-5)
    assert interval.n == n


def test_e5_wilson_bounds_are_exact_at_none_and_at_all() -> None:
    assert wilson(0.0, 30).low == 0.0
    assert wilson(30.0, 30).high == 1.0
    z = 1.959963984540054**2
    assert wilson(0.0, 30).high == pytest.approx(z / (30 + z))
    assert wilson(30.0, 30).low == pytest.approx(30 / (30 + z))


@pytest.mark.parametrize("successes", [0, 1, 7, 20])
def test_wilson_is_scipys(successes: int) -> None:
    theirs: Any = stats.binomtest(successes, 20).proportion_ci(method="wilson")
    ours = wilson(float(successes), 20)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high))


@pytest.mark.parametrize(("n", "p", "coverage"), [(100, 0.66, 0.956), (868, 0.66, 0.951), (20, 0.9, 0.957)])
def test_e6_wilson_coverage_by_exact_binomial_sum(n: int, p: float, coverage: float) -> None:
    intervals = [wilson(float(k), n) for k in range(n + 1)]
    covered = sum(stats.binom.pmf(k, n, p) for k, shown in enumerate(intervals) if shown.low <= p <= shown.high)
    assert covered == pytest.approx(coverage, abs=5e-4)


def test_wilson_of_no_trials_is_refused() -> None:
    with pytest.raises(ValueError, match="n is 0"):
        wilson(0.0, 0)


def test_means_by_group_are_weighted_by_group_not_by_value() -> None:
    assert by_group([1.0, 3.0, 10.0], ["b", "b", "a"]).tolist() == [10.0, 2.0]
    assert clustered_mean([1.0, 3.0, 10.0], ["b", "b", "a"]).value == 6.0


def test_a_missing_group_is_refused() -> None:
    with pytest.raises(ValueError, match="3 values but 2 groups"):
        by_group([1.0, 2.0, 3.0], ["a", "b"])


def test_clustered_interval_is_the_t_interval_of_the_group_means() -> None:
    interval = clustered_mean([1.0, 1.0, 2.0, 2.0, 6.0, 6.0], [0, 0, 1, 1, 2, 2])
    half = 4.302652729749464 * math.sqrt(7.0) / math.sqrt(3)
    assert (interval.value, interval.low, interval.high) == pytest.approx((3.0, 3.0 - half, 3.0 + half))
    assert interval.n == 3


def test_e7_the_standard_error_of_correlated_samples_is_clustered() -> None:
    """G 400, K 8, correlation one half: .0375, where samples taken as independent would give .0177."""
    draw = np.random.default_rng(3)
    values = math.sqrt(0.5) * (draw.standard_normal((400, 1)) + draw.standard_normal((400, 8)))
    interval = clustered_mean(values.ravel(), np.repeat(np.arange(400), 8))
    error = (interval.high - interval.low) / 2 / stats.t.ppf(0.975, 399)
    assert error == pytest.approx(0.0375, rel=0.1)
    assert interval.n == 400


def test_one_group_has_no_interval() -> None:
    interval = clustered_mean([1.0, 2.0], [0, 0])
    assert interval.value == 1.5
    assert math.isnan(interval.low)
    assert math.isnan(interval.high)


def test_f73_a_mean_whose_groups_are_all_equal_has_no_interval() -> None:
    interval = clustered_mean(np.full(64, 3.0), np.arange(64))
    assert (interval.value, interval.n, interval.reliable) == (3.0, 64, False)
    assert math.isnan(interval.low)
    assert math.isnan(interval.high)


def test_f73_a_model_compared_with_itself_has_no_interval() -> None:
    """All 64 differences are 0: no interval of width 0, and no "this n shows differences from 0"."""
    values = np.random.default_rng(0).standard_normal(64)
    difference = paired_mean(values, values.copy(), np.arange(64))
    assert (difference.value, difference.p, difference.reliable) == (0.0, 1.0, False)
    assert all(math.isnan(bound) for bound in (difference.low, difference.high, difference.minimum_detectable))
    assert not difference.excludes_zero


def test_f73_a_share_of_equal_results_cannot_exclude_a_few_others() -> None:
    """No pair changed: as many as z^2 / (n + z^2) of others may (3.84 / 67.84), in either direction."""
    right = np.random.default_rng(0).integers(0, 2, 64).astype(float)
    difference = paired_share(right, right, np.arange(64))
    assert (difference.low, difference.high) == pytest.approx((-3.8415 / 67.8415, 3.8415 / 67.8415), rel=1e-4)
    assert (difference.value, difference.p) == (0.0, 1.0)
    assert difference.minimum_detectable == pytest.approx(7.906 / 64)


def test_a_constant_gain_may_be_missing_in_a_few_others() -> None:
    before = np.random.default_rng(1).integers(0, 100, 60).astype(float)
    difference = paired_mean(before, before - 2.0, np.arange(60))
    assert (difference.value, difference.low, difference.reliable) == (-2.0, -2.0, False)
    assert difference.high == pytest.approx(-2.0 * 60 / (60 + 3.8415), rel=1e-4)


@pytest.mark.parametrize(("gain", "n", "p"), [(-2.0, 60, 2.0**-59), (0.1, 3, 0.25), (0.5, 1, 1.0), (0.0, 9, 1.0)])
def test_a_constant_gain_has_the_p_of_the_sign_flips(gain: float, n: int, p: float) -> None:
    """All n differences alike: of 2^n sign flips two are as far from zero. Rounding does not make them unlike."""
    before = np.random.default_rng(2).standard_normal(n) if gain == 0.1 else np.zeros(n)
    difference = paired_mean(before, before + gain, np.arange(n))
    assert difference.p == p
    assert difference.excludes_zero == (p < 0.05)


def test_p_is_never_below_that_of_a_sign_flip_test() -> None:
    """Eight gains close to one number, the t test's p 1e-21: of their 256 sign flips two are as far. Where 3 of 100
    groups gained, only theirs count."""
    gains = 1 + 1e-3 * np.random.default_rng(0).standard_normal(8)
    assert paired_mean(np.zeros(8), gains, np.arange(8)).p == 2.0**-7
    rare = np.zeros(100)
    rare[:3] = 1.0
    assert paired_mean(np.zeros(100), rare, np.arange(100)).p == 0.25
    assert paired_share(np.zeros(200), np.repeat(rare, 2), np.repeat(np.arange(100), 2)).p == 0.25


def test_the_paired_mean_counts_whole_groups() -> None:
    before = np.zeros(1000)
    after = np.repeat([1.0, 5.0], 500)
    difference = paired_mean(before, after, np.repeat([0, 1], 500))
    half = 12.706204736 * 2
    assert difference.value == 3.0
    assert (difference.low, difference.high) == (pytest.approx(3 - half), pytest.approx(3 + half))
    assert not difference.reliable


def test_the_paired_mean_is_the_t_test() -> None:
    draw = np.random.default_rng(5)
    before = draw.standard_normal(40)
    gain = 0.2 + draw.standard_normal(40)
    difference = paired_mean(before, before + gain, np.arange(40))
    theirs: Any = stats.ttest_1samp(gain, 0.0)
    interval = theirs.confidence_interval()
    assert difference.value == pytest.approx(gain.mean())
    assert (difference.low, difference.high) == pytest.approx((interval.low, interval.high))
    assert difference.p == pytest.approx(float(theirs.pvalue))
    assert difference.minimum_detectable == pytest.approx(2.801585 * gain.std(ddof=1) / math.sqrt(40), rel=1e-5)
    assert difference.reliable


def test_fewer_than_ten_groups_off_the_most_frequent_value_are_unreliable() -> None:
    for off, reliable in ((9, False), (10, True)):
        gain = np.concatenate([np.arange(1.0, off + 1), np.zeros(50)])
        assert clustered_mean(gain, np.arange(len(gain))).reliable is reliable
        assert paired_mean(np.zeros(len(gain)), gain, np.arange(len(gain))).reliable is reliable


@pytest.mark.parametrize(("gained", "lost", "kept"), [(12, 3, 30), (3, 12, 5), (1, 0, 9), (40, 40, 0)])
def test_mcnemar_is_the_exact_binomial_test_of_the_discordant_pairs(gained: int, lost: int, kept: int) -> None:
    before = [0.0] * gained + [1.0] * lost + [1.0] * kept
    after = [1.0] * gained + [0.0] * lost + [1.0] * kept
    difference = mcnemar(before, after)
    n = gained + lost + kept
    assert difference.p == pytest.approx(stats.binomtest(gained, gained + lost).pvalue)
    assert difference.value == pytest.approx((gained - lost) / n)
    assert difference.low < difference.value < difference.high
    assert difference.excludes_zero == (difference.p < 0.05)
    assert difference.test == "mcnemar"


def test_the_least_difference_that_shows() -> None:
    """Where many pairs change it is 2.80 standard errors. Where none does, six are needed for p < .05, and six come
    with probability .8 where their mean number is 7.906."""
    change = np.array([1.0] * 12 + [-1.0] * 3 + [0.0] * 30)
    difference = mcnemar(change < 0, (change < 0) + change)
    assert difference.minimum_detectable == pytest.approx(2.801585 * change.std(ddof=1) / math.sqrt(45), rel=1e-5)
    assert stats.poisson.sf(5, 7.906) == pytest.approx(0.8, abs=1e-4)
    assert stats.binomtest(6, 6).pvalue < 0.05 < stats.binomtest(5, 5).pvalue
    assert mcnemar(np.ones(200), np.ones(200)).minimum_detectable == pytest.approx(7.906 / 200)
    assert mcnemar(np.ones(3), np.ones(3)).minimum_detectable == 1.0


def profile(up: int, down: int, n: int, d: float) -> float:
    """The score statistic of a paired difference d, with the nuisance share by numerical maximum likelihood."""
    least, most = max(0.0, -d), min(1.0, (1 - d) / 2)

    def cost(s: float) -> float:
        cells = ((up, s + d), (down, s), (n - up - down, 1 - 2 * s - d))
        return -sum(k * math.log(max(p, 1e-300)) for k, p in cells if k)

    s = float(optimize.minimize_scalar(cost, bounds=(least, most), method="bounded", options={"xatol": 1e-12}).x)
    return (up - down - n * d) / math.sqrt(n * (2 * s + d - d * d))


@pytest.mark.parametrize(("up", "down", "n"), [(12, 3, 45), (0, 4, 30), (1, 0, 64), (20, 20, 40), (9, 1, 12)])
def test_tangos_limits_by_numerical_likelihood(up: int, down: int, n: int) -> None:
    """At both ends the score statistic is 1.96 standard errors."""
    low, high = _tango_limits(up / n, down / n, n, 1.959963984540054)
    assert profile(up, down, n, low) == pytest.approx(1.95996, abs=2e-3)
    assert profile(up, down, n, high) == pytest.approx(-1.95996, abs=2e-3)


def test_tangos_limits_where_nothing_and_where_everything_changed() -> None:
    none, every = _tango_limits(0.0, 0.0, 50, 1.959963984540054), _tango_limits(1.0, 0.0, 50, 1.959963984540054)
    bound = 1.959963984540054**2 / (50 + 1.959963984540054**2)
    assert none == pytest.approx((-bound, bound))
    assert every[1] == 1.0
    assert 0.8 < every[0] < 1.0


@pytest.mark.slow
def test_interval_and_exact_test_of_a_paired_share_agree() -> None:
    """Every split of up to 60 discordant pairs of 80: the interval excludes zero if and only if p < .05, and the exact
    test never says p < .05 where Tango's own interval holds zero."""
    for total in range(1, 61):
        for up in range(total + 1):
            before = np.array([0.0] * up + [1.0] * (total - up) + [1.0] * (80 - total))
            after = np.array([1.0] * up + [0.0] * (total - up) + [1.0] * (80 - total))
            difference = mcnemar(before, after)
            assert difference.excludes_zero == (difference.p < 0.05), (up, total)


@pytest.mark.slow
def test_interval_and_sign_test_agree_with_any_number_of_ties() -> None:
    """Every split of up to 20 results into wins, losses and ties. With 8, 1 and 4 the sign test says p = .039."""
    cases = [(up, down, ties) for up in range(21) for down in range(21 - up) for ties in range(21 - up - down)][1:]
    for up, down, ties in cases:
        difference = sign_test([1.0] * up + [0.0] * down + [0.5] * ties)
        assert difference.excludes_zero == (difference.p < 0.05), (up, down, ties)
    tied = sign_test([1.0] * 8 + [0.0] + [0.5] * 4)
    assert tied.p == pytest.approx(2 * stats.norm.sf(math.sqrt(13) * 7 / 13))
    assert sign_test([1.0] * 8 + [0.0]).p == pytest.approx(0.0390625)


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=2, max_size=90), st.integers(1, 4), st.integers(0, 10**6))
def test_every_interval_agrees_with_its_test(results: list[float], rows: int, seed: int) -> None:
    after = np.array(results)
    before = np.random.default_rng(seed).permutation(after)
    groups = np.arange(len(results)) // rows
    for result in (
        paired_share(before, after, groups),
        against_half(after, groups),
        paired_mean(before, after, groups),
    ):
        assert result.excludes_zero == (result.p < 0.05)
        assert not result.value < result.low
        assert not result.value > result.high
    interval = share(after, groups)
    assert 0 <= interval.low <= interval.value <= interval.high <= 1


def test_mcnemar_of_equal_results_has_p_one() -> None:
    difference = mcnemar([1.0, 0.0, 0.5], [1.0, 0.0, 0.5])
    assert (difference.value, difference.p) == (0.0, 1.0)


def test_mcnemar_counts_a_tie_as_half_a_discordant_pair_rounded_down() -> None:
    before, after = [0.5] * 7 + [1.0] * 2, [1.0] * 7 + [0.0] * 2
    difference = mcnemar(before, after)
    assert difference.p == pytest.approx(stats.binomtest(3, 5).pvalue)
    assert difference.value == pytest.approx((3.5 - 2) / 9)


def test_mcnemar_needs_the_same_pairs() -> None:
    with pytest.raises(ValueError, match="2 results before but 3 after"):
        mcnemar([1.0, 0.0], [1.0, 0.0, 1.0])


@pytest.mark.parametrize(("right", "wrong", "ties"), [(9, 1, 0), (30, 20, 6), (2, 2, 40), (0, 7, 0)])
def test_sign_test_is_the_exact_binomial_test_without_ties(right: int, wrong: int, ties: int) -> None:
    test = sign_test([1.0] * right + [0.0] * wrong + [0.5] * ties)
    n = right + wrong + ties
    interval = wilson(right + ties / 2, n)
    assert test.p == pytest.approx(stats.binomtest(right, right + wrong).pvalue)
    assert test.value == pytest.approx((right + ties / 2) / n - 0.5)
    assert (test.low, test.high) == pytest.approx((interval.low - 0.5, interval.high - 0.5))
    assert test.minimum_detectable == pytest.approx(1.400793 / math.sqrt(n), rel=1e-5)


def test_sign_test_of_ties_alone_has_p_one() -> None:
    test = sign_test([0.5, 0.5, 0.5])
    assert (test.value, test.p) == (0.0, 1.0)


def test_a_share_of_single_groups_is_wilsons_and_its_tests_are_the_exact_ones() -> None:
    before, after = [1.0, 0.0, 0.5, 1.0, 0.0], [1.0, 1.0, 1.0, 0.0, 1.0]
    groups = list("abcde")
    assert share(after, groups) == wilson(4.0, 5)
    assert paired_share(before, after, groups) == mcnemar(before, after)
    assert against_half(after, groups) == sign_test(after)


def test_values_of_zero_and_one_by_group_have_wilsons_interval_at_their_effective_n() -> None:
    """Twenty prompts of four pairs, all right or all wrong, vary as twenty results do; spread evenly they say more."""
    groups = np.repeat(np.arange(20), 4)
    alike, even = np.repeat([0.0, 1.0] * 10, 4), np.tile([0.0, 1.0, 0.0, 1.0], 20)
    interval, q = share(alike, groups), stats.t.ppf(0.975, 19)
    n = 20 * 0.25 / (0.25 * 20 / 19)
    half = q * math.sqrt(0.25 / n + q**2 / (4 * n**2)) / (1 + q**2 / n)
    assert (interval.value, interval.n) == (0.5, 20)
    assert (interval.high - 0.5, 0.5 - interval.low) == (pytest.approx(half), pytest.approx(half))
    assert share(even, groups) == wilson(10.0, 20)
    noisy = np.clip(0.5 + 0.02 * np.random.default_rng(0).standard_normal(80), 0, 1)
    width = share(noisy, groups).high - share(noisy, groups).low
    assert width == pytest.approx(2 * q * by_group(noisy, groups).std(ddof=1) / math.sqrt(20), rel=0.02)


def test_few_prompts_off_the_most_frequent_value_have_the_widest_variance() -> None:
    """Three of 64 prompts repeat themselves a little: the t interval of that would be [-.001, .009]."""
    values = np.zeros(64)
    values[:3] = (0.05, 0.1, 0.1)
    interval, change = share(values, np.arange(64)), paired_share(np.zeros(64), values, np.arange(64))
    assert (interval.low, interval.high) == pytest.approx((wilson(0.25, 64).low, wilson(0.25, 64).high))
    assert interval.high > 0.05
    assert (change.low, change.test) == (pytest.approx(-0.0529, abs=1e-3), "score test by group")
    assert share([1.0] * 6, list("aabbcc")) == wilson(3.0, 3)


@pytest.mark.slow
def test_pairs_of_one_prompt_are_not_independent() -> None:
    """40 prompts of 28 pairs, each prompt's accuracy drawn from Beta(2, 2): nothing is known, and 5 % say otherwise.

    The sign test over all pairs, as if they were independent, does so in 41 % of the draws.
    """
    draw, groups = np.random.default_rng(0), np.repeat(np.arange(40), 28)
    half, alike, covered = 0, 0, 0
    for _ in range(200):
        once, again = (draw.binomial(1, np.repeat(draw.beta(2, 2, 40), 28)).astype(float) for _ in range(2))
        half += against_half(once, groups).p < 0.05
        alike += paired_share(once, again, groups).p < 0.05
        interval = share(once, groups)
        covered += interval.low <= 0.5 <= interval.high
    assert 4 <= half <= 18
    assert 4 <= alike <= 18
    assert 182 <= covered <= 196


def test_spearman_ranks() -> None:
    assert spearman([1, 2, 3, 4], [10, 100, 1000, 5000]) == pytest.approx(1.0)
    assert spearman([1, 2, 3, 4], [9, 7, 5, 3]) == pytest.approx(-1.0)
    assert spearman([1, 2, 3, 4], [1, 3, 2, 4]) == pytest.approx(0.8)
    assert math.isnan(spearman([1, 2, 3], [5, 5, 5]))


def test_an_interval_as_text() -> None:
    assert str(Interval(0.66, 0.62781, 0.69071, 868)) == "0.66 [0.6278, 0.6907] (n=868)"


@pytest.mark.slow
def test_the_module_imports_no_torch() -> None:
    code = "import sys, treeward.stats.intervals; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
