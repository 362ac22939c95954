"""Score heads: from a reward model's raw outputs to a score, or to a distribution over the scores 1..B.

A head is a pure function of the outputs of N branches; the weights are in the model. For outputs of zero, where
training starts, every head gives a symmetric distribution, or the scalar 0.

Notation: N branches, W outputs per branch, A attributes, B score bins, C = B - 1 thresholds.
"""

import math
from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from treeward.errors import UserError

STEP = 1e-3
"""The smallest distance between two thresholds, so that no bin's log-probability is -inf."""


@dataclass(frozen=True)
class Scalar:
    """One number per response, as in Bradley-Terry models, without a distribution."""

    @property
    def width(self) -> int:
        """W, the number of outputs per branch."""
        return 1

    @property
    def middle(self) -> float:
        """The score for outputs of zero."""
        return 0.0

    def scores(self, outputs: Float[Tensor, "N 1"]) -> Float[Tensor, "N"]:
        """The output itself, unbounded."""
        return outputs[:, 0]


@dataclass(frozen=True)
class Categorical:
    """softmax(z): one logit per score. It can represent any distribution; zeros give the uniform one."""

    bins: int = 10
    """B: scores run from 1 to B."""

    def __post_init__(self) -> None:
        _check_bins(self.bins)

    @property
    def width(self) -> int:
        """W, the number of outputs per branch."""
        return self.bins

    @property
    def middle(self) -> float:
        """The score for outputs of zero: the middle of the scale."""
        return (self.bins + 1) / 2

    def log_probs(self, outputs: Float[Tensor, "N W"]) -> Float[Tensor, "N 1 B"]:
        """log p(k) for k = 1..B."""
        return outputs.log_softmax(1)[:, None]

    def scores(self, outputs: Float[Tensor, "N W"]) -> Float[Tensor, "N"]:
        """The mean of the distribution, in [1, B]."""
        return expectation(self.log_probs(outputs))[:, 0]


@dataclass(frozen=True)
class Ordinal:
    """Ordinal regression, P(Y <= k) = sigma(tau_k - f)  (McCullagh 1980): one logit f and B - 1 rising thresholds tau.

    The transformers model has one output, f. The thresholds are trained too, so the outputs that this head takes are
    the B - 1 cumulative logits tau_k - f (`cumulative_logits`). The thresholds start at tau_k = ln(k / (B - k)), where
    f = 0 gives exactly the uniform distribution.
    """

    bins: int = 10
    """B: scores run from 1 to B."""

    def __post_init__(self) -> None:
        _check_bins(self.bins)

    @property
    def width(self) -> int:
        """Outputs of the transformers model: f alone."""
        return 1

    @property
    def middle(self) -> float:
        """The score for outputs of zero: the middle of the scale."""
        return (self.bins + 1) / 2

    def thresholds(self) -> Float[Tensor, "C"]:
        """The thresholds tau at the start of training."""
        k = torch.arange(1, self.bins)
        return (k / (self.bins - k)).log()

    def log_probs(self, outputs: Float[Tensor, "N W"]) -> Float[Tensor, "N 1 B"]:
        """log p(k) for k = 1..B, from the cumulative logits."""
        return log_intervals(outputs)[:, None]

    def scores(self, outputs: Float[Tensor, "N W"]) -> Float[Tensor, "N"]:
        """The mean of the distribution, in [1, B]."""
        return expectation(self.log_probs(outputs))[:, 0]


@dataclass(frozen=True)
class Logistic:
    """A logistic distribution cut into bins; the first and the last bin are open.

        p(k) = sigma((k + 1/2 - loc) / scale) - sigma((k - 1/2 - loc) / scale)
        loc = (B + 1) / 2 + z_0,   scale = softplus(z_1 + z*) + floor

    z* is chosen so that the scale is B / 4 for z_1 = 0.
    """

    bins: int = 10
    """B: scores run from 1 to B."""
    floor: float = 0.1
    """The smallest scale, in bins."""

    def __post_init__(self) -> None:
        _check_bins(self.bins)
        if not 0 < self.floor < self.bins / 4:
            raise UserError(f"head.floor is {self.floor}; it must be above 0 and below a quarter of the bins")

    @property
    def width(self) -> int:
        """W, the number of outputs per branch."""
        return 2

    @property
    def middle(self) -> float:
        """The score for outputs of zero: the middle of the scale."""
        return (self.bins + 1) / 2

    @property
    def shift(self) -> float:
        """z*, for which the scale is B / 4 at z_1 = 0."""
        return math.log(math.expm1(self.bins / 4 - self.floor))

    def log_probs(self, outputs: Float[Tensor, "N W"]) -> Float[Tensor, "N 1 B"]:
        """log p(k) for k = 1..B."""
        loc = (self.bins + 1) / 2 + outputs[:, :1]
        scale = softplus(outputs[:, 1:] + self.shift) + self.floor
        edges = torch.arange(1, self.bins, device=outputs.device) + 0.5
        return log_intervals((edges - loc) / scale)[:, None]

    def scores(self, outputs: Float[Tensor, "N W"]) -> Float[Tensor, "N"]:
        """The mean of the distribution, in [1, B]."""
        return expectation(self.log_probs(outputs))[:, 0]


@dataclass(frozen=True)
class Attributes:
    """A categorical distribution for each attribute, as rated in HelpSteer2. The score is their weighted mean."""

    names: tuple[str, ...] = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
    """The attributes, in the order of the ratings."""
    bins: int = 5
    """B: each attribute's scores run from 1 to B."""
    weights: tuple[float, ...] = ()
    """Weight of each attribute's mean in the score. Empty: equal weights that sum to 1."""

    def __post_init__(self) -> None:
        _check_bins(self.bins)
        if not self.names:
            raise UserError("head.names is empty; name at least one attribute")
        if self.weights and len(self.weights) != len(self.names):
            raise UserError(
                f"head.weights has {len(self.weights)} values for {len(self.names)} attributes; give one for each, or "
                "none for equal weights"
            )

    @property
    def width(self) -> int:
        """W = A * B."""
        return len(self.names) * self.bins

    @property
    def middle(self) -> float:
        """The score for outputs of zero: the middle of the scale times the sum of the weights."""
        return (self.bins + 1) / 2 * (sum(self.weights) if self.weights else 1.0)

    def log_probs(self, outputs: Float[Tensor, "N W"]) -> Float[Tensor, "N A B"]:
        """log p(k) for k = 1..B, for each attribute."""
        return outputs.view(-1, len(self.names), self.bins).log_softmax(2)

    def scores(self, outputs: Float[Tensor, "N W"]) -> Float[Tensor, "N"]:
        """The weighted mean of the attributes' mean scores."""
        return expectation(self.log_probs(outputs)) @ outputs.new_tensor(self.shares)

    @property
    def shares(self) -> tuple[float, ...]:
        """The weight of each attribute in the score."""
        return self.weights or (1 / len(self.names),) * len(self.names)


def log_intervals(cumulative: Float[Tensor, "N C"]) -> Float[Tensor, "N B"]:
    """log[sigma(c_k) - sigma(c_{k-1})], with c_0 = -inf and c_B = inf, computed in log space.

    In float32 the plain difference is 0 for c above 16. Here

        log[sigma(high) - sigma(low)] = log sigma(high) + log sigma(-low) + log(-expm1(low - high))

    Args:
        cumulative: Rising cumulative logits.
    """
    low, high = cumulative[:, :-1], cumulative[:, 1:]
    inner = logsigmoid(high) + logsigmoid(-low) + torch.log(-torch.expm1(low - high))
    return torch.cat([logsigmoid(cumulative[:, :1]), inner, logsigmoid(-cumulative[:, -1:])], 1)


def cumulative_logits(f: Float[Tensor, "N 1"], free: Float[Tensor, "C"]) -> Float[Tensor, "N C"]:
    """tau_k - f, with the thresholds tau of the free parameters."""
    return rising_thresholds(free) - f


def rising_thresholds(free: Float[Tensor, "C"]) -> Float[Tensor, "C"]:
    """Thresholds that cannot cross: tau_1 = free_1 and tau_k = tau_{k-1} + softplus(free_k) + STEP."""
    return torch.cat([free[:1], softplus(free[1:]) + STEP]).cumsum(0)


def free_parameters(thresholds: Float[Tensor, "C"]) -> Float[Tensor, "C"]:
    """The free parameters of rising thresholds: the inverse of `rising_thresholds`."""
    steps = thresholds.diff() - STEP
    return torch.cat([thresholds[:1], steps + torch.log(-torch.expm1(-steps))])


def expectation(log_probs: Float[Tensor, "*n B"]) -> Float[Tensor, "*n"]:
    """The mean score, sum_k k p(k)."""
    return log_probs.exp() @ torch.arange(1.0, log_probs.shape[-1] + 1, device=log_probs.device, dtype=log_probs.dtype)


def _check_bins(bins: int) -> None:
    if bins < 2:
        raise UserError(f"head.bins is {bins}; it must be at least 2 (10 is usual)")


AnyHead: TypeAlias = Scalar | Categorical | Ordinal | Logistic | Attributes
"""The heads by their names: scalar, categorical, ordinal, logistic, attributes."""
