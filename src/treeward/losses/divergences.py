"""f-divergences between the policy and its reference, as scores of a log-ratio.

A preference loss of the difference of two log-ratios is derived from reverse KL. Under another f-divergence the same
loss takes s(x) = f'(e^x) in place of x (Wang et al. 2023, arXiv:2309.16240, "f-DPO"). Additive constants cancel in the
difference; here s(0) = 0. Where e^x would overflow, s is continued as a straight line: from exponent 30, with the slope
it has there. `clamped` marks those values.

Notation: x = log(policy / reference), the log-ratio of a whole response, in nats. Every method is elementwise, on any
shape. Left out: total variation and chi-squared (`NOT_OFFERED` gives the reasons).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from treeward.errors import UserError

TAIL = 30.0
"""The exponent from which a score is continued as a straight line: e^30 times 1e4 is still a float32."""

NOT_OFFERED: Mapping[str, str] = {
    "chi-squared": "its f' is defined at a ratio of 0, so the normaliser does not cancel in a difference; "
    "use chi-squared-mixed, which adds reverse KL and is what chi-PO uses",
    "total-variation": "its f' is constant on either side of a ratio of 1, so there is no gradient, and it is defined "
    "at a ratio of 0, so the normaliser does not cancel; use jensen-shannon, which is bounded too",
    "alpha-divergence": "use alpha, with the paper's parameter: alpha = 1 - TRL's",
}
"""Names of divergences that users may try, with the reason why they are not offered, and what to use instead."""


class Divergence(ABC):
    """An f-divergence as a score of log-ratios."""

    not_offered: ClassVar[Mapping[str, str]] = NOT_OFFERED
    """Other names that a user may try, and why they are refused; for the configuration (`treeward.runner.settings`)."""

    @abstractmethod
    def score(self, x: Float[Tensor, "*P"]) -> Float[Tensor, "*P"]:
        """s(x), with s(0) = 0, increasing."""

    def clamped(self, x: Float[Tensor, "*P"]) -> Bool[Tensor, "*P"]:
        """Where s is continued as a straight line; nowhere unless a divergence needs it."""
        return x.new_zeros(x.shape, dtype=torch.bool)


@dataclass(frozen=True)
class ReverseKL(Divergence):
    """KL(policy, reference): s(x) = x, as in DPO."""

    def score(self, x: Float[Tensor, "*P"]) -> Float[Tensor, "*P"]:
        return x


@dataclass(frozen=True)
class ForwardKL(Divergence):
    """KL(reference, policy): s(x) = 1 - e^(-x), never above 1."""

    def score(self, x: Float[Tensor, "*P"]) -> Float[Tensor, "*P"]:
        return Alpha(1.0).score(x)

    def clamped(self, x: Float[Tensor, "*P"]) -> Bool[Tensor, "*P"]:
        return Alpha(1.0).clamped(x)


@dataclass(frozen=True)
class JensenShannon(Divergence):
    """s(x) = ln 2 + log sigma(x), never above ln 2. f is twice that of the usual definition."""

    def score(self, x: Float[Tensor, "*P"]) -> Float[Tensor, "*P"]:
        return math.log(2) + logsigmoid(x)


@dataclass(frozen=True)
class Alpha(Divergence):
    """The alpha-divergence of the f-DPO paper: s(x) = (1 - e^(-alpha x)) / alpha; 0 is reverse KL, 1 forward KL.

    TRL since 0.29 uses 1 - alpha (its 1 is reverse KL); earlier releases used the paper's alpha, as here.
    """

    alpha: float = 0.5
    """The paper's alpha, in [0, 1]; TRL's is 1 - alpha."""

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise UserError(
                f"divergence.alpha is {self.alpha}; it must be in [0, 1]: 0 is reverse KL, 1 forward KL (TRL's is 1 - "
                f"alpha, so TRL's {self.alpha} is {1 - self.alpha} here)"
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
class ChiSquaredMixed(Divergence):
    """The sum of chi-squared and reverse KL (Huang et al. 2024, arXiv:2407.13399, "chi-PO"): s(x) = x + e^x - 1.

    The paper also clips beta [s(x_w) - s(x_l)] to [-2R, 2R]; that is `clip` of the loss `Sigmoid`.
    """

    def score(self, x: Float[Tensor, "*P"]) -> Float[Tensor, "*P"]:
        line = math.expm1(TAIL) + math.exp(TAIL) * (x - TAIL)
        return x + torch.where(self.clamped(x), line, x.clamp(max=TAIL).expm1())

    def clamped(self, x: Float[Tensor, "*P"]) -> Bool[Tensor, "*P"]:
        return x > TAIL


AnyDivergence: TypeAlias = ReverseKL | ForwardKL | JensenShannon | Alpha | ChiSquaredMixed
"""The divergences by their names: reverse-kl, forward-kl, jensen-shannon, alpha, chi-squared-mixed."""
