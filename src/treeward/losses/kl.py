"""Estimates of KL(policy, reference), in nats.

`exact_kl` is the Rao-Blackwellised estimate: for each prefix sampled from the policy, the sum over the vocabulary is
exact, so only the prefixes are random. Its variance is lower than that of `k1`. It is never negative, also in float32,
because it is computed as sum p (log(p / q) + q / p - 1), where no term is below 0.

Notation: S scored tokens, V vocabulary; p the policy's probabilities, q the reference's. Left out: k2 (biased) and k3
(heavy tails on whole responses).
"""

import torch
from jaxtyping import Float
from torch import Tensor

MIN_LOGP = -87.0
"""Policy log-probabilities below this count as probability 0. e^87 and e^-87 are still normal float32 numbers."""


def exact_kl(policy_logits: Float[Tensor, "S V"], reference_logits: Float[Tensor, "S V"]) -> Float[Tensor, "S"]:
    """sum_v p(v) [log p(v) - log q(v)] at each scored position, in nats.

    Exactly 0 for equal logits. A logit of -inf is a probability of 0; the result is infinite where the policy's
    probability is above 0 and the reference's is 0.
    """
    p = policy_logits.float().log_softmax(1)
    q = reference_logits.float().log_softmax(1)
    q = torch.where(p > MIN_LOGP, q, q.clamp(min=MIN_LOGP))
    p = p.clamp(min=MIN_LOGP)
    d = p - q
    return (p.exp() * (d + torch.expm1(-d))).sum(1)


def k1(policy_logps: Float[Tensor, "*S"], reference_logps: Float[Tensor, "*S"]) -> Float[Tensor, "*S"]:
    """log p - log q of sampled tokens: an unbiased one-sample estimate of KL(policy, reference), of either sign."""
    return policy_logps - reference_logps
