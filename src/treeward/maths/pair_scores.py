"""What a preference loss may see of a batch, and what it offers in return.

Letters: P pairs, N branches, x = log(policy / anchor) of a whole response (chosen x_w, rejected x_l), D = x_w - x_l,
a = the policy's mean log-probability of a response's tokens.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Sides = tuple[Float[Tensor, "P"], Float[Tensor, "P"]]
"""One number a pair for the chosen side, one for the rejected."""


@dataclass(frozen=True)
class PairScores:
    """All that a preference loss may see of a batch of pairs.

    `chosen` and `rejected` are log-ratios to the anchor, summed over the response's scored tokens (end token included),
    or an f-divergence's scores of them; the lengths count those tokens; the log-probabilities are the policy's own
    sums, for losses without an anchor. `margin` is what a loss of the difference asks for beyond 0.
    """

    chosen: Float[Tensor, "P"]
    rejected: Float[Tensor, "P"]
    chosen_length: Int[Tensor, "P"]
    rejected_length: Int[Tensor, "P"]
    chosen_logp: Float[Tensor, "P"] | None = None
    rejected_logp: Float[Tensor, "P"] | None = None
    margin: Float[Tensor, "P"] | None = None

    @classmethod
    def zeros(cls, pairs: int) -> "PairScores":
        """Scores at policy = anchor, one token a response: where every loss must have its known first value."""
        zero, one = torch.zeros(pairs), torch.ones(pairs, dtype=torch.long)
        return cls(zero, zero.clone(), one, one.clone(), zero.clone(), zero.clone())

    def difference(self, beta: float) -> Float[Tensor, "P"]:
        """beta D less the margin."""
        scaled = beta * (self.chosen - self.rejected)
        return scaled if self.margin is None else scaled - self.margin

    def means(self) -> Sides:
        """x / length, per token."""
        return self.chosen / self.chosen_length, self.rejected / self.rejected_length

    def mean_logps(self) -> Sides:
        """a, the policy's own mean log-probability of a token."""
        assert self.chosen_logp is not None
        assert self.rejected_logp is not None
        return self.chosen_logp / self.chosen_length, self.rejected_logp / self.rejected_length


@dataclass(frozen=True)
class LabelledScores:
    """All that a loss over single, labelled responses may see: log-ratios, labels, and the batch's reference point."""

    ratios: Float[Tensor, "N"]
    desirable: Bool[Tensor, "N"]
    reference: Float[Tensor, ""]


@runtime_checkable
class PairLoss(Protocol):
    """What every member of `AnyPairLoss` offers."""

    @property
    def needs_anchor(self) -> bool:
        """False: the loss reads the policy's own log-probabilities alone."""
        ...

    @property
    def takes_margin(self) -> bool:
        """Whether `PairScores.margin` is honoured."""
        ...

    @property
    def no_divergence(self) -> str:
        """Why no f-divergence but reverse KL goes with this loss; empty where any does."""
        ...

    def __call__(self, scores: PairScores) -> Float[Tensor, "P"]: ...

    def at_start(self, start: PairScores | None = None) -> float:
        """The mean loss where the policy is the anchor, by the closed form of ALGORITHMS 3.2.

        `start` tells what else it depends on: margins, or log-probabilities for losses without an anchor.

        Raises:
            ValueError: it depends on log-probabilities, and none are given.
        """
        ...

    def rewards(self, scores: PairScores) -> Sides:
        """The implicit rewards of the two sides, for monitoring."""
        ...


@dataclass(frozen=True)
class Anchored:
    """Base of the losses on log-ratios: their implicit reward is beta x."""

    beta: float = 0.1
    """Strength of the pull towards the anchor: the implicit reward is beta times the log-ratio."""

    needs_anchor: ClassVar[bool] = True
    takes_margin: ClassVar[bool] = False
    no_divergence: ClassVar[str] = (
        "it reads the two log-ratios apart, and the constant that f-DPO leaves out cancels in their difference only"
    )

    def __post_init__(self) -> None:
        require_positive("loss.beta", self.beta)

    def rewards(self, scores: PairScores) -> Sides:
        """beta x."""
        return self.beta * scores.chosen, self.beta * scores.rejected


def start_margins(start: PairScores | None) -> Float[Tensor, "P"]:
    """The margins of the first batch in float64; one margin of 0 where none are known."""
    if start is None or start.margin is None:
        return torch.zeros(1, dtype=torch.float64)
    return start.margin.double()


def require_positive(field: str, value: float) -> None:
    """Refuse a value that is not above 0, or infinite.

    Raises:
        ValueError: it is 0, negative, infinite or NaN.
    """
    if not 0 < value < math.inf:
        raise ValueError(f"{field} is {value}; it must be above 0 and finite (0.1 is usual)")
