"""The frontier: which models are on it, which are clearly beaten, and the area between two fronts."""

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from treeward.stats.frontier import Front, Point, between, claims, over_seeds, resampled, score_at, standings
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


# Fronts


def front(
    name: str, kl: Any, score: Any, seeds: int = 1, prompts: int = 20, noise: float = 0.0, seed: int = 0
) -> Front:
    """The policies' KL and score, equal for all seeds and prompts but for noise in the scores after the start."""
    draw = np.random.default_rng(seed)
    shape = (seeds, len(kl), prompts)
    scores = np.broadcast_to(np.array(score, dtype=float)[:, None], shape).copy()
    scores[:, 1:] += noise * (draw.normal(size=(seeds, 1, 1)) + draw.normal(size=(seeds, len(kl) - 1, prompts)))
    return Front(name, np.broadcast_to(np.array(kl, dtype=float)[:, None], shape).copy(), scores)


def test_the_area_between_two_fronts_by_hand() -> None:
    """Lines to (4, 4), and over (1, 3) to (5, 3): b is above by 2x up to 1, by 3 - x up to 3, and then below."""
    a = front("a", [0, 4], [0, 4])
    b = front("b", [0, 1, 5], [0, 3, 3])
    found = between(a, b, draws=20)
    assert found.upto == 4
    assert found.area.value == pytest.approx(1.0 + 2.0 - 0.5)
    assert found.gap.value == pytest.approx(2.5 / 4)
    assert list(found.at) == [1.0, 4.0]
    assert [each.value for each in found.at.values()] == pytest.approx([2.0, -1.0])
    assert not found.dominates


def test_dominated_policies_are_no_part_of_a_front_and_a_front_is_level_after_its_last() -> None:
    a = front("a", [0, 2, 1, 4], [0, 1, 2, 1.5])
    b = front("b", [0, 1, 4], [0, 2, 2])
    found = between(a, b, draws=20)
    assert found.gap.value == pytest.approx(0.0)
    assert math.isnan(found.gap.low)
    assert not found.dominates
    fallen = between(front("a", [0, 3], [0, -1]), front("b", [0, 3], [0, 3]), draws=20)
    assert fallen.gap.value == pytest.approx(1.5)


def test_a_front_dominates_only_where_it_is_above_everywhere() -> None:
    low = front("low", [0, 1, 2, 4], [0, 1, 1.5, 2], seeds=8, noise=0.05, seed=1)
    high = front("high", [0, 1, 2, 4], [0, 2, 2.5, 3], seeds=8, noise=0.05, seed=2)
    crossing = front("crossing", [0, 1, 2, 4], [0, 2, 2.5, 2.6], seeds=8, noise=0.05, seed=3)
    later = front("later", [0, 1, 2, 4], [0, 0.9, 1.6, 3], seeds=8, noise=0.05, seed=4)
    assert between(low, high, draws=200).dominates
    assert not between(high, low, draws=200).dominates
    assert between(low, crossing, draws=200).dominates
    assert not between(crossing, later, draws=200).dominates
    assert not between(later, crossing, draws=200).dominates
    assert not between(low, front("same", [0, 1, 2, 4], [0, 1, 1.5, 2], 8, noise=0.05, seed=5), draws=200).dominates


@pytest.mark.parametrize(("seeds", "prompts"), [(8, 16), (5, 40), (1, 40)])
def test_the_interval_covers_between_seeds_and_prompts(seeds: int, prompts: int) -> None:
    """Two equal methods: 95 % intervals of the gap hold zero in 88 % of 80 worlds or more, and are not wide."""
    covered = 0
    for world in range(80):
        a, b = (front(str(n), [0, 1, 3], [0, 1, 2], seeds, prompts) for n in (0, 1))
        draw = np.random.default_rng(world)
        for each in (a, b):
            each.score[:, 1:] += draw.normal(size=each.score[:, 1:].shape)
            if seeds > 1:
                each.score[:, 1:] += 0.3 * draw.normal(size=(seeds, 1, 1))
        gap = between(a, b, draws=60, seed=world).gap
        covered += gap.low <= 0 <= gap.high
    assert covered >= 0.88 * 80
    assert gap.high - gap.low < 1.2


def test_resampling_seeds_alone_gives_the_t_interval_of_their_means() -> None:
    by_seed = np.random.default_rng(0).normal(size=6)
    cells = np.repeat(by_seed[:, None], 9, axis=1)
    (figure,) = resampled(lambda s, p: np.einsum("ds,sp,dp->d", s, cells, p)[:, None], 6, 9, draws=20_000)
    expected = stats.ttest_1samp(by_seed, 0.0)
    interval = expected.confidence_interval()
    assert figure.value == pytest.approx(by_seed.mean())
    assert (figure.low, figure.high) == pytest.approx((interval.low, interval.high), abs=0.02)
    assert figure.p == pytest.approx(expected.pvalue, rel=0.03)


def test_fronts_that_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="the first policy of 'a' must be the start"):
        between(front("a", [1, 2], [0, 1]), front("b", [0, 2], [0, 1]))
    with pytest.raises(ValueError, match="the same seeds and prompts"):
        between(front("a", [0, 2], [0, 1], seeds=2), front("b", [0, 2], [0, 1]))
