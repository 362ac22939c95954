"""Log-probabilities of target tokens, entropies, and sums over branches.

Everything is computed in float32, whatever the dtype of the logits. Logits and targets are aligned already: there is no
shift by one here (`treeward.trees.forest` stores which position predicts which target).

Notation: S scored tokens, N branches, V vocabulary.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable


def token_logps(logits: Float[Tensor, "S V"], targets: Int[Tensor, "S"]) -> Float[Tensor, "S"]:
    """log softmax(logits)[target] of each scored token, in nats, float32; differentiable once.

    The vocabulary is large, so no float32 copy of all logits is made, neither forward nor backward: rows are processed
    in chunks of `ROWS`. The gradient is (onehot(target) - softmax(logits)) times the incoming gradient.
    """
    return _TokenLogps.apply(logits, targets)  # type: ignore[no-any-return, no-untyped-call]


ROWS = 64
"""Rows of logits that are converted to float32 at a time."""


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
            chunk = (logits[rows].float() - normaliser[rows, None]).exp_().mul_(-incoming[0][rows, None])
            chunk.scatter_add_(1, targets[rows, None], incoming[0][rows, None])
            gradient[rows] = chunk
        return gradient, None


def entropies(logits: Float[Tensor, "S V"]) -> Float[Tensor, "S"]:
    """The entropy of the next-token distribution, -sum_v p log p, at each scored position, in nats."""
    logps = logits.float().log_softmax(1)
    return -(logps.exp() * logps).sum(1)


def sum_by_branch(values: Float[Tensor, "S"], scored_branch: Int[Tensor, "S"], branches: int) -> Float[Tensor, "N"]:
    """The sum of each branch's per-token values; 0 for a branch without scored tokens.

    Args:
        values: One value per scored token.
        scored_branch: The index of each scored token's branch.
        branches: N.
    """
    return values.new_zeros(branches).index_add(0, scored_branch, values)


def branch_lengths(scored_branch: Int[Tensor, "S"], branches: int) -> Int[Tensor, "N"]:
    """The number of scored tokens of each branch, the divisor of per-token means."""
    return torch.bincount(scored_branch, minlength=branches)
