"""A distribution over scores 1..B as one number: neutral, averse to risk, or against a reference.

All are functions of prompt and response alone, so each may serve as a reward without biasing a policy gradient.

Letters: N branches, B score bins. The last axis of every argument holds log-probabilities.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from treeward.errors import UserError
from treeward.losses.heads import expectation


def _grid(log_probs: Tensor) -> Tensor:
    return torch.arange(1.0, log_probs.shape[-1] + 1, device=log_probs.device, dtype=log_probs.dtype)


def variance(log_probs: Float[Tensor, "*n B"]) -> Float[Tensor, "*n"]:
    """sum_k (k - mean)^2 p(k)."""
    away = _grid(log_probs) - expectation(log_probs)[..., None]
    return (log_probs.exp() * away.square()).sum(-1)


def mean_minus_sd(log_probs: Float[Tensor, "*n B"], kappa: float) -> Float[Tensor, "*n"]:
    """mean - kappa * standard deviation."""
    return expectation(log_probs) - kappa * variance(log_probs).sqrt()


def quantile(log_probs: Float[Tensor, "*n B"], level: float) -> Float[Tensor, "*n"]:
    """The smallest k with F(k) >= level; constant in pieces, so prefer `cvar` as a reward.

    Raises:
        UserError: the level is not in (0, 1].
    """
    _check_level(level)
    below = log_probs.double().exp().cumsum(-1) < level - 1e-12
    return (below.sum(-1) + 1).clamp(max=log_probs.shape[-1]).to(log_probs.dtype)


def cvar(log_probs: Float[Tensor, "*n B"], level: float) -> Float[Tensor, "*n"]:
    """Mean of the lowest `level` of the mass, the boundary bin taken in part (Rockafellar and Uryasev 2000).

    Raises:
        UserError: the level is not in (0, 1].
    """
    _check_level(level)
    reached = log_probs.exp().cumsum(-1).clamp(max=level)
    taken = reached.diff(dim=-1, prepend=torch.zeros_like(reached[..., :1]))
    return (taken * _grid(log_probs)).sum(-1) / level


def entropic(log_probs: Float[Tensor, "*n B"], kappa: float) -> Float[Tensor, "*n"]:
    """-(1 / kappa) log sum_k p(k) e^(-kappa k): the mean as kappa -> 0, the least supported score as it grows.

    Raises:
        UserError: kappa is not above 0.
    """
    if not kappa > 0:
        raise UserError(f"kappa is {kappa}; it must be above 0 (the mean is its limit at 0)")
    return -(log_probs - kappa * _grid(log_probs)).logsumexp(-1) / kappa


def tail(log_probs: Float[Tensor, "*n B"], score: int) -> Float[Tensor, "*n"]:
    """P(Y >= score)."""
    return log_probs[..., score - 1 :].exp().sum(-1)


def _check_level(level: float) -> None:
    if not 0 < level <= 1:
        raise UserError(f"level is {level}; it is a share of the mass, in (0, 1]")
