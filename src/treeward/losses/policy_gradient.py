"""Policy-gradient losses on sampled responses, and where the KL to the reference enters.

With advantages A that are constants (`losses.advantages`), the gradient of

    loss = -(1 / N) sum_i A_i sum_t log pi(y_it | prompt, y_i<t)                                     REINFORCE

is, in expectation over samples of the policy, minus the gradient of the mean reward. The sum over tokens is the
log-probability of the whole response; a mean over tokens would weigh responses by 1 / length and optimise something
else. The mean over the N responses is taken where the loss is used.

The objective is reward minus beta * KL(policy, reference). The KL is charged once, in one of two places:

- in the reward: k1 = log pi - log pi_ref of the sampled tokens, a constant;
- in the loss: k2 = (log pi - log pi_ref)^2 / 2 of the whole response, differentiated.

Both have the gradient of KL(policy, reference) as their expectation, on samples of the policy as it is. Left out: k1 as
a loss (its expected gradient is 0) and k3 as a loss (its expected gradient is that of the forward KL).

Notation: S scored tokens, N responses.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from treeward.errors import UserError
from treeward.losses.logprobs import sum_by_branch


@dataclass(frozen=True)
class SampledTokens:
    """The tokens of sampled responses: all that a policy-gradient loss may see.

    - `logps`: log-probability of each token under the policy as it is now; the only field with a gradient.
    - `sampled_logps`: the same when the token was sampled.
    - `advantages`: the advantage of each token; in one response all are equal unless the KL is charged by token.
    - `branch`: the response of each token.
    - `branches`: N.
    """

    logps: Float[Tensor, "S"]
    sampled_logps: Float[Tensor, "S"]
    advantages: Float[Tensor, "S"]
    branch: Int[Tensor, "S"]
    branches: int

    def sum(self, values: Float[Tensor, "S"]) -> Float[Tensor, "N"]:
        """The sum over each response's tokens."""
        return sum_by_branch(values, self.branch, self.branches)


@dataclass(frozen=True)
class Reinforce:
    """-sum_t A_t log pi(y_t) of each response (Williams 1992)."""

    divisor: float | None = None
    """Divide each response's sum by this constant, such as the longest response (Dr.GRPO, arXiv:2503.20783)."""

    def __post_init__(self) -> None:
        _check_divisor(self.divisor)

    def __call__(self, tokens: SampledTokens) -> Float[Tensor, "N"]:
        return -tokens.sum(tokens.advantages * tokens.logps) / (self.divisor or 1.0)


@dataclass(frozen=True)
class ClippedTokens:
    """-sum_t min(ratio_t A_t, clip(ratio_t) A_t), with ratio_t = pi(y_t) / pi_sampled(y_t) (PPO, arXiv:1707.06347).

    For rollouts that are used several times. At the policy that sampled, its gradient is that of `Reinforce`.
    """

    clip: float = 0.2
    """The ratio is clipped to [1 - clip, 1 + clip]."""
    divisor: float | None = None
    """Divide each response's sum by this constant, such as the longest response (Dr.GRPO, arXiv:2503.20783)."""

    def __post_init__(self) -> None:
        _check_clip(self.clip)
        _check_divisor(self.divisor)

    def __call__(self, tokens: SampledTokens) -> Float[Tensor, "N"]:
        ratio = (tokens.logps - tokens.sampled_logps).exp()
        gain = torch.minimum(ratio * tokens.advantages, ratio.clamp(1 - self.clip, 1 + self.clip) * tokens.advantages)
        return -tokens.sum(gain) / (self.divisor or 1.0)


@dataclass(frozen=True)
class ClippedResponses:
    """-min(ratio A, clip(ratio) A), with the ratio of whole responses; A is the mean of the response's advantages.

    For rollouts that are used several times. At the policy that sampled, its gradient is that of `Reinforce`.
    """

    clip: float = 0.2
    """The ratio is clipped to [1 - clip, 1 + clip]."""

    def __post_init__(self) -> None:
        _check_clip(self.clip)

    def __call__(self, tokens: SampledTokens) -> Float[Tensor, "N"]:
        ratio = tokens.sum(tokens.logps - tokens.sampled_logps).exp()
        lengths = tokens.sum(torch.ones_like(tokens.advantages)).clamp(min=1)
        advantages = tokens.sum(tokens.advantages) / lengths
        return -torch.minimum(ratio * advantages, ratio.clamp(1 - self.clip, 1 + self.clip) * advantages)


AnyEstimator = Reinforce | ClippedTokens | ClippedResponses


@dataclass(frozen=True)
class _KL:
    """The coefficient of the KL to the reference, fixed or adaptive."""

    not_offered: ClassVar[dict[str, str]] = {
        "k1-in-loss": "as a loss k1 has an expected gradient of 0; use in-reward",
        "k1": "k1 is charged in the reward here: in-reward",
        "k2": "k2 is charged in the loss here: in-loss",
        "k3": "as a loss k3 has the gradient of KL(reference, policy), the other direction; use in-reward or in-loss",
    }
    """Names of estimators, and why they are not offered or what they are called here."""

    beta: float = 0.05
    """Coefficient of the KL; 0 for none."""
    target: float | None = None
    """Adapt beta so that the mean KL of a response comes to this many nats (arXiv:1909.08593)."""
    rate: float = 0.1
    """With a target: how far beta moves at a step, as a share of the clipped relative error."""

    def __post_init__(self) -> None:
        if self.beta < 0:
            raise UserError(f"kl.beta is {self.beta}; it must not be negative (0 charges no KL)")
        if self.target is not None and not (self.target > 0 and self.beta > 0):
            raise UserError(
                f"kl.target is {self.target} and kl.beta {self.beta}; both must be above 0 to adapt beta towards a KL"
            )
        if self.target is None and self.rate != 0.1:
            raise UserError(f"kl.rate is {self.rate}, but kl.target is not set, so beta stays as it is; set kl.target")

    def adapted(self, beta: float, kl: float) -> float:
        """The coefficient after a rollout with this mean KL, in nats a response."""
        if self.target is None:
            return beta
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        return beta * (1 + self.rate * error)


@dataclass(frozen=True)
class InReward(_KL):
    """beta * k1 of the whole response is subtracted from its reward, before the baseline."""

    def returns(self, reward: float, ratios: Float[Tensor, "_"], beta: float) -> Float[Tensor, "_"]:
        """What each token of a response is credited with: the whole reward minus the whole KL.

        Args:
            reward: The reward without KL.
            ratios: log pi - log pi_ref of each token.
            beta: The coefficient now.
        """
        return reward - beta * ratios.sum().expand_as(ratios)


@dataclass(frozen=True)
class InRewardToGo(_KL):
    """As in-reward, but a token pays only for its own k1 and what follows it (reward-to-go).

    The expectation is that of `InReward`, with less variance: what came before a token does not depend on it.
    """

    def returns(self, reward: float, ratios: Float[Tensor, "_"], beta: float) -> Float[Tensor, "_"]:
        """What each token is credited with: the whole reward minus the KL from this token on."""
        return reward - beta * ratios.flip(0).cumsum(0).flip(0)


@dataclass(frozen=True)
class InLoss(_KL):
    """beta * k2 = beta * (log pi - log pi_ref)^2 / 2 of the whole response is added to its loss."""

    def returns(self, reward: float, ratios: Float[Tensor, "_"], beta: float) -> Float[Tensor, "_"]:
        """What each token is credited with: the reward alone."""
        return torch.full_like(ratios, reward)


AnyKL = InReward | InRewardToGo | InLoss


@dataclass(frozen=True)
class NoCorrection:
    """Samples count as the policy's own, as those of its own decoding are."""


@dataclass(frozen=True)
class Truncate:
    """Each response weighs w = pi(y) / pi_sampler(y), at most `limit` (truncated importance sampling).

    For samplers whose numbers differ a little from the policy's, such as another engine.
    """

    limit: float = 2.0
    """Largest weight."""

    def __post_init__(self) -> None:
        _check_limit(self.limit)

    def __call__(self, weights: Float[Tensor, "N"]) -> Float[Tensor, "N"]:
        return weights.clamp(max=self.limit)


@dataclass(frozen=True)
class Mask:
    """Each response weighs w = pi(y) / pi_sampler(y); those above `limit` or below 1 / `limit` are left out."""

    limit: float = 2.0
    """Largest weight, and the inverse of the smallest."""

    def __post_init__(self) -> None:
        _check_limit(self.limit)

    def __call__(self, weights: Float[Tensor, "N"]) -> Float[Tensor, "N"]:
        return weights.where((weights <= self.limit) & (weights >= 1 / self.limit), 0)


AnyCorrection = NoCorrection | Truncate | Mask


def effective_share(weights: Float[Tensor, "N"]) -> float:
    """The effective sample size of importance weights as a share of N: (sum w)^2 / (N sum w^2)."""
    return (weights.sum().square() / (len(weights) * weights.square().sum())).item()


def k2_loss(tokens: SampledTokens, reference_logps: Float[Tensor, "S"]) -> Float[Tensor, "N"]:
    """(log pi - log pi_ref)^2 / 2 of each whole response, differentiable in the policy."""
    return tokens.sum(tokens.logps - reference_logps).square() / 2


def _check_clip(clip: float) -> None:
    if not 0 < clip < 1:
        raise UserError(f"estimator.clip is {clip}; it must lie between 0 and 1 (0.2 is usual)")


def _check_limit(limit: float) -> None:
    if not limit >= 1:
        raise UserError(f"correction.limit is {limit}; it must be at least 1 (2 is usual)")


def _check_divisor(divisor: float | None) -> None:
    if divisor is not None and not divisor > 0:
        raise UserError(f"estimator.divisor is {divisor}; it must be above 0, or left out")
