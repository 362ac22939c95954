"""The frontier: which models are on it, and which are clearly beaten."""

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from treeward.stats.frontier import Point, claims, over_seeds, score_at, standings
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


def test_the_score_at_a_kl_is_where_the_path_first_reaches_it() -> None:
    path = [(0.5, 0.0), (1.5, 0.4), (3.0, 1.0), (2.0, 5.0), (4.0, 7.0)]
    assert score_at(path, 1.0) == pytest.approx(0.2)
    assert score_at(path, 2.25) == pytest.approx(0.7)
    assert score_at(path, 4.0) == pytest.approx(7.0)
    assert score_at(path, 0.2) is None
    assert score_at(path, 5.0) is None


def paths_of(gains: Any) -> dict[int, list[tuple[float, float]]]:
    """One straight path for each seed, from (0, 0) to (10, ten times its gain)."""
    return {seed: [(0.0, 0.0), (10.0, 10 * gain)] for seed, gain in enumerate(gains)}


def test_settings_are_compared_by_paired_seeds_at_each_kl_and_at_the_end() -> None:
    """Seeds differ far more than settings do, so only pairing shows the difference."""
    draw = np.random.default_rng(0)
    seeds = draw.normal(size=8)
    paths = {
        "low": paths_of(seeds),
        "high": paths_of(seeds + 0.2 + 0.01 * draw.normal(size=8)),
        "same": paths_of(seeds + 0.01 * draw.normal(size=8)),
    }
    trained = {name: {seed: path[-1][1] for seed, path in by_seed.items()} for name, by_seed in paths.items()}
    made = {(c.a, c.b, c.kl): c for c in claims(paths, trained, (2.0, 20.0))}
    assert made["low", "high", 2.0].verdict == "high is above"
    assert made["high", "same", None].verdict == "high is above"
    assert made["low", "same", 2.0].verdict == "not distinguishable"
    assert made["low", "high", 20.0].verdict == "not reached"
    claim = made["low", "high", 2.0]
    assert claim.difference is not None
    assert claim.difference.value == pytest.approx(0.4, abs=0.02)
    assert claim.difference.low < claim.difference.value < claim.difference.high
    plain = float(stats.ttest_rel([2 * path[-1][1] / 10 for path in paths["high"].values()], 2 * seeds).pvalue)
    assert plain <= claim.p <= 6 * plain  # six comparisons have a value


def test_fewer_than_eight_seeds_make_no_claim() -> None:
    gains = np.arange(7.0)
    paths = {"a": paths_of(gains), "b": paths_of(gains + 1 + gains / 100)}
    trained = {name: {seed: path[-1][1] for seed, path in by_seed.items()} for name, by_seed in paths.items()}
    made = claims(paths, trained, (2.0,))
    assert [claim.verdict for claim in made] == ["no claim from 7 seeds"] * 2
    assert all(claim.p < 1e-4 for claim in made)


@pytest.mark.slow
def test_equal_settings_are_seldom_called_different() -> None:
    """Of 200 studies of three equal settings 5 % may claim anything; 20 or more have a probability below 1 in 1000."""
    draw = np.random.default_rng(1)
    called = 0
    for _ in range(200):
        base = draw.normal(size=8)
        paths = {name: paths_of(base + 0.3 * draw.normal(size=8)) for name in "abc"}
        trained = {name: {s: p[-1][1] + draw.normal() for s, p in by_seed.items()} for name, by_seed in paths.items()}
        called += any(claim.verdict.endswith("is above") for claim in claims(paths, trained))
    assert called < 20
