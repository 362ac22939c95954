"""Risk measures: one number from a distribution over the scores 1..B.

Each depends on prompt and response only, so it can be a reward without biasing the policy gradient.

Notation: B score bins. The last axis of `log_probs` holds the log-probabilities of the scores 1..B; the other axes are
free.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from treeward.errors import UserError
from treeward.losses.heads import expectation


def _scores(log_probs: Tensor) -> Tensor:
    """The scores 1..B."""
    return torch.arange(1.0, log_probs.shape[-1] + 1, device=log_probs.device, dtype=log_probs.dtype)


def variance(log_probs: Float[Tensor, "*n B"]) -> Float[Tensor, "*n"]:
    """sum_k (k - mean)^2 p(k)."""
    deviations = _scores(log_probs) - expectation(log_probs)[..., None]
    return (log_probs.exp() * deviations.square()).sum(-1)


def mean_minus_sd(log_probs: Float[Tensor, "*n B"], kappa: float) -> Float[Tensor, "*n"]:
    """mean - kappa * standard deviation."""
    return expectation(log_probs) - kappa * variance(log_probs).sqrt()


def quantile(log_probs: Float[Tensor, "*n B"], level: float) -> Float[Tensor, "*n"]:
    """The smallest k with F(k) >= level. It is piecewise constant, so `cvar` is the better reward.

    Raises:
        UserError: The level is not in (0, 1].
    """
    _check_level(level)
    below = log_probs.double().exp().cumsum(-1) < level - 1e-12
    return (below.sum(-1) + 1).clamp(max=log_probs.shape[-1]).to(log_probs.dtype)


def cvar(log_probs: Float[Tensor, "*n B"], level: float) -> Float[Tensor, "*n"]:
    """Conditional value at risk: the mean of the lowest `level` of the probability (Rockafellar and Uryasev 2000).

    The bin at the boundary counts in part.

    Raises:
        UserError: The level is not in (0, 1].
    """
    _check_level(level)
    cdf = log_probs.exp().cumsum(-1).clamp(max=level)
    probabilities = cdf.diff(dim=-1, prepend=torch.zeros_like(cdf[..., :1]))
    return (probabilities * _scores(log_probs)).sum(-1) / level


def entropic(log_probs: Float[Tensor, "*n B"], kappa: float) -> Float[Tensor, "*n"]:
    """Entropic risk, -(1 / kappa) log sum_k p(k) e^(-kappa k).

    It tends to the mean as kappa tends to 0, and to the lowest score of nonzero probability as kappa grows.

    Raises:
        UserError: kappa is not above 0.
    """
    if not kappa > 0:
        raise UserError(f"kappa is {kappa}; it must be above 0 (for the limit at 0 use the mean)")
    return -(log_probs - kappa * _scores(log_probs)).logsumexp(-1) / kappa


def tail(log_probs: Float[Tensor, "*n B"], score: int) -> Float[Tensor, "*n"]:
    """P(Y >= score)."""
    return log_probs[..., score - 1 :].exp().sum(-1)


def _check_level(level: float) -> None:
    if not 0 < level <= 1:
        raise UserError(f"level is {level}; it must be in (0, 1]: the share of the probability that counts")
