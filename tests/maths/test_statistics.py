"""Intervals and tests: E1, E5, E6, E7 of ALGORITHMS.md, scipy's exact tests, and enumeration."""

import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from scipy import stats

from treeward.maths.statistics import (
    Interval,
    against_half,
    by_group,
    clustered_mean,
    mcnemar,
    paired_bootstrap,
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
    held = sum(stats.binom.pmf(k, n, p) for k, interval in enumerate(intervals) if interval.low <= p <= interval.high)
    assert held == pytest.approx(coverage, abs=5e-4)


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


def test_e1_a_model_against_itself_differs_by_exactly_zero() -> None:
    values = np.random.default_rng(0).standard_normal(200)
    found = paired_bootstrap(values, values.copy(), np.arange(200) // 4)
    assert (found.value, found.low, found.high, found.p) == (0.0, 0.0, 0.0, 1.0)
    assert found.minimum_detectable == 0.0


def test_a_constant_gain_has_an_interval_of_no_width() -> None:
    before = np.random.default_rng(1).integers(0, 100, 60).astype(float)
    found = paired_bootstrap(before, before - 2.0, np.arange(60))
    assert (found.value, found.low, found.high) == (-2.0, -2.0, -2.0)


@pytest.mark.parametrize(("gain", "n", "p"), [(-2.0, 60, 2.0**-59), (0.1, 3, 0.25), (0.5, 1, 1.0), (0.0, 9, 1.0)])
def test_a_constant_gain_has_the_p_of_the_sign_flips(gain: float, n: int, p: float) -> None:
    """All n differences alike: of 2^n sign flips two are as far from zero. Rounding does not make them unlike."""
    before = np.random.default_rng(2).standard_normal(n) if gain == 0.1 else np.zeros(n)
    assert paired_bootstrap(before, before + gain, np.arange(n)).p == p


def test_the_bootstrap_resamples_whole_groups() -> None:
    """Two groups: the replicates are the means of two draws, so the 95 % interval ends at the group means."""
    before = np.zeros(1000)
    after = np.repeat([1.0, 5.0], 500)
    found = paired_bootstrap(before, after, np.repeat([0, 1], 500))
    assert (found.low, found.value, found.high) == (1.0, 3.0, 5.0)


def test_the_bootstrap_agrees_with_the_normal_interval_and_the_t_test() -> None:
    draw = np.random.default_rng(5)
    before = draw.standard_normal(400)
    gain = 0.2 + draw.standard_normal(400)
    found = paired_bootstrap(before, before + gain, np.arange(400))
    error = gain.std(ddof=1) / 20
    assert found.value == pytest.approx(gain.mean())
    assert found.low == pytest.approx(gain.mean() - 1.96 * error, abs=0.01)
    assert found.high == pytest.approx(gain.mean() + 1.96 * error, abs=0.01)
    assert found.p == pytest.approx(float(stats.ttest_1samp(gain, 0.0).pvalue))
    assert found.minimum_detectable == pytest.approx(2.801585 * error, rel=1e-5)


def test_the_bootstrap_depends_on_its_seed_alone() -> None:
    draw = np.random.default_rng(6)
    before, after = draw.standard_normal(30), draw.standard_normal(30)
    first = paired_bootstrap(before, after, np.arange(30), seed=1)
    assert first == paired_bootstrap(before, after, np.arange(30), seed=1)
    assert first != paired_bootstrap(before, after, np.arange(30), seed=2)


@pytest.mark.parametrize(("gained", "lost", "kept"), [(12, 3, 30), (3, 12, 5), (1, 0, 9), (40, 40, 0)])
def test_mcnemar_is_the_exact_binomial_test_of_the_discordant_pairs(gained: int, lost: int, kept: int) -> None:
    before = [0.0] * gained + [1.0] * lost + [1.0] * kept
    after = [1.0] * gained + [0.0] * lost + [1.0] * kept
    found = mcnemar(before, after)
    n = gained + lost + kept
    assert found.p == pytest.approx(stats.binomtest(gained, gained + lost).pvalue)
    assert found.value == pytest.approx((gained - lost) / n)
    change = np.asarray(after) - np.asarray(before)
    half = 1.959963984540054 * change.std(ddof=1) / math.sqrt(n)
    assert (found.low, found.high) == pytest.approx((found.value - half, found.value + half))
    assert found.test == "mcnemar"
    assert found.minimum_detectable == pytest.approx(2.801585 * change.std(ddof=1) / math.sqrt(n), rel=1e-5)


def test_mcnemar_of_equal_results_is_certain_of_nothing() -> None:
    found = mcnemar([1.0, 0.0, 0.5], [1.0, 0.0, 0.5])
    assert (found.value, found.p) == (0.0, 1.0)


def test_mcnemar_counts_a_tie_as_half_a_discordant_pair_rounded_down() -> None:
    before, after = [0.5] * 7 + [1.0] * 2, [1.0] * 7 + [0.0] * 2
    found = mcnemar(before, after)
    assert found.p == pytest.approx(stats.binomtest(3, 5).pvalue)
    assert found.value == pytest.approx((3.5 - 2) / 9)


def test_mcnemar_needs_the_same_pairs() -> None:
    with pytest.raises(ValueError, match="2 results before but 3 after"):
        mcnemar([1.0, 0.0], [1.0, 0.0, 1.0])


@pytest.mark.parametrize(("right", "wrong", "ties"), [(9, 1, 0), (30, 20, 6), (2, 2, 40), (0, 7, 0)])
def test_sign_test_is_the_exact_binomial_test_without_ties(right: int, wrong: int, ties: int) -> None:
    found = sign_test([1.0] * right + [0.0] * wrong + [0.5] * ties)
    n = right + wrong + ties
    interval = wilson(right + ties / 2, n)
    assert found.p == pytest.approx(stats.binomtest(right, right + wrong).pvalue)
    assert found.value == pytest.approx((right + ties / 2) / n - 0.5)
    assert (found.low, found.high) == pytest.approx((interval.low - 0.5, interval.high - 0.5))
    assert found.minimum_detectable == pytest.approx(1.400793 / math.sqrt(n), rel=1e-5)


def test_sign_test_of_ties_alone_is_certain_of_nothing() -> None:
    found = sign_test([0.5, 0.5, 0.5])
    assert (found.value, found.p) == (0.0, 1.0)


def test_a_share_of_single_groups_is_wilsons_and_its_tests_are_the_exact_ones() -> None:
    before, after = [1.0, 0.0, 0.5, 1.0, 0.0], [1.0, 1.0, 1.0, 0.0, 1.0]
    groups = list("abcde")
    assert share(after, groups) == wilson(4.0, 5)
    assert paired_share(before, after, groups) == mcnemar(before, after)
    assert against_half(after, groups) == sign_test(after)


def test_a_share_of_repeated_groups_is_the_mean_of_theirs_within_its_bounds() -> None:
    found = share([1.0, 0.0, 1.0, 1.0, 1.0, 1.0], list("aabbcc"))
    assert (found.value, found.high, found.n) == (pytest.approx(5 / 6), 1.0, 3)
    assert found.low == pytest.approx(5 / 6 - 4.302653 / 6, rel=1e-5)
    assert share([1.0] * 6, list("aabbcc")) == wilson(3.0, 3)
    gain = paired_share([0.0] * 6, [1.0, 0.0, 1.0, 1.0, 1.0, 1.0], list("aabbcc"))
    assert (gain.value, gain.test) == (pytest.approx(5 / 6), "paired bootstrap by group")


def test_pairs_of_one_prompt_are_not_independent() -> None:
    """40 prompts of 28 pairs, each prompt's accuracy drawn from Beta(2, 2): nothing is known, and 5 % say otherwise.

    The sign test over all pairs, as if they were independent, does so in 41 % of the draws.
    """
    draw, groups = np.random.default_rng(0), np.repeat(np.arange(40), 28)
    half, alike, held = 0, 0, 0
    for _ in range(200):
        once, again = (draw.binomial(1, np.repeat(draw.beta(2, 2, 40), 28)).astype(float) for _ in range(2))
        half += against_half(once, groups).p < 0.05
        alike += paired_share(once, again, groups).p < 0.05
        found = share(once, groups)
        held += found.low <= 0.5 <= found.high
    assert 4 <= half <= 18
    assert 4 <= alike <= 18
    assert 182 <= held <= 196


def test_spearman_ranks() -> None:
    assert spearman([1, 2, 3, 4], [10, 100, 1000, 5000]) == pytest.approx(1.0)
    assert spearman([1, 2, 3, 4], [9, 7, 5, 3]) == pytest.approx(-1.0)
    assert spearman([1, 2, 3, 4], [1, 3, 2, 4]) == pytest.approx(0.8)
    assert math.isnan(spearman([1, 2, 3], [5, 5, 5]))


def test_an_interval_reads_well() -> None:
    assert str(Interval(0.66, 0.62781, 0.69071, 868)) == "0.66 [0.6278, 0.6907] (n=868)"


def test_the_module_imports_no_torch() -> None:
    code = "import sys, treeward.maths.statistics; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
