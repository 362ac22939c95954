"""Selections by hand, their invariants, and the expected gap of ALGORITHMS 3.4."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from treeward.data.selection import AllPairs, BestRandom, BestWorst, Ranking, TopBottom, clear, expected_gap, ranked

SCORES = [0.5, -1.0, 2.0, 0.0]


def test_by_hand() -> None:
    assert BestWorst()(SCORES, "p") == [(2, 1)]
    assert TopBottom(2)(SCORES, "p") == [(2, 1), (0, 3)]
    assert TopBottom(3)(SCORES, "p") == [(2, 1), (0, 3)], "four samples have no third pair"
    assert AllPairs()(SCORES, "p") == [(2, 0), (2, 3), (2, 1), (0, 3), (0, 1), (3, 1)]
    assert Ranking()(SCORES, "p") == [(2, 0, 3, 1)]


def test_best_against_random_depends_on_the_name() -> None:
    picks_by_name = [BestRandom()(SCORES, f"prompt {n}")[0] for n in range(200)]
    assert {pick[0] for pick in picks_by_name} == {2}
    assert {pick[1] for pick in picks_by_name} == {0, 1, 3}
    assert picks_by_name == [BestRandom()(SCORES, f"prompt {n}")[0] for n in range(200)]


def test_a_gap_drops_pairs_and_a_limit_keeps_the_first() -> None:
    picks = AllPairs()(SCORES, "p")
    assert clear(picks, SCORES, 1.5, None) == [(2, 0), (2, 3), (2, 1), (0, 1)]
    assert clear(picks, SCORES, 1.5, 2) == [(2, 0), (2, 3)]
    assert clear([(0, 1)], [1.0, 1.0], 0.0, None) == [], "equal scores say nothing"


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=8), st.floats(0, 2))
def test_every_pick_is_ordered_distinct_and_apart(scores: list[float], gap: float) -> None:
    for selection in (BestWorst(), BestRandom(), TopBottom(2), AllPairs(), Ranking()):
        for pick in clear(selection(scores, "p"), scores, gap, None):
            assert len(set(pick)) == len(pick)
            assert all(scores[a] >= scores[b] for a, b in pairwise(pick))
            assert scores[pick[0]] - scores[pick[-1]] >= gap


def test_equal_scores_keep_their_order() -> None:
    assert ranked([1.0, 2.0, 1.0, 2.0]) == [1, 3, 0, 2]


@pytest.mark.parametrize(
    ("samples", "gap"), [(1, 0.0), (2, 1.128), (4, 2.059), (5, 2.326), (8, 2.847), (16, 3.532), (32, 4.139)]
)
def test_the_expected_gap_of_normal_scores(samples: int, gap: float) -> None:
    assert expected_gap(samples) == pytest.approx(gap, abs=5e-4)


def test_k_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match=r"select\.k is 0"):
        TopBottom(0)
