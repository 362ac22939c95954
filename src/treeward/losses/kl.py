"""Estimates of KL(policy, reference) from logits and log-probabilities, in nats.

Letters: S scored tokens, V vocabulary.
"""

import torch
from jaxtyping import Float
from torch import Tensor

LEAST = -87.0
"""The policy's log-probabilities from here down count as probability 0: e^87 and e^-87 still are normal float32s."""


def exact_kl(policy_logits: Float[Tensor, "S V"], reference_logits: Float[Tensor, "S V"]) -> Float[Tensor, "S"]:
    """sum_v p(v) [log p(v) - log q(v)] at each scored position, in nats; 0 bit for bit when the logits are equal.

    Logits of -inf are probabilities of 0: infinite where the policy's is above 0 and the reference's is 0.
    """
    p = policy_logits.float().log_softmax(1)
    q = reference_logits.float().log_softmax(1)
    q = torch.where(p > LEAST, q, q.clamp(min=LEAST))
    p = p.clamp(min=LEAST)
    d = p - q
    return (p.exp() * (d + torch.expm1(-d))).sum(1)


def k1(policy_logps: Float[Tensor, "*S"], reference_logps: Float[Tensor, "*S"]) -> Float[Tensor, "*S"]:
    """The log-ratio itself: an unbiased, signed, one-sample estimate of KL(policy, reference)."""
    return policy_logps - reference_logps
