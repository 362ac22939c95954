"""How wide a distribution over scores 1..B is.

Letters: B score bins. The last axis of the argument holds log-probabilities.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from treeward.maths.scores import expectation


def variance(log_probs: Float[Tensor, "*n B"]) -> Float[Tensor, "*n"]:
    """sum_k (k - mean)^2 p(k)."""
    grid = torch.arange(1.0, log_probs.shape[-1] + 1, device=log_probs.device, dtype=log_probs.dtype)
    away = grid - expectation(log_probs)[..., None]
    return (log_probs.exp() * away.square()).sum(-1)
