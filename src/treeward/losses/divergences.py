"""Distances between the policy and its reference: f-divergences as scores of a log-ratio, and estimates of KL.

A preference loss of the difference of two log-ratios comes from reverse KL; under another f-divergence the same loss
sees s(x) = f'(e^x) (Wang et al. 2023, arXiv:2309.16240, "f-DPO"). Additive constants cancel; here s(0) = 0. Where e^x
would overflow, s goes on as a straight line, from exponent 30 with the slope there; `clamped` tells which rows did.

`exact_kl` is the Rao-Blackwellised estimate of KL(policy, reference): at each prefix sampled from the policy the sum
over the vocabulary is exact, so only the prefixes are random. It has less variance than k1, and is never negative,
also in float32: sum p log(p / q) = sum p (log(p / q) + q / p - 1), where no term is below 0.

Letters: S scored tokens, V vocabulary, x the log-ratio log(policy / reference) of a token or a response.
Left out: k2 and k3 (biased as a value, or heavy-tailed on whole responses); total variation and chi-squared as scores
(`NOT_OFFERED` says why).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from treeward.errors import UserError

TAIL = 30.0
"""The exponent from which a score is continued as a straight line: e^30 times 1e4 still is a float32."""

NOT_OFFERED: Mapping[str, str] = {
    "chi-squared": "its f' is defined at a ratio of 0, so the normaliser does not cancel in a difference; "
    "chi-squared-mixed, which adds reverse KL, is what chi-PO uses",
    "total-variation": "its f' is constant on either side of a ratio of 1, and defined at 0: no gradient, and the "
    "normaliser does not cancel; jensen-shannon is the bounded divergence on offer",
    "alpha-divergence": "its name here is alpha, with the paper's parameter: alpha = 1 - TRL's",
}
"""Divergences that are asked for and refused, each with its reason."""


@runtime_checkable
class Divergence(Protocol):
    """What every member of `AnyDivergence` offers."""

    def score(self, x: Float[Tensor, "*P"]) -> Float[Tensor, "*P"]:
        """s(x)."""
        ...

    def clamped(self, x: Float[Tensor, "*P"]) -> Bool[Tensor, "*P"]:
        """Where s is the straight line."""
        ...


@dataclass(frozen=True)
class ReverseKL:
    """KL(policy, reference): s(x) = x. The loss is DPO's own."""

    refused: ClassVar[Mapping[str, str]] = NOT_OFFERED

    def score(self, x: Float[Tensor, "*P"]) -> Float[Tensor, "*P"]:
        return x

    def clamped(self, x: Float[Tensor, "*P"]) -> Bool[Tensor, "*P"]:
        return x.new_zeros(x.shape, dtype=torch.bool)


@dataclass(frozen=True)
class ForwardKL:
    """KL(reference, policy): s(x) = 1 - e^(-x), never above 1."""

    def score(self, x: Float[Tensor, "*P"]) -> Float[Tensor, "*P"]:
        return Alpha(1.0).score(x)

    def clamped(self, x: Float[Tensor, "*P"]) -> Bool[Tensor, "*P"]:
        return Alpha(1.0).clamped(x)


@dataclass(frozen=True)
class JensenShannon:
    """s(x) = ln 2 + log sigma(x), never above ln 2; the generator is twice the usual divergence's. It needs no tail."""

    def score(self, x: Float[Tensor, "*P"]) -> Float[Tensor, "*P"]:
        return math.log(2) + logsigmoid(x)

    def clamped(self, x: Float[Tensor, "*P"]) -> Bool[Tensor, "*P"]:
        return x.new_zeros(x.shape, dtype=torch.bool)


@dataclass(frozen=True)
class Alpha:
    """The paper's alpha-divergence: s(x) = (1 - e^(-alpha x)) / alpha; 0 is reverse KL, 1 forward KL.

    TRL from 0.29 on counts the other way, a = 1 - alpha (a = 1 is reverse KL); earlier releases counted as here.
    """

    alpha: float = 0.5
    """The paper's alpha in [0, 1]; TRL's alpha is 1 less it."""

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise UserError(
                f"divergence.alpha is {self.alpha}; it lies in [0, 1], 0 being reverse KL and 1 forward KL (TRL's "
                f"alpha is 1 less this one, so TRL's {self.alpha} is {1 - self.alpha} here)"
            )

    def score(self, x: Float[Tensor, "*P"]) -> Float[Tensor, "*P"]:
        if self.alpha == 0:
            return x
        edge = -TAIL / self.alpha
        line = -math.expm1(TAIL) / self.alpha + math.exp(TAIL) * (x - edge)
        return torch.where(self.clamped(x), line, -(-self.alpha * x.clamp(min=edge)).expm1() / self.alpha)

    def clamped(self, x: Float[Tensor, "*P"]) -> Bool[Tensor, "*P"]:
        return -self.alpha * x > TAIL


@dataclass(frozen=True)
class ChiSquaredMixed:
    """Chi-squared and reverse KL together (Huang et al. 2024, arXiv:2407.13399, "chi-PO"): s(x) = x + e^x - 1.

    The paper also clips beta [s(x_w) - s(x_l)] to plus and minus 2R: loss.clip.
    """

    def score(self, x: Float[Tensor, "*P"]) -> Float[Tensor, "*P"]:
        line = math.expm1(TAIL) + math.exp(TAIL) * (x - TAIL)
        return x + torch.where(self.clamped(x), line, x.clamp(max=TAIL).expm1())

    def clamped(self, x: Float[Tensor, "*P"]) -> Bool[Tensor, "*P"]:
        return x > TAIL


AnyDivergence = ReverseKL | ForwardKL | JensenShannon | Alpha | ChiSquaredMixed
