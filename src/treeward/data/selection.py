"""Which samples of a prompt become a preference: best against worst, best against random, and the like.

A selection is a frozen dataclass that takes the scores of K distinct samples of one prompt and returns tuples of their
numbers, better first: pairs, or one whole ranking. It depends on the scores and on a name, which alone decides what is
random, so it can be run again over the same samples. `clear` then removes the picks whose scores differ too little.

Under normal scores the gap of best against worst of N is E[max - min] of N draws, in standard deviations within a
prompt (`expected_gap`).
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

from scipy.integrate import quad
from scipy.stats import norm

from treeward.errors import UserError

Picks = list[tuple[int, ...]]


@dataclass(frozen=True)
class BestWorst:
    """The best against the worst."""

    def __call__(self, scores: Sequence[float], name: str) -> Picks:
        order = ranked(scores)
        return [(order[0], order[-1])]


@dataclass(frozen=True)
class BestRandom:
    """The best against one of the others, drawn by the prompt's name."""

    def __call__(self, scores: Sequence[float], name: str) -> Picks:
        order = ranked(scores)
        return [(order[0], random.Random(name).choice(order[1:]))]


@dataclass(frozen=True)
class TopBottom:
    """The k best against the k worst, the best with the worst first; the halves do not overlap."""

    k: int = 2
    """Samples a side."""

    def __post_init__(self) -> None:
        if self.k < 1:
            raise UserError(f"select.k is {self.k}; it must be at least 1")

    def __call__(self, scores: Sequence[float], name: str) -> Picks:
        order = ranked(scores)
        return [(order[n], order[-1 - n]) for n in range(min(self.k, len(order) // 2))]


@dataclass(frozen=True)
class AllPairs:
    """Every pair of samples."""

    def __call__(self, scores: Sequence[float], name: str) -> Picks:
        return list(combinations(ranked(scores), 2))


@dataclass(frozen=True)
class Ranking:
    """All samples in one list, best first, for losses over N branches."""

    def __call__(self, scores: Sequence[float], name: str) -> Picks:
        return [tuple(ranked(scores))]


AnySelection = BestWorst | BestRandom | TopBottom | AllPairs | Ranking


def ranked(scores: Sequence[float]) -> list[int]:
    """The samples' numbers, best first; equal scores in the order they were drawn."""
    return sorted(range(len(scores)), key=lambda number: -scores[number])


def clear(picks: Picks, scores: Sequence[float], gap: float, most: int | None) -> Picks:
    """The picks whose best and worst scores differ, and by at least `gap`; the first `most` of them."""
    apart = [pick for pick in picks if scores[pick[0]] > scores[pick[-1]] and scores[pick[0]] - scores[pick[-1]] >= gap]
    return apart[:most]


@lru_cache
def expected_gap(samples: int) -> float:
    """E[max - min] of this many standard normal draws: 2.059 for 4, 2.847 for 8.

    2 E[max], with E[max] = integral of n x phi(x) Phi(x)^(n-1).
    """
    if samples < 2:
        return 0.0
    highest, _ = quad(lambda x: samples * x * norm.pdf(x) * norm.cdf(x) ** (samples - 1), -10, 10)
    return 2 * float(highest)
