"""Graded targets: a rating on a stated scale as a distribution over scores 1..B, and its likelihood.

Letters: N branches, A attributes, B score bins, s a score on 1..B (a real number), phi its fraction.
"""

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor


@runtime_checkable
class Target(Protocol):
    """A distribution over 1..B for each score s in [1, B]."""

    def __call__(self, s: Float[Tensor, "*n"], bins: int) -> Float[Tensor, "*n B"]: ...


@dataclass(frozen=True)
class OneHot:
    """All mass on the nearest bin, halves going up; with an ordinal head this is the ordinal likelihood."""

    def __call__(self, s: Float[Tensor, "*n"], bins: int) -> Float[Tensor, "*n B"]:
        nearest = (s + 0.5).floor().clamp(1, bins).long()
        return torch.nn.functional.one_hot(nearest - 1, bins).to(s.dtype)


@dataclass(frozen=True)
class TwoHot:
    """Mass 1 - phi on floor(s) and phi on floor(s) + 1: its mean is s exactly."""

    def __call__(self, s: Float[Tensor, "*n"], bins: int) -> Float[Tensor, "*n B"]:
        grid = torch.arange(1, bins + 1, device=s.device, dtype=s.dtype)
        return (1 - (s[..., None] - grid).abs()).clamp(min=0)


@dataclass(frozen=True)
class HLGauss:
    """A normal distribution around s cut into bins and renormalised over [1/2, B + 1/2]  (Imani and White 2018;
    Farebrother et al. 2024, arXiv:2403.03950). Its mean is pulled inwards at the ends, by 0.37 bins at s = 1.
    """

    sigma: float = 0.75
    """Standard deviation of the normal, in bins."""

    def __post_init__(self) -> None:
        if not self.sigma > 0:
            raise ValueError(f"target.sigma is {self.sigma}; it must be above 0")

    def __call__(self, s: Float[Tensor, "*n"], bins: int) -> Float[Tensor, "*n B"]:
        edges = torch.arange(bins + 1, device=s.device, dtype=s.dtype) + 0.5
        below: Tensor = torch.special.ndtr((edges - s[..., None]) / self.sigma)
        return below.diff(dim=-1) / (below[..., -1:] - below[..., :1])


AnyTarget = OneHot | TwoHot | HLGauss
"""The targets by their names: one-hot, two-hot, hl-gauss."""


def to_score(grades: Float[Tensor, "*n"], scale: tuple[float, float], bins: int) -> Float[Tensor, "*n"]:
    """s = 1 + (B - 1) (g - low) / (high - low).

    Raises:
        ValueError: a grade lies outside the scale, or is missing (NaN).
    """
    low, high = scale
    wrong = ~((grades >= low) & (grades <= high))
    if bool(wrong.any()):
        raise ValueError(f"a rating is {grades[wrong][0].item():g}; the stated scale is [{low:g}, {high:g}]")
    return 1 + (bins - 1) * (grades - low) / (high - low)


def cross_entropy(log_probs: Float[Tensor, "*n B"], targets: Float[Tensor, "*n B"]) -> Float[Tensor, "*n"]:
    """-sum_k t(k) log p(k), in nats."""
    assert log_probs.shape == targets.shape, f"log-probabilities {log_probs.shape} but targets {targets.shape}"
    return -(targets * log_probs).sum(-1)


def crps(log_probs: Float[Tensor, "*n B"], s: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """Continuous ranked probability score of a distribution over 1..B, for the outcome s, in bins  (Gneiting and
    Raftery 2007): sum_{k<B} [h_k F(k)^2 + (1 - h_k)(1 - F(k))^2] with h_k = clip(s - k, 0, 1)
    = E|Y - s| - E|Y - Y'| / 2.
    """
    below = log_probs.exp().cumsum(-1)[..., :-1]
    grid = torch.arange(1, log_probs.shape[-1], device=s.device, dtype=below.dtype)
    h = (s[..., None] - grid).clamp(0, 1)
    return (h * below.square() + (1 - h) * (1 - below).square()).sum(-1)


def pit(log_probs: Float[Tensor, "*n B"], s: Float[Tensor, "*n"], uniform: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """Randomised probability integral transform, F(k - 1) + v p(k): uniform if the model is calibrated  (Smith 1985;
    Czado, Gneiting and Held 2009).

    The bin k is drawn from the score's two-hot target, as in training: floor(s) + 1 with probability phi, else
    floor(s). Both come from `uniform`, in [0, 1): k by whether it is below 1 - phi, v by how far it lies in that part.
    """
    probabilities = log_probs.exp()
    down = s.floor().clamp(1, log_probs.shape[-1])
    phi = s - down
    up = uniform >= 1 - phi
    v = torch.where(up, (uniform - (1 - phi)) / phi.clamp(min=1e-300), uniform / (1 - phi).clamp(min=1e-300))
    k = (down + up).clamp(max=log_probs.shape[-1]).long()[..., None] - 1
    at = probabilities.gather(-1, k)[..., 0]
    return probabilities.cumsum(-1).gather(-1, k)[..., 0] - at + v * at


def marginal_entropy(targets: Float[Tensor, "n B"]) -> float:
    """Entropy of the mean target, in nats: the cross-entropy of a model that ignores its input."""
    mean = targets.mean(0)
    return -math.fsum(p * math.log(p) for p in mean.tolist() if p > 0)
