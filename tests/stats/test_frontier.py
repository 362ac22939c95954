"""The frontier: which models are on it, and which are clearly beaten."""

import math

import numpy as np
import pytest

from treeward.stats.frontier import Point, over_seeds, standings
from treeward.stats.intervals import Floats, Interval


def point(label: str, kl: float, score: float, half: float = 0.1, seed: int | None = None) -> Point:
    return Point(label, Interval(score, score - half, score + half, 50), Interval(kl, kl, kl, 50), seed=seed)


def spread(mean: float, seed: int, n: int = 40) -> Floats:
    """Scores of n prompts with this very mean and a standard deviation of 0.5."""
    draw = np.random.default_rng(seed).normal(size=n)
    return mean + 0.5 * (draw - draw.mean()) / draw.std()


def test_dominance_and_what_is_clear() -> None:
    places = [("start", 0.0, 0.0), ("good", 1.0, 1.0), ("dear", 2.0, 0.95), ("poor", 2.0, 0.5)]
    points = [point(label, kl, score) for label, kl, score in places]
    result = {s.point.label: s for s in standings(points, [spread(score, n) for n, (_, _, score) in enumerate(places)])}
    assert [name for name, s in result.items() if s.on_frontier] == ["start", "good"]
    assert result["dear"].beaten_by == ()
    assert result["poor"].beaten_by == ("good", "dear")


def test_equal_points_do_not_dominate_each_other() -> None:
    same = [point("a", 1, 1), point("b", 1, 1)]
    assert all(s.on_frontier and not s.beaten_by for s in standings(same, [spread(1, 0)] * 2))


def test_a_higher_score_at_more_kl_beats_nothing() -> None:
    result = standings([point("near", 1, 0), point("far", 2, 9)], [spread(0, 0), spread(9, 1)])
    assert [s.beaten_by for s in result] == [(), ()]


def test_what_is_clear_alone_is_not_clear_among_many() -> None:
    """A one-sided p of 0.001 is significant alone, but not among the 190 comparisons of twenty models."""
    base = spread(0, 0)
    gain = spread(0, 1)
    gain += 3.3 * gain.std(ddof=1) / math.sqrt(len(gain))
    pair = [point("better", 0, 1), point("base", 1, 0)]
    assert [s.beaten_by for s in standings(pair, [base + gain, base])] == [(), ("better",)]
    noise = [spread(0, n) for n in range(2, 20)]
    many = [*pair, *(point(str(n), 2 + n, 0) for n in range(18))]
    assert standings(many, [base + gain, base, *noise])[1].beaten_by == ()


def test_prompts_that_vary_alike_are_compared_with_each_other() -> None:
    """The test is paired: a difference of 0.1 is clear although scores vary by 0.5 between prompts."""
    base = spread(0, 0)
    result = standings([point("a", 0, 0.1), point("b", 1, 0)], [base + 0.1 + spread(0, 1) / 10, base])
    assert result[1].beaten_by == ("a",)


@pytest.mark.slow
def test_thirty_equal_models_are_seldom_called_beaten() -> None:
    """Any of thirty in at most 5 % of frontiers. Of 30 frontiers, six or more have a probability below 1 in 200."""
    draw = np.random.default_rng(0)
    points = [point(str(n), n, 0) for n in range(30)]
    called = 0
    for _ in range(30):
        scores = draw.normal(size=(1, 40)) + draw.normal(size=(30, 40))
        called += any(s.beaten_by for s in standings(points, list(scores)))
    assert called <= 5


def test_one_prompt_is_never_clear() -> None:
    result = standings([point("a", 0, 9), point("b", 1, 0)], [np.array([9.0]), np.array([0.0])])
    assert result[1].beaten_by == ()


def test_over_seeds_is_the_mean_with_the_interval_between_runs() -> None:
    runs = [point("a", s / 2, s, seed=n) for n, s in enumerate((1.0, 2.0, 3.0))]
    mean, single = over_seeds([*runs, point("b", 1, 1)])
    assert mean.score.value == 2.0
    assert mean.score.n == 3
    assert (mean.kl.value, mean.kl.high - 1.0) == (1.0, pytest.approx(4.302653 / 2 / math.sqrt(3), rel=1e-6))
    assert mean.score.high - 2.0 == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert single == point("b", 1, 1)
