"""The frontier: who stands on it, and who is clearly beaten."""

import math

import pytest

from treeward.maths.frontier import Point, clearly, over_seeds, standings
from treeward.maths.statistics import Interval


def point(label: str, kl: float, score: float, half: float = 0.1, seed: int | None = None) -> Point:
    return Point(label, Interval(score, score - half, score + half, 50), Interval(kl, kl, kl, 50), seed=seed)


def test_dominance_and_what_is_clear() -> None:
    start, good, dear, poor = point("start", 0, 0), point("good", 1, 1), point("dear", 2, 0.95), point("poor", 2, 0.5)
    found = {s.point.label: s for s in standings([start, good, dear, poor])}
    assert [name for name, s in found.items() if s.on_frontier] == ["start", "good"]
    assert found["dear"].beaten_by == ()
    assert found["poor"].beaten_by == ("good", "dear")


def test_equal_points_do_not_dominate_each_other() -> None:
    assert all(s.on_frontier and not s.beaten_by for s in standings([point("a", 1, 1), point("b", 1, 1)]))


def test_clear_means_both_intervals_in_quadrature() -> None:
    apart = 0.1 * math.sqrt(2)
    assert clearly(point("a", 0, apart + 0.001), point("b", 0, 0))
    assert not clearly(point("a", 0, apart - 0.001), point("b", 0, 0))


def test_only_the_sides_that_face_each_other_count() -> None:
    """The better one's way down and the worse one's way up."""

    def at(value: float, below: float, above: float) -> Point:
        return Point("p", Interval(value, value - below, value + above, 9), Interval(0, 0, 0, 9))

    assert clearly(at(1.0, 0.1, 5.0), at(0.0, 5.0, 0.1))
    assert not clearly(at(1.0, 5.0, 0.1), at(0.0, 0.1, 0.1))
    assert not clearly(at(1.0, 0.1, 0.1), at(0.0, 0.1, 5.0))


def test_an_unknown_interval_is_never_clear() -> None:
    unknown = Point("a", Interval(9.0, math.nan, math.nan, 1), Interval(0, 0, 0, 1))
    assert not clearly(unknown, point("b", 0, 0))


def test_over_seeds_is_the_mean_with_the_interval_between_runs() -> None:
    runs = [point("a", 10 * s - 3, s, seed=n) for n, s in enumerate((1.0, 2.0, 3.0))]
    mean, single = over_seeds([*runs, point("b", 1, 1)])
    assert mean.score.value == 2.0
    assert mean.score.n == 3
    assert mean.score.high - 2.0 == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert mean.kl.value == pytest.approx(17.0)
    assert mean.kl.high - 17.0 == pytest.approx(10 * 4.302653 / math.sqrt(3), rel=1e-6)
    assert single == point("b", 1, 1)
