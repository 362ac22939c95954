"""Best-of-n: known values (E3, E4), unbiasedness by enumeration, and the comparison at equal KL."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from treeward.stats import frontier


def test_bounds_of_n() -> None:
    expected = {1: 0.0, 2: 0.193, 4: 0.636, 8: 1.204, 16: 1.835, 32: 2.497, 64: 3.175}
    assert {n: round(frontier.kl_bound(n), 3) for n in expected} == expected


def test_e3_kl_of_equally_likely_responses_lies_below_the_bound() -> None:
    expected = {2: 0.130812, 3: 0.161724, 4: 0.173980, 10**5: frontier.kl_bound(2)}
    for responses, kl in expected.items():
        p = np.diff((np.arange(responses + 1) / responses) ** 2)
        assert float((p * np.log(responses * p)).sum()) == pytest.approx(kl, abs=1e-4 if kl > 0.18 else 1e-6)
        assert kl <= frontier.kl_bound(2)


def test_e4_unbiased_best_of_two() -> None:
    assert frontier.expected_best([[1.0, 2.0, 3.0, 4.0]], 2)[0] == pytest.approx(10 / 3)


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=6))
def test_unbiased_is_the_mean_over_all_subsets(scores: list[float]) -> None:
    for n in range(1, len(scores) + 1):
        best = [max(subset) for subset in itertools.combinations(scores, n)]
        assert frontier.expected_best([scores], n)[0] == pytest.approx(sum(best) / len(best))


def test_a_policy_that_is_best_of_n_lies_on_the_curve() -> None:
    """The best of four normal draws, 100 times: about 95 % of the intervals of the difference cover zero."""
    draw, covered = np.random.default_rng(0), 0
    for _ in range(100):
        start, tuned = draw.normal(size=(60, 8)), draw.normal(size=(60, 4)).max(1)
        result = frontier.at_equal_kl(start, tuned, np.full(60, frontier.kl_bound(4)))
        assert result.score == pytest.approx(1.029, abs=0.25)
        assert result.above is not None
        covered += result.above.low <= 0 <= result.above.high
    assert 88 <= covered <= 100


def test_a_better_and_a_worse_policy_are_told_apart() -> None:
    start = np.random.default_rng(1).normal(size=(200, 8))
    kl = np.full(200, 0.5)
    better, worse = (frontier.at_equal_kl(start, start.mean(1) + gain, kl).above for gain in (2.0, 0.1))
    assert better is not None
    assert worse is not None
    assert better.low > 0 > worse.high


def test_the_interval_accounts_for_a_kl_that_varies_with_the_score() -> None:
    """Score and KL vary together between prompts, along the curve, so the difference from the curve does not vary."""
    draw = np.random.default_rng(2)
    start = np.tile([0.0, 1.0], (300, 1))
    kl = draw.uniform(0, 2 * frontier.kl_bound(2), 300) * 0.5
    tuned = 0.5 + 0.5 * kl / frontier.kl_bound(2)
    result = frontier.at_equal_kl(start, tuned, kl)
    assert result.above is not None
    assert result.score == pytest.approx(tuned.mean())
    assert (result.above.value, result.above.low, result.above.high) == pytest.approx((0, 0, 0), abs=1e-9)


def test_beyond_the_curve_there_is_no_comparison() -> None:
    result = frontier.at_equal_kl([[0.0, 1.0]], [3.0], [0.5])
    assert (result.score, result.above) == (None, None)
    assert result.reached == pytest.approx(math.log(2) - 0.5)
