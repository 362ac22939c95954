"""Best-of-n: oracles E3 and E4, unbiasedness by enumeration, and the comparison at equal KL."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from treeward.stats import best_of_n


def test_bounds_of_n() -> None:
    expected = {1: 0.0, 2: 0.193, 4: 0.636, 8: 1.204, 16: 1.835, 32: 2.497, 64: 3.175}
    assert {n: round(best_of_n.kl_bound(n), 3) for n in expected} == expected


def test_e3_kl_of_equally_likely_responses_lies_below_the_bound() -> None:
    expected = {2: 0.130812, 3: 0.161724, 4: 0.173980, 10**5: best_of_n.kl_bound(2)}
    for responses, kl in expected.items():
        p = np.diff((np.arange(responses + 1) / responses) ** 2)
        assert float((p * np.log(responses * p)).sum()) == pytest.approx(kl, abs=1e-4 if kl > 0.18 else 1e-6)
        assert kl <= best_of_n.kl_bound(2)


def test_e4_unbiased_best_of_two() -> None:
    assert best_of_n.unbiased([[1.0, 2.0, 3.0, 4.0]], 2)[0] == pytest.approx(10 / 3)


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=6))
def test_unbiased_is_the_mean_over_all_subsets(scores: list[float]) -> None:
    for n in range(1, len(scores) + 1):
        every = [max(part) for part in itertools.combinations(scores, n)]
        assert best_of_n.unbiased([scores], n)[0] == pytest.approx(sum(every) / len(every))


def test_a_policy_that_is_best_of_n_lies_on_the_curve() -> None:
    """The best of four normal draws, 100 times: about 95 % of the intervals of what it lies above hold zero."""
    draw, held = np.random.default_rng(0), 0
    for _ in range(100):
        start, tuned = draw.normal(size=(60, 8)), draw.normal(size=(60, 4)).max(1)
        found = best_of_n.at_equal_kl(start, tuned, np.full(60, best_of_n.kl_bound(4)))
        assert found.score == pytest.approx(1.029, abs=0.25)
        assert found.above is not None
        held += found.above.low <= 0 <= found.above.high
    assert 88 <= held <= 100


def test_a_better_and_a_worse_policy_are_told_apart() -> None:
    start = np.random.default_rng(1).normal(size=(200, 8))
    kl = np.full(200, 0.5)
    better, worse = (best_of_n.at_equal_kl(start, start.mean(1) + gain, kl).above for gain in (2.0, 0.1))
    assert better is not None
    assert worse is not None
    assert better.low > 0 > worse.high


def test_a_kl_that_varies_by_prompt_is_resampled_with_it() -> None:
    """Score and KL rise together from prompt to prompt, along the curve: the difference to the curve hardly varies."""
    draw = np.random.default_rng(2)
    start = np.tile([0.0, 1.0], (300, 1))
    kl = draw.uniform(0, 2 * best_of_n.kl_bound(2), 300) * 0.5
    tuned = 0.5 + 0.5 * kl / best_of_n.kl_bound(2)
    found = best_of_n.at_equal_kl(start, tuned, kl)
    assert found.above is not None
    assert found.score == pytest.approx(tuned.mean())
    assert (found.above.value, found.above.low, found.above.high) == pytest.approx((0, 0, 0), abs=1e-9)


def test_past_the_curve_nothing_is_said() -> None:
    found = best_of_n.at_equal_kl([[0.0, 1.0]], [3.0], [0.5])
    assert (found.score, found.above) == (None, None)
    assert found.reached == pytest.approx(math.log(2) - 0.5)
