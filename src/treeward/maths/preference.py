"""Losses over preference pairs: the DPO family.

A loss is a frozen dataclass. Its fields are hyper-parameters, `__call__` is the equation, and it returns one number per
pair: the mean is taken where it is used, over the true count. It sees nothing but `PairScores`.

Letters: P pairs, x = log(policy / anchor) of a whole response (chosen x_w, rejected x_l), D = x_w - x_l.
The last line, `AnyPreferenceLoss`, is the registry that recipes, the command line and the tests read.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import logsigmoid


@dataclass(frozen=True)
class PairScores:
    """All that a preference loss may see of a batch of pairs.

    `chosen` and `rejected` are log-ratios to the anchor, summed over the response's scored tokens (end token included);
    the lengths count those tokens; the log-probabilities are the policy's own sums, for losses without an anchor.
    """

    chosen: Float[Tensor, "P"]
    rejected: Float[Tensor, "P"]
    chosen_length: Int[Tensor, "P"]
    rejected_length: Int[Tensor, "P"]
    chosen_logp: Float[Tensor, "P"] | None = None
    rejected_logp: Float[Tensor, "P"] | None = None

    @classmethod
    def zeros(cls, pairs: int) -> "PairScores":
        """Scores at policy = anchor, one token a response: where every loss must have its known first value."""
        zero, one = torch.zeros(pairs), torch.ones(pairs, dtype=torch.long)
        return cls(zero, zero.clone(), one, one.clone(), zero.clone(), zero.clone())


@runtime_checkable
class PreferenceLoss(Protocol):
    """What every member of `AnyPreferenceLoss` offers."""

    def __call__(self, scores: PairScores) -> Float[Tensor, "P"]: ...

    def at_start(self) -> float:
        """The loss of a pair when the policy is the anchor, by the closed form of ALGORITHMS 3.2."""
        ...


@dataclass(frozen=True)
class Sigmoid:
    """DPO (Rafailov et al. 2023, arXiv:2305.18290, equation 7); with `flip` > 0 conservative DPO.

    -(1 - e) log sigma(beta D) - e log sigma(-beta D)
    """

    beta: float = 0.1
    """Strength of the pull towards the anchor: the implicit reward is beta times the log-ratio."""
    flip: float = 0.0
    """e, the share of labels taken to be flipped, in [0, 0.5); 0 is plain DPO."""

    def __post_init__(self) -> None:
        _require_positive("loss.beta", self.beta)
        if not 0 <= self.flip < 0.5:
            raise ValueError(f"loss.flip is {self.flip}; a share of flipped labels lies in [0, 0.5)")

    def __call__(self, scores: PairScores) -> Float[Tensor, "P"]:
        difference = self.beta * (scores.chosen - scores.rejected)
        return -(1 - self.flip) * logsigmoid(difference) - self.flip * logsigmoid(-difference)

    def at_start(self) -> float:
        return 0.6931471805599453


@dataclass(frozen=True)
class Hinge:
    """SLiC's hinge on the log-ratio difference (Zhao et al. 2023, arXiv:2305.10425): max(0, 1 - beta D).

    Left out of the paper: its cross-entropy regulariser; and it has no anchor, as DPO's variant does here.
    """

    beta: float = 0.1
    """Scale of the log-ratio difference; the margin asked for is 1 / beta nats."""

    def __post_init__(self) -> None:
        _require_positive("loss.beta", self.beta)

    def __call__(self, scores: PairScores) -> Float[Tensor, "P"]:
        return (1 - self.beta * (scores.chosen - scores.rejected)).relu()

    def at_start(self) -> float:
        return 1.0


@dataclass(frozen=True)
class IPO:
    """IPO (Azar et al. 2023, arXiv:2310.12036, equation 17) on per-token means: (mean x_w - mean x_l - 1/(2 beta))^2.

    The printed formula has sums; the authors confirmed the means, and TRL uses them too.
    """

    beta: float = 0.1
    """The target difference of the per-token means is 1 / (2 beta) nats."""

    def __post_init__(self) -> None:
        _require_positive("loss.beta", self.beta)

    def __call__(self, scores: PairScores) -> Float[Tensor, "P"]:
        difference = scores.chosen / scores.chosen_length - scores.rejected / scores.rejected_length
        return (difference - 1 / (2 * self.beta)).square()

    def at_start(self) -> float:
        return 1 / (4 * self.beta**2)


def _require_positive(field: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"{field} is {value}; it must be above 0 (0.1 is usual)")


AnyPreferenceLoss = Sigmoid | Hinge | IPO
