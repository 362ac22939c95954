"""Log-probabilities of chosen tokens, entropies and their sums over branches.

Letters: S scored tokens, N branches, V vocabulary. Everything is computed in float32 whatever the logits' dtype.
There is no shift here: a forest says which position predicts which target (`trees.forest`), once.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def token_logps(logits: Float[Tensor, "S V"], targets: Int[Tensor, "S"]) -> Float[Tensor, "S"]:
    """log softmax(logits)[target], in nats, without ever holding a second S x V tensor."""
    logits = logits.float()
    chosen = logits.gather(1, targets[:, None]).squeeze(1)
    return chosen - logits.logsumexp(1)


def entropies(logits: Float[Tensor, "S V"]) -> Float[Tensor, "S"]:
    """Conditional entropy -sum_v p log p at each scored position, in nats."""
    logps = logits.float().log_softmax(1)
    return -(logps.exp() * logps).sum(1)


def sum_by_branch(
    values: Float[Tensor, "S"], scored_branch: Int[Tensor, "S"], branches: int
) -> Float[Tensor, "N"]:
    """Sum per-token values over the response they belong to; a branch without a token gets 0."""
    return values.new_zeros(branches).index_add(0, scored_branch, values)


def branch_lengths(scored_branch: Int[Tensor, "S"], branches: int) -> Int[Tensor, "N"]:
    """The number of scored tokens of each branch: the only divisor a per-token mean may use."""
    return torch.bincount(scored_branch, minlength=branches)
