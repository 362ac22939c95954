"""Score against KL: best-of-n sampling, and the frontier of several models.

Best-of-n: with K scored samples per prompt, the expected best of n has an unbiased estimate for every n up to K.
KL(best-of-n, start) is at most ln n - (n - 1)/n (arXiv:2401.01879), with equality only if no response is repeated and
no scores are tied.

Frontier: a model is on it if no other model has at least its score at no more than its KL, with one of the two strict.
A model is clearly beaten by another whose KL is no higher if the other's score is significantly higher on the same
prompts: a one-sided paired t test by prompt, with Holm's correction (1979) for all these comparisons. If all models
are equal, a model is called clearly beaten in at most 5 % of frontiers, whatever their number (bench/calibration.py
simulates thirty).

Notation: G prompts, K samples per prompt, n the number of samples that best-of-n chooses from.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise, permutations

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from treeward.stats.diversity import Gap
from treeward.stats.intervals import Difference, Floats, Interval, clustered_mean, holm, paired_mean


def kl_bound(n: int) -> float:
    """The largest possible KL(best-of-n, start): ln n - (n - 1)/n, in nats."""
    return math.log(n) - (n - 1) / n


def rank_weights(samples: int, n: int) -> Floats:
    """The probability that the i-th lowest of K scores is the best of n drawn from them: C(i-1, n-1) / C(K, n)."""
    return np.array([math.comb(i, n - 1) / math.comb(samples, n) for i in range(samples)])


def expected_best(scores: ArrayLike, n: int) -> Floats:
    """The unbiased estimate of the best of n samples, for each prompt (G,). `scores` is (G, K), n at most K."""
    ranked = np.sort(np.asarray(scores, dtype=np.float64), axis=1)
    return np.asarray(ranked @ rank_weights(ranked.shape[1], n), dtype=np.float64)


@dataclass(frozen=True)
class AtEqualKL:
    """A policy compared with best-of-n of the start model at equal KL.

    Attributes:
        kl: The policy's mean KL from the start model, in nats per response.
        reached: The largest KL of the best-of-n curve, that of n = K.
        score: The score of best-of-n at this KL; None if the curve ends before it.
        above: The policy's score minus that of best-of-n; None likewise.
    """

    kl: float
    reached: float
    score: float | None
    above: Gap | None


def at_equal_kl(scores: ArrayLike, after: ArrayLike, kl: ArrayLike) -> AtEqualKL:
    """Compare a trained policy with best-of-n of its start model at equal KL.

    The best-of-n curve of score against KL is interpolated linearly between the bounds of n = 1..K: a mixture of two
    neighbouring n achieves at least that, because KL is convex. The bound is the largest possible KL. Where responses
    repeat or scores are tied the true KL of best-of-n is lower, so the comparison favours the policy.

    The interval is the t interval over prompts, by the delta method. It holds while the mean KL stays between the same
    two neighbouring bounds.

    Args:
        scores: The start model's scores (G, K).
        after: The policy's mean score of each prompt (G,).
        kl: The policy's mean KL of each prompt (G,), in nats per response.
    """
    start_scores = np.asarray(scores, dtype=np.float64)
    bounds = np.array([kl_bound(n) for n in range(1, start_scores.shape[1] + 1)])
    curve = np.stack([expected_best(start_scores, n) for n in range(1, start_scores.shape[1] + 1)], 1)
    policy_scores, policy_kl = np.asarray(after, dtype=np.float64), np.asarray(kl, dtype=np.float64)
    mean_kl = float(policy_kl.mean())
    if mean_kl > bounds[-1]:
        return AtEqualKL(mean_kl, float(bounds[-1]), None, None)
    left = min(max(int(np.searchsorted(bounds, mean_kl, side="right")) - 1, 0), max(len(bounds) - 2, 0))
    right = min(left + 1, len(bounds) - 1)
    width = bounds[right] - bounds[left]
    slope = float((curve[:, right] - curve[:, left]).mean() / width) if width else 0.0
    weight = (mean_kl - bounds[left]) / width if width else 0.0
    best_of_n = (1 - weight) * curve[:, left] + weight * curve[:, right]
    above = clustered_mean(policy_scores - best_of_n - slope * (policy_kl - mean_kl), np.arange(len(start_scores)))
    gap = Gap(above.value, above.low, above.high, above.reliable)
    return AtEqualKL(mean_kl, float(bounds[-1]), float(best_of_n.mean()), gap)


LEVEL = 0.05
"""The probability that any of several equal models is called clearly beaten."""
SEEDS = 8
"""Fewest paired seeds on which a difference between two settings is a claim."""
KLS = (2.0, 4.0, 8.0)
"""The KL in nats at which settings are compared."""


@dataclass(frozen=True)
class Point:
    """One model.

    Attributes:
        label: Its name.
        score: Its mean score.
        kl: Its KL from the start model, in nats per response.
        family: The models that are drawn alike.
        seed: The seed of its run.
    """

    label: str
    score: Interval
    kl: Interval
    family: str = ""
    seed: int | None = None


@dataclass(frozen=True)
class Standing:
    """Whether a point is on the frontier, and the labels of the points that clearly beat it."""

    point: Point
    on_frontier: bool
    beaten_by: tuple[str, ...]


def standings(points: Sequence[Point], scores: Sequence[Floats]) -> list[Standing]:
    """The standing of every point, in order.

    Args:
        points: The models.
        scores: For each model, its mean score of each prompt; the prompts are in the same order for all.
    """
    beaten = _clearly_beaten(points, scores)
    return [
        Standing(point, not any(_dominates(other, point) for other in points), by)
        for point, by in zip(points, beaten, strict=True)
    ]


def _clearly_beaten(points: Sequence[Point], scores: Sequence[Floats]) -> list[tuple[str, ...]]:
    """The labels of the points that clearly beat each point."""
    pairs = [(a, b) for a, b in permutations(range(len(points)), 2) if points[a].kl.value <= points[b].kl.value]
    corrected = holm([_above(scores[a], scores[b]) for a, b in pairs])
    clear = [pair for pair, p in zip(pairs, corrected, strict=True) if p < LEVEL]
    return [tuple(points[a].label for a, b in clear if b == index) for index in range(len(points))]


def _above(a: Floats, b: Floats) -> float:
    """The one-sided p value for a's scores being above b's on the same prompts."""
    difference = paired_mean(b, a, range(len(a)))
    return difference.p / 2 if difference.value > 0 else 1 - difference.p / 2


def over_seeds(points: Sequence[Point]) -> list[Point]:
    """One point per label: the mean over its seeds, with the interval between runs. A single seed stays as it is."""
    means = []
    for label in dict.fromkeys(point.label for point in points):
        seeds = [point for point in points if point.label == label]
        if len(seeds) == 1:
            means.append(seeds[0])
        else:
            score, kl = _mean_over_runs([p.score.value for p in seeds]), _mean_over_runs([p.kl.value for p in seeds])
            means.append(Point(label, score, kl, seeds[0].family))
    return means


def _mean_over_runs(values: Sequence[float]) -> Interval:
    mean = clustered_mean(np.array(values), np.arange(len(values)))
    return replace(mean, reliable=len(values) >= SEEDS)  # means over many prompts: close to normal between seeds


def _paired_by_seed(before: Sequence[float], after: Sequence[float]) -> Difference:
    """The paired t test and interval over seeds."""
    test = stats.ttest_rel(after, before)
    low, high = test.confidence_interval()
    mean = float(np.mean(after) - np.mean(before))
    return Difference(
        mean, float(low), float(high), float(test.pvalue), "paired t by seed", math.nan, len(before) >= SEEDS
    )


def _dominates(a: Point, b: Point) -> bool:
    """Whether a has at least b's score at no more than b's KL, one of them strictly."""
    better = a.score.value > b.score.value or a.kl.value < b.kl.value
    return better and a.score.value >= b.score.value and a.kl.value <= b.kl.value


@dataclass(frozen=True)
class Claim:
    """Two settings over paired seeds: the score of `b` minus that of `a`, and p, by Holm over all from `SEEDS` seeds.

    `kl` is the KL at which they are compared, None for the trained models after equally many steps. `difference` is
    None where fewer than two seeds reach this KL in both settings.
    """

    a: str
    b: str
    kl: float | None
    seeds: int
    difference: Difference | None
    p: float

    @property
    def verdict(self) -> str:
        """Which setting is above, if anything can be said; with fewer than `SEEDS` seeds nothing is."""
        if self.difference is None:
            return "not reached"
        if self.seeds < SEEDS:
            return f"no claim from {self.seeds} seeds"
        if self.p >= LEVEL:
            return "not distinguishable"
        return f"{self.b if self.difference.value > 0 else self.a} is above"


def score_at(path: Sequence[tuple[float, float]], kl: float) -> float | None:
    """The score where a run's path of (KL, score) first reaches this KL, by linear interpolation; None if it does not,
    or starts above it.
    """
    for (left, low), (right, high) in pairwise(path):
        if left <= kl <= right and right > left:
            return low + (high - low) * (kl - left) / (right - left)
    return None


def claims(
    paths: Mapping[str, Mapping[int, Sequence[tuple[float, float]]]],
    trained: Mapping[str, Mapping[int, float]],
    kls: Sequence[float] = KLS,
) -> list[Claim]:
    """Every pair of settings compared after training and at every KL, by paired t tests over their common seeds,
    corrected by Holm.

    Args:
        paths: For each setting and seed the (KL, score) on the validation part while it trained, in order. Settings
            without are compared at the end alone.
        trained: For each setting and seed the score of the trained model.
        kls: The KL at which to compare, in nats.
    """

    def score(setting: str, seed: int, kl: float | None) -> float | None:
        return trained[setting][seed] if kl is None else score_at(paths.get(setting, {}).get(seed, ()), kl)

    made: list[Claim] = []
    for a, b in combinations(trained, 2):
        for kl in (None, *(kls if a in paths and b in paths else ())):
            both = [(score(a, seed, kl), score(b, seed, kl)) for seed in trained[a] if seed in trained[b]]
            reached = [(x, y) for x, y in both if x is not None and y is not None]
            if len(reached) < 2:
                made.append(Claim(a, b, kl, len(reached), None, 1.0))
                continue
            before, after = zip(*reached, strict=True)
            difference = _paired_by_seed(before, after)
            made.append(Claim(a, b, kl, len(reached), difference, difference.p))
    tested = [claim for claim in made if claim.difference is not None and claim.seeds >= SEEDS]
    corrected = dict(zip(map(id, tested), holm([claim.p for claim in tested]), strict=True))
    return [replace(claim, p=corrected.get(id(claim), claim.p)) for claim in made]


# Fronts: several policies of one method, such as the shares of `treeward warp` or the checkpoints of a run


@dataclass(frozen=True)
class Front:
    """Score and KL of the policies of one method.

    Attributes:
        name: The method.
        kl: (seeds, policies, prompts), in nats. Prompts are the same, in the same order, for fronts that are compared.
        score: The same.
    """

    name: str
    kl: Floats
    score: Floats


@dataclass(frozen=True)
class Between:
    """Front `b` against front `a`.

    Attributes:
        upto: The common range of KL ends here, at the smaller of the fronts' largest KL; it begins at 0.
        area: The area between the fronts over this range, b above a, in score times nats.
        gap: The area divided by the range: how much higher b's score is, averaged over KL.
        at: The difference at each KL of a policy of either front in the range.
    """

    a: str
    b: str
    upto: float
    area: Difference
    gap: Difference
    at: Mapping[float, Difference]

    @property
    def verdict(self) -> str:
        """Which front is above over the common range, if that can be said."""
        if not self.gap.p < LEVEL:
            return "not distinguishable"
        if self.dominates:
            return f"{self.b} dominates"
        return f"{self.b if self.gap.value > 0 else self.a} is above on average"

    @property
    def dominates(self) -> bool:
        """Whether b is above a at every KL at which they are compared, each by a one-sided test at 5 %.

        All tests must reject, so they need no correction (an intersection-union test, Berger 1982).
        """
        return bool(self.at) and all(each.value > 0 and each.p / 2 < LEVEL for each in self.at.values())


def between(a: Front, b: Front, draws: int = 2000, seed: int = 0) -> Between:
    """Compare two fronts by resampling seeds and prompts, the same ones for both.

    A front is drawn through the policies that no other policy of the method dominates, from the start at KL 0, and is
    level after the last of them. A mixture of two neighbours has at most the KL of the straight line between them,
    because KL is convex. Means are over seeds and prompts.

    Args:
        a: A front whose first policy is the start, with KL 0 everywhere.
        b: The same; its start is a's.
        draws: As for `resampled`.
        seed: As for `resampled`.

    Raises:
        ValueError: a front does not begin with the start, or the fronts have other seeds or prompts.
    """
    for front in (a, b):
        if front.kl[:, 0].any():
            raise ValueError(f"the first policy of {front.name!r} must be the start, with KL 0")
    if a.kl.shape[0] != b.kl.shape[0] or a.kl.shape[2] != b.kl.shape[2]:
        raise ValueError("two fronts must have the same seeds and prompts")
    seeds, _, prompts = a.kl.shape
    curves = [_curve(front.kl.mean((0, 2)), front.score.mean((0, 2))) for front in (a, b)]
    upto = min(float(front.kl.mean((0, 2)).max()) for front in (a, b))
    grid = np.unique(np.concatenate([curve[0] for curve in curves]))
    grid = grid[(grid > 0) & (grid <= upto)]
    fine = np.union1d(grid, [0.0, upto])

    def differences(seed_weights: Floats, prompt_weights: Floats) -> Floats:
        """For each row of weights the difference at each KL of the grid, and its mean over the range."""
        heights = []
        for front in (a, b):
            kl, score = (
                np.einsum("ds,spg,dg->dp", seed_weights, each, prompt_weights, optimize=True)
                for each in (front.kl, front.score)
            )
            heights.append([np.interp(fine, *_curve(*means)) for means in zip(kl, score, strict=True)])
        apart = np.array(heights[1]) - np.array(heights[0])
        mean = np.trapezoid(apart, fine) / upto if upto else np.zeros(len(apart))
        return np.column_stack([apart[:, np.isin(fine, grid)], mean])

    *at, gap = resampled(differences, seeds, prompts, draws, seed)
    area = replace(gap, value=gap.value * upto, low=gap.low * upto, high=gap.high * upto)
    return Between(a.name, b.name, upto, area, gap, dict(zip(grid.tolist(), at, strict=True)))


def resampled(
    figures: Callable[[Floats, Floats], Floats], seeds: int, prompts: int, draws: int = 2000, seed: int = 0
) -> list[Difference]:
    """Figures of values by seed and prompt, with intervals from resampling both.

    The intervals are t intervals with the standard deviation of the resampled figures as standard error, widened by
    sqrt(n / (n - 1)) since resampling n units underestimates it; n is the number of seeds, or of prompts if there is
    one seed.

    Args:
        figures: Takes weights of the seeds (D, seeds) and of the prompts (D, prompts), each row with the sum 1, and
            gives the figures of each row (D, K).
        seeds: How many seeds.
        prompts: How many prompts.
        draws: How often seeds and prompts are resampled.
        seed: Seeds the resampling.
    """
    noise = np.random.default_rng(seed)
    weights = [noise.multinomial(count, np.full(count, 1 / count), draws) / count for count in (seeds, prompts)]
    values = figures(np.full((1, seeds), 1 / seeds), np.full((1, prompts), 1 / prompts))[0]
    n = seeds if seeds > 1 else prompts
    errors = figures(*weights).std(0, ddof=1) * math.sqrt(n / (n - 1)) if n > 1 else np.full(len(values), np.nan)
    return [_t_interval(value, error, n) for value, error in zip(values, errors, strict=True)]


def _curve(kl: Floats, score: Floats) -> tuple[Floats, Floats]:
    """KL and score of the policies that no other one dominates, in the order of KL."""
    order = np.lexsort((-score, kl))
    kl, score = kl[order], score[order]
    keep = score > np.concatenate([[-np.inf], np.maximum.accumulate(score)[:-1]])
    return kl[keep], score[keep]


def _t_interval(value: float, error: float, n: int) -> Difference:
    test, reliable = "t by resampling", n >= SEEDS
    if not error > 0:
        return Difference(float(value), math.nan, math.nan, 1.0 if value == 0 else math.nan, test, math.nan, False)
    width = float(stats.t.ppf(0.975, n - 1)) * error
    p = float(2 * stats.t.sf(abs(value) / error, n - 1))
    return Difference(float(value), float(value - width), float(value + width), p, test, math.nan, reliable)
