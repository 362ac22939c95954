"""Log-probabilities of chosen tokens, entropies and their sums over branches.

Letters: S scored tokens, N branches, V vocabulary. Everything is computed in float32 whatever the logits' dtype.
There is no shift here: a forest says which position predicts which target (`trees.forest`), once.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable


def token_logps(logits: Float[Tensor, "S V"], targets: Int[Tensor, "S"]) -> Float[Tensor, "S"]:
    """log softmax(logits)[target], in nats, float32; differentiable once.

    The vocabulary is wide, so neither direction holds a float32 copy of the logits: rows are taken in chunks, and the
    gradient, softmax(logits) times minus the incoming one, plus the incoming one at the target, is written in place.
    """
    return _TokenLogps.apply(logits, targets)  # type: ignore[no-any-return, no-untyped-call]


ROWS = 64
"""Rows of logits that are widened to float32 at a time."""


class _TokenLogps(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        normaliser = logits.new_empty(len(logits), dtype=torch.float32)
        for start in range(0, len(logits), ROWS):
            normaliser[start : start + ROWS] = logits[start : start + ROWS].float().logsumexp(1)
        ctx.save_for_backward(logits, targets, normaliser)
        return logits.gather(1, targets[:, None]).squeeze(1).float() - normaliser

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *incoming: Tensor) -> tuple[Tensor, None]:
        logits, targets, normaliser = ctx.saved_tensors
        gradient = torch.empty_like(logits)
        for start in range(0, len(logits), ROWS):
            rows = slice(start, start + ROWS)
            part = (logits[rows].float() - normaliser[rows, None]).exp_().mul_(-incoming[0][rows, None])
            part.scatter_add_(1, targets[rows, None], incoming[0][rows, None])
            gradient[rows] = part
        return gradient, None


def entropies(logits: Float[Tensor, "S V"]) -> Float[Tensor, "S"]:
    """Conditional entropy -sum_v p log p at each scored position, in nats."""
    logps = logits.float().log_softmax(1)
    return -(logps.exp() * logps).sum(1)


def sum_by_branch(values: Float[Tensor, "S"], scored_branch: Int[Tensor, "S"], branches: int) -> Float[Tensor, "N"]:
    """Sum per-token values over the response they belong to; a branch without a token gets 0."""
    return values.new_zeros(branches).index_add(0, scored_branch, values)


def branch_lengths(scored_branch: Int[Tensor, "S"], branches: int) -> Int[Tensor, "N"]:
    """The number of scored tokens of each branch: the only divisor a per-token mean may use."""
    return torch.bincount(scored_branch, minlength=branches)
