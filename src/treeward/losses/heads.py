"""Score heads: what a reward model's raw outputs say about a response.

A head turns the outputs of N branches into log-probabilities over scores 1..B, or into a scalar, and never sees text or
weights. Every head is symmetric and at its middle for outputs of zero, where training starts.

Letters: N branches, W outputs a branch, A attributes, B score bins, C = B - 1.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from treeward.errors import UserError

STEP = 1e-3
"""The least distance of two thresholds, so that no bin's log-probability is -inf."""


@dataclass(frozen=True)
class Scalar:
    """One number a response, as in Bradley-Terry models; it says nothing of spread."""

    @property
    def width(self) -> int:
        """W."""
        return 1

    @property
    def middle(self) -> float:
        """The score of outputs of zero."""
        return 0.0

    def scores(self, outputs: Float[Tensor, "N 1"]) -> Float[Tensor, "N"]:
        """The output itself."""
        return outputs[:, 0]


@dataclass(frozen=True)
class Categorical:
    """softmax(z): one logit a score, any shape; zeros are the uniform distribution."""

    bins: int = 10
    """B: scores run from 1 to B."""

    def __post_init__(self) -> None:
        _check_bins(self.bins)

    @property
    def width(self) -> int:
        """W."""
        return self.bins

    @property
    def middle(self) -> float:
        """The score of outputs of zero: the middle of the scale."""
        return (self.bins + 1) / 2

    def log_probs(self, outputs: Float[Tensor, "N W"]) -> Float[Tensor, "N 1 B"]:
        """log p(k), float32 or wider."""
        return outputs.log_softmax(1)[:, None]

    def scores(self, outputs: Float[Tensor, "N W"]) -> Float[Tensor, "N"]:
        """The mean score."""
        return expectation(self.log_probs(outputs))[:, 0]


@dataclass(frozen=True)
class Ordinal:
    """Cumulative link, P(Y <= k) = sigma(tau_k - f)  (McCullagh 1980): one logit f, and B - 1 rising thresholds.

    The public model's output is f; the outputs here are the B - 1 cumulative logits tau_k - f, because the thresholds
    train as well (`cumulative_logits`). They start at tau_k = ln(k / (B - k)), where f = 0 is exactly uniform.
    """

    bins: int = 10
    """B: scores run from 1 to B."""

    def __post_init__(self) -> None:
        _check_bins(self.bins)

    @property
    def width(self) -> int:
        """Outputs of the public model: f alone."""
        return 1

    @property
    def middle(self) -> float:
        """The score of outputs of zero: the middle of the scale."""
        return (self.bins + 1) / 2

    def thresholds(self) -> Float[Tensor, "C"]:
        """tau at the start."""
        k = torch.arange(1, self.bins)
        return (k / (self.bins - k)).log()

    def log_probs(self, outputs: Float[Tensor, "N W"]) -> Float[Tensor, "N 1 B"]:
        """log p(k), from the cumulative logits."""
        return log_intervals(outputs)[:, None]

    def scores(self, outputs: Float[Tensor, "N W"]) -> Float[Tensor, "N"]:
        """The mean score."""
        return expectation(self.log_probs(outputs))[:, 0]


@dataclass(frozen=True)
class Logistic:
    """A logistic distribution cut into bins: p(k) = sigma((k + 1/2 - loc) / scale) - sigma((k - 1/2 - loc) / scale),
    the end bins open. loc = (B + 1) / 2 + z_0; scale = softplus(z_1 + z*) + `floor`, which is B / 4 at z_1 = 0.
    """

    bins: int = 10
    """B: scores run from 1 to B."""
    floor: float = 0.1
    """The least scale, in bins."""

    def __post_init__(self) -> None:
        _check_bins(self.bins)
        if not 0 < self.floor < self.bins / 4:
            raise UserError(f"head.floor is {self.floor}; it lies between 0 and a quarter of the bins")

    @property
    def width(self) -> int:
        """W."""
        return 2

    @property
    def middle(self) -> float:
        """The score of outputs of zero: the middle of the scale."""
        return (self.bins + 1) / 2

    @property
    def shift(self) -> float:
        """z*, with which the scale is B / 4 at z_1 = 0."""
        return math.log(math.expm1(self.bins / 4 - self.floor))

    def log_probs(self, outputs: Float[Tensor, "N W"]) -> Float[Tensor, "N 1 B"]:
        """log p(k)."""
        loc = (self.bins + 1) / 2 + outputs[:, :1]
        scale = softplus(outputs[:, 1:] + self.shift) + self.floor
        edges = torch.arange(1, self.bins, device=outputs.device) + 0.5
        return log_intervals((edges - loc) / scale)[:, None]

    def scores(self, outputs: Float[Tensor, "N W"]) -> Float[Tensor, "N"]:
        """The mean score."""
        return expectation(self.log_probs(outputs))[:, 0]


@dataclass(frozen=True)
class Attributes:
    """One categorical distribution an attribute, as HelpSteer2 grades them; the score is their weighted mean."""

    names: tuple[str, ...] = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
    """The attributes, in the order of the grades."""
    bins: int = 5
    """B: each attribute's scores run from 1 to B."""
    weights: tuple[float, ...] = ()
    """Weight of each attribute's mean in the score; empty: equal weights that sum to 1."""

    def __post_init__(self) -> None:
        _check_bins(self.bins)
        if not self.names:
            raise UserError("head.names is empty; name at least one attribute")
        if self.weights and len(self.weights) != len(self.names):
            raise UserError(f"head.weights has {len(self.weights)} values for {len(self.names)} attributes")

    @property
    def width(self) -> int:
        """W = A * B."""
        return len(self.names) * self.bins

    @property
    def middle(self) -> float:
        """The score of outputs of zero: the middle of the scale, times the sum of the weights."""
        return (self.bins + 1) / 2 * (sum(self.weights) if self.weights else 1.0)

    def log_probs(self, outputs: Float[Tensor, "N W"]) -> Float[Tensor, "N A B"]:
        """log p(k) of each attribute."""
        return outputs.view(-1, len(self.names), self.bins).log_softmax(2)

    def scores(self, outputs: Float[Tensor, "N W"]) -> Float[Tensor, "N"]:
        """The weighted mean of the attributes' mean scores."""
        weights = self.weights or (1 / len(self.names),) * len(self.names)
        return expectation(self.log_probs(outputs)) @ outputs.new_tensor(weights)


def log_intervals(cumulative: Float[Tensor, "N C"]) -> Float[Tensor, "N B"]:
    """log[sigma(c_k) - sigma(c_{k-1})] with open ends, in log space: the plain difference is 0 from 16 on in float32.

    log[sigma(hi) - sigma(lo)] = log sigma(hi) + log sigma(-lo) + log(-expm1(lo - hi)).
    """
    low, high = cumulative[:, :-1], cumulative[:, 1:]
    inner = logsigmoid(high) + logsigmoid(-low) + torch.log(-torch.expm1(low - high))
    return torch.cat([logsigmoid(cumulative[:, :1]), inner, logsigmoid(-cumulative[:, -1:])], 1)


def cumulative_logits(f: Float[Tensor, "N 1"], free: Float[Tensor, "C"]) -> Float[Tensor, "N C"]:
    """tau_k - f, with tau_1 = free_1 and tau_k = tau_{k-1} + softplus(free_k): thresholds that cannot cross."""
    return rising(free) - f


def rising(free: Float[Tensor, "C"]) -> Float[Tensor, "C"]:
    """The thresholds tau that free parameters stand for."""
    return torch.cat([free[:1], softplus(free[1:]) + STEP]).cumsum(0)


def freed(thresholds: Float[Tensor, "C"]) -> Float[Tensor, "C"]:
    """The free parameters of rising thresholds: the inverse of `rising`."""
    steps = thresholds.diff() - STEP
    return torch.cat([thresholds[:1], steps + torch.log(-torch.expm1(-steps))])


def expectation(log_probs: Float[Tensor, "*n B"]) -> Float[Tensor, "*n"]:
    """sum_k k p(k)."""
    return log_probs.exp() @ torch.arange(1.0, log_probs.shape[-1] + 1, device=log_probs.device, dtype=log_probs.dtype)


def _check_bins(bins: int) -> None:
    if bins < 2:
        raise UserError(f"head.bins is {bins}; a distribution needs at least 2 scores")


AnyHead = Scalar | Categorical | Ordinal | Logistic | Attributes
"""The heads by their names: scalar, categorical, ordinal, logistic, attributes."""
