"""Distances between the policy and its anchor.

`exact_kl` is the Rao-Blackwellised estimate of KL(policy, anchor): at each prefix sampled from the policy the sum over
the vocabulary is exact, so only the prefixes are random. It is never negative, and has less variance than k1.

Letters: S scored tokens, V vocabulary, x the log-ratio log(policy / anchor) of a token or a response.
Left out: k2 and k3 (biased as a value, or heavy-tailed on whole responses).
"""

from jaxtyping import Float
from torch import Tensor


def exact_kl(policy_logits: Float[Tensor, "S V"], anchor_logits: Float[Tensor, "S V"]) -> Float[Tensor, "S"]:
    """sum_v p(v) [log p(v) - log q(v)] at each scored position, in nats; 0 bit for bit when the logits are equal."""
    p = policy_logits.float().log_softmax(1)
    q = anchor_logits.float().log_softmax(1)
    return (p.exp() * (p - q)).sum(1)


def k1(policy_logps: Float[Tensor, "*S"], anchor_logps: Float[Tensor, "*S"]) -> Float[Tensor, "*S"]:
    """The log-ratio itself: an unbiased, signed, one-sample estimate of KL(policy, anchor)."""
    return policy_logps - anchor_logps
