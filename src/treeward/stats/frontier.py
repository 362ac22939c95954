"""Score against KL: which models stand on the frontier, and which are clearly beaten. It reads nothing.

A model is on the frontier if no other has at least its score at no more than its KL, one of them strictly. It is
clearly beaten by another if that one's score is higher on the same prompts, at a KL that is no higher: a one-sided
paired t test by prompt, whose p value is corrected for all such comparisons that are made (Holm 1979). Among equal
models any is then called clearly beaten in at most 5 % of frontiers, however many they are. Differences of equal models
are symmetric, for which the t test's tails are right or cautious; bench/calibration.py simulates thirty.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from treeward.stats.intervals import Floats, Interval, clustered_mean, holm, paired_mean

LEVEL = 0.05
"""Chance that any of several equal models is called clearly beaten."""


@dataclass(frozen=True)
class Point:
    """One model: its score, its KL to the start in nats a response, its name, family and seed."""

    label: str
    score: Interval
    kl: Interval
    family: str = ""
    seed: int | None = None


@dataclass(frozen=True)
class Standing:
    """Where a point stands: on the frontier by its values, and by which points it is clearly beaten."""

    point: Point
    on_frontier: bool
    beaten_by: tuple[str, ...]


def standings(points: Sequence[Point], scores: Sequence[Floats]) -> list[Standing]:
    """The standing of every point, in order. `scores` holds each point's mean score a prompt, prompts in one order."""
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
    return [tuple(points[a].label for a, b in clear if b == place) for place in range(len(points))]


def _above(a: Floats, b: Floats) -> float:
    """One-sided p value of a's scores being above b's, on the same prompts."""
    found = paired_mean(b, a, range(len(a)))
    return found.p / 2 if found.value > 0 else 1 - found.p / 2


def over_seeds(points: Sequence[Point]) -> list[Point]:
    """One point a label: the mean over its seeds with the interval between runs; a label with one seed as it is."""
    labels = dict.fromkeys(point.label for point in points)
    found = []
    for label in labels:
        own = [point for point in points if point.label == label]
        found.append(own[0] if len(own) == 1 else Point(
            label, _between([p.score.value for p in own]), _between([p.kl.value for p in own]), own[0].family
        ))  # fmt: skip
    return found


def _between(values: Sequence[float]) -> Interval:
    return clustered_mean(np.array(values), np.arange(len(values)))


def _dominates(a: Point, b: Point) -> bool:
    better = a.score.value > b.score.value or a.kl.value < b.kl.value
    return better and a.score.value >= b.score.value and a.kl.value <= b.kl.value
