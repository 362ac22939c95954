"""Best-of-n: the score that choosing among n samples reaches, and how far from the start it goes.

From K scored samples a prompt, every n up to K has an unbiased estimate; KL(best-of-n, start) is at most
ln n - (n - 1)/n (arXiv 2401.01879), with equality only where no response is repeated and no scores are tied.

Letters: G prompts, K samples a prompt, n chosen among.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from treeward.stats.diversity import Gap
from treeward.stats.intervals import Floats, clustered_mean


def kl_bound(n: int) -> float:
    """ln n - (n - 1)/n, in nats."""
    return math.log(n) - (n - 1) / n


def weights(samples: int, n: int) -> Floats:
    """C(i-1, n-1) / C(K, n) for the i-th lowest of K scores: the chance that it is the best of n of them."""
    return np.array([math.comb(i, n - 1) / math.comb(samples, n) for i in range(samples)])


def unbiased(scores: ArrayLike, n: int) -> Floats:
    """The expected best of n of each prompt's K scores, one value a prompt; `scores` is (G, K)."""
    ranked = np.sort(np.asarray(scores, dtype=np.float64), axis=1)
    return np.asarray(ranked @ weights(ranked.shape[1], n), dtype=np.float64)


@dataclass(frozen=True)
class AtEqualKL:
    """Best-of-n's score at a policy's KL, and the policy's score above it; both None past the curve's end."""

    kl: float
    reached: float
    score: float | None
    above: Gap | None


def at_equal_kl(scores: ArrayLike, after: ArrayLike, kl: ArrayLike) -> AtEqualKL:
    """A tuned policy against best-of-n of its start at equal KL.

    The curve is linear in KL between the bounds of n = 1..K, which mixing two neighbouring n reaches (KL is convex).
    A bound is the most that best of n can have: where responses repeat or scores are tied its true KL is lower, so the
    curve truly lies further left, and the comparison favours the policy. `scores` is the start's (G, K), `after` and
    `kl` the tuned policy's means by prompt.

    The interval is the t interval of the prompts' shares in the difference, which is linear in their scores, curves and
    KL as long as the mean KL stays between two neighbouring bounds (the delta method).
    """
    table = np.asarray(scores, dtype=np.float64)
    bounds = np.array([kl_bound(n) for n in range(1, table.shape[1] + 1)])
    curve = np.stack([unbiased(table, n) for n in range(1, table.shape[1] + 1)], 1)
    tuned, far = np.asarray(after, dtype=np.float64), np.asarray(kl, dtype=np.float64)
    at = float(far.mean())
    if at > bounds[-1]:
        return AtEqualKL(at, float(bounds[-1]), None, None)
    left = min(max(int(np.searchsorted(bounds, at, side="right")) - 1, 0), max(len(bounds) - 2, 0))
    right = min(left + 1, len(bounds) - 1)
    width = bounds[right] - bounds[left]
    slope = float((curve[:, right] - curve[:, left]).mean() / width) if width else 0.0
    weight = (at - bounds[left]) / width if width else 0.0
    reached = (1 - weight) * curve[:, left] + weight * curve[:, right]
    above = clustered_mean(tuned - reached - slope * (far - at), np.arange(len(table)))
    gap = Gap(above.value, above.low, above.high, above.reliable)
    return AtEqualKL(at, float(bounds[-1]), float(reached.mean()), gap)
