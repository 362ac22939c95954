"""Preference losses on the policy's own mean log-probabilities: no anchor is computed for them.

Their first value depends on the data, so `at_start` needs the first log-probabilities and puts them into another
formula, in float64. Letters: a = mean log-probability of a response's tokens, a_w chosen, a_l rejected.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from treeward.maths.pair_scores import PairScores, Sides, require_positive

CERTAIN = -1e-7
"""Largest mean log-probability for which odds are taken; above it a response is certain to within float32."""


@dataclass(frozen=True)
class _Anchorless:
    needs_anchor: ClassVar[bool] = False
    takes_margin: ClassVar[bool] = False
    no_divergence: ClassVar[str] = "it has no anchor, so there is nothing to diverge from"

    def rewards(self, scores: PairScores) -> Sides:
        """a."""
        return scores.mean_logps()


@dataclass(frozen=True)
class ORPO(_Anchorless):
    """Odds-ratio preference optimisation (Hong et al. 2024, arXiv:2403.07691, equations 6 and 7).

    -a_w - omega log sigma(o_w - o_l),   o = a - log(1 - e^a)
    """

    weight: float = 0.1
    """omega (the paper's lambda, TRL's beta): weight of the odds ratio beside the likelihood of the chosen response."""

    def __post_init__(self) -> None:
        require_positive("loss.weight", self.weight)

    def __call__(self, scores: PairScores) -> Float[Tensor, "P"]:
        chosen, rejected = (side.clamp(max=CERTAIN) for side in scores.mean_logps())
        odds = chosen - log1mexp(chosen) - rejected + log1mexp(rejected)
        return -scores.mean_logps()[0] - self.weight * logsigmoid(odds)

    def at_start(self, start: PairScores | None = None) -> float:
        found = 0.0
        sides = _first_means(self, start)
        for chosen, rejected in sides:
            odds, other = (a - math.log(-math.expm1(a)) for a in (min(chosen, CERTAIN), min(rejected, CERTAIN)))
            found += -chosen + self.weight * _softplus(other - odds)
        return found / len(sides)


@dataclass(frozen=True)
class SIMPO(_Anchorless):
    """SimPO (Meng et al. 2024, arXiv:2405.14734, equation 6): -log sigma(beta (a_w - a_l) - gamma)."""

    beta: float = 2.0
    """Scale of the mean log-probabilities: 2 to 10."""
    gamma: float = 1.0
    """Margin asked for; gamma / beta is 0.1 to 0.8."""

    def __post_init__(self) -> None:
        require_positive("loss.beta", self.beta)
        if not self.gamma >= 0:
            raise ValueError(f"loss.gamma is {self.gamma}; it must not be negative (beta / 2 is usual)")

    def __call__(self, scores: PairScores) -> Float[Tensor, "P"]:
        chosen, rejected = self.rewards(scores)
        return -logsigmoid(chosen - rejected - self.gamma)

    def at_start(self, start: PairScores | None = None) -> float:
        sides = _first_means(self, start)
        return sum(_softplus(self.gamma - self.beta * (chosen - rejected)) for chosen, rejected in sides) / len(sides)

    def rewards(self, scores: PairScores) -> Sides:
        """beta a."""
        chosen, rejected = scores.mean_logps()
        return self.beta * chosen, self.beta * rejected


@dataclass(frozen=True)
class ChosenNLL(_Anchorless):
    """-a_w: the likelihood of the chosen response, as a term of a sum. With `Sigmoid` it is RPO (Pang et al. 2024,
    arXiv:2404.19733, equation 4), which divides by the response's own length, as here.
    """

    def __call__(self, scores: PairScores) -> Float[Tensor, "P"]:
        return -scores.mean_logps()[0]

    def at_start(self, start: PairScores | None = None) -> float:
        sides = _first_means(self, start)
        return -sum(chosen for chosen, _ in sides) / len(sides)


def log1mexp(a: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """log(1 - e^a) for a < 0, with finite gradients: by expm1 above -ln 2, by log1p below (Maechler 2012)."""
    near = a > -math.log(2)
    close = (-torch.expm1(torch.where(near, a, -1.0))).log()
    return torch.where(near, close, torch.log1p(-torch.where(near, -1.0, a).exp()))


def _softplus(z: float) -> float:
    return max(0.0, z) + math.log1p(math.exp(-abs(z)))


def _first_means(loss: object, start: PairScores | None) -> list[tuple[float, float]]:
    if start is None or start.chosen_logp is None:
        raise ValueError(f"the first value of {type(loss).__name__} depends on the data: give the first scores")
    chosen, rejected = start.mean_logps()
    return list(zip(chosen.double().tolist(), rejected.double().tolist(), strict=True))
