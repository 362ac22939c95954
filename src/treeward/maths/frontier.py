"""Score against KL: which models stand on the frontier, and which are clearly beaten. It reads nothing.

A model is on the frontier if no other has at least its score at no more than its KL, one of them strictly. It is
clearly beaten by another if that one's score is higher by more than both intervals together leave open (half widths in
quadrature, as if the samples were independent, which is cautious for models that answered the same prompts), at a KL
that is no higher.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from treeward.maths.statistics import Interval, clustered_mean


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


def standings(points: Sequence[Point]) -> list[Standing]:
    """The standing of every point, in order."""
    return [
        Standing(
            point,
            not any(_dominates(other, point) for other in points),
            tuple(o.label for o in points if o is not point and o.kl.value <= point.kl.value and clearly(o, point)),
        )
        for point in points
    ]


def clearly(a: Point, b: Point) -> bool:
    """Whether a's score is above b's with the interval of the (unpaired) difference clear of zero."""
    half = math.hypot(a.score.value - a.score.low, b.score.high - b.score.value)
    return not math.isnan(half) and a.score.value - b.score.value > half


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
