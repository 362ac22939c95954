"""Advantages: what is subtracted from the reward of a sampled response before it weighs the response's gradient.

The policy gradient of `losses.policy_gradient` has the loss -(1 / N) sum_i A_i log pi(y_i | prompt). A baseline b that
does not depend on response i leaves the gradient's expectation unchanged and lowers its variance: A_i = R_i - b. Each
class here is one choice of b. Its docstring says what the expectation is, where J is the mean reward.

Notation: G prompts, K samples a prompt, N = G K responses. Everything is computed in float64.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from treeward.errors import UserError


@dataclass(frozen=True)
class Rewards:
    """The rewards of a rollout, all that a baseline may see.

    - `values`: the reward of each sample.
    - `used`: the samples that train; the others (masked ones without an end token) enter no mean.
    - `average`: the moving average of earlier rollouts' mean rewards; None before the first.
    - `greedy`: the reward of each prompt's greedy response; None unless the baseline asks for it.
    """

    values: Float[Tensor, "G K"]
    used: Bool[Tensor, "G K"]
    average: float | None = None
    greedy: Float[Tensor, "G"] | None = None

    @property
    def mean(self) -> float:
        """The mean over all samples that are used; NaN if there are none."""
        return self.values[self.used].mean().item()

    @property
    def counts(self) -> Float[Tensor, "G 1"]:
        """How many samples of each prompt are used; at least 1, so that it can divide."""
        return self.used.sum(1, keepdim=True).clamp(min=1).to(self.values.dtype)

    @property
    def centred(self) -> Float[Tensor, "G K"]:
        """Each reward minus the mean of its prompt's samples; 0 for samples that are not used, and exactly 0 where all
        rewards of a prompt are equal.
        """
        means = self.values.where(self.used, 0).sum(1, keepdim=True) / self.counts
        return (self.values - means).where(self.used & ~self.constant, 0)

    @property
    def constant(self) -> Bool[Tensor, "G 1"]:
        """Whether all used samples of a prompt have the same reward."""
        largest = self.values.where(self.used, -torch.inf).amax(1, keepdim=True)
        smallest = self.values.where(self.used, torch.inf).amin(1, keepdim=True)
        return largest <= smallest


@dataclass(frozen=True)
class _Baseline:
    """What baselines declare.

    `min_samples` a prompt are needed, and a greedy response if `needs_greedy`. `sums_to_zero`: the advantages of a
    prompt sum to 0. `scales`: the advantage is divided by a spread. `own_share(K)` is the weight of a sample's own
    reward in its baseline, where the advantage is not scaled: 0 leaves the gradient's expectation unchanged.
    """

    min_samples: ClassVar[int] = 1
    needs_greedy: ClassVar[bool] = False
    sums_to_zero: ClassVar[bool] = False
    scales: ClassVar[bool] = False
    not_offered: ClassVar[dict[str, str]] = {
        "rloo": "it is leave-one-out here",
        "remax": "it is greedy here",
        "grpo": "its advantage is group-z-score here",
        "dr-grpo": "it is group-mean here, with estimator.divisor",
        "reinforce++": "its advantage is whitened here",
        "none": "it is no-baseline here",
        "predictive-sd": "dividing the advantage by the reward head's standard deviation makes the expected gradient "
        "depend on the baseline; subtract it from the reward instead, with the reward DIR#mean-sd:K",
    }
    """Names of papers and trainers, and what they are called here."""

    def own_share(self, samples: int) -> float:
        return 0.0


@dataclass(frozen=True)
class MovingAverage(_Baseline):
    """A = R - b, with b the moving average of the mean reward over earlier rollouts (arXiv:2402.14740, section 5).

    Expectation: the gradient of J. The first rollout uses its own mean, which scales that one gradient by 1 - 1/N.
    """

    decay: float = 0.95
    """After each rollout b becomes decay * b + (1 - decay) * its mean reward."""

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise UserError(f"baseline.decay is {self.decay}; it must be in [0, 1) (0.95 is usual)")

    def __call__(self, rewards: Rewards) -> Float[Tensor, "G K"]:
        average = rewards.mean if rewards.average is None else rewards.average
        return (rewards.values - average).where(rewards.used, 0)

    def updated(self, rewards: Rewards) -> float:
        """The average after this rollout."""
        if rewards.average is None:
            return rewards.mean
        return self.decay * rewards.average + (1 - self.decay) * rewards.mean


@dataclass(frozen=True)
class LeaveOneOut(_Baseline):
    """A_i = R_i - the mean of the prompt's other samples = K / (K - 1) * (R_i - mean) (RLOO, arXiv:2402.14740).

    Expectation: the gradient of J. A prompt with one used sample has advantage 0.
    """

    min_samples: ClassVar[int] = 2
    sums_to_zero: ClassVar[bool] = True

    def __call__(self, rewards: Rewards) -> Float[Tensor, "G K"]:
        counts = rewards.counts
        return rewards.centred * counts / (counts - 1).clamp(min=1)


@dataclass(frozen=True)
class Greedy(_Baseline):
    """A_i = R_i - the reward of the prompt's greedy response (ReMax, arXiv:2310.10505).

    Expectation: the gradient of J. It costs one more response a prompt.
    """

    needs_greedy: ClassVar[bool] = True

    def __call__(self, rewards: Rewards) -> Float[Tensor, "G K"]:
        assert rewards.greedy is not None, "this baseline needs the rewards of greedy responses"
        return (rewards.values - rewards.greedy[:, None]).where(rewards.used, 0)


@dataclass(frozen=True)
class NoBaseline(_Baseline):
    """A = R. Expectation: the gradient of J, with the largest variance."""

    def __call__(self, rewards: Rewards) -> Float[Tensor, "G K"]:
        return rewards.values.where(rewards.used, 0)


@dataclass(frozen=True)
class GroupMean(_Baseline):
    """A_i = R_i - the mean of the prompt's samples, i included (Dr.GRPO, arXiv:2503.20783).

    Expectation: (1 - 1/K) times the gradient of J.
    """

    min_samples: ClassVar[int] = 2
    sums_to_zero: ClassVar[bool] = True

    def own_share(self, samples: int) -> float:
        return 1 / samples

    def __call__(self, rewards: Rewards) -> Float[Tensor, "G K"]:
        return rewards.centred


@dataclass(frozen=True)
class GroupZScore(_Baseline):
    """A_i = (R_i - mean) / sd over the prompt's samples (GRPO, arXiv:2402.03300); 0 where all rewards are equal.

    Expectation: not parallel to the gradient of J: prompts whose samples nearly agree weigh more. The variance is
    computed from the deviations, because E[x^2] - E[x]^2 loses all digits for large rewards.
    """

    min_samples: ClassVar[int] = 2
    sums_to_zero: ClassVar[bool] = True
    scales: ClassVar[bool] = True

    def __call__(self, rewards: Rewards) -> Float[Tensor, "G K"]:
        centred = rewards.centred
        variance = centred.square().sum(1, keepdim=True) / (rewards.counts - 1).clamp(min=1)
        return torch.where(rewards.constant, 0.0, centred / variance.sqrt())


@dataclass(frozen=True)
class Whitened(_Baseline):
    """A_i = (R_i - mean) / sd over the whole rollout (REINFORCE++, arXiv:2501.03262); 0 where all rewards are equal.

    Expectation: approximately parallel to the gradient of J, for rollouts of many responses.
    """

    scales: ClassVar[bool] = True

    def __call__(self, rewards: Rewards) -> Float[Tensor, "G K"]:
        used = rewards.values[rewards.used]
        if len(used) < 2 or used.max() <= used.min():
            return torch.zeros_like(rewards.values)
        return ((rewards.values - used.mean()) / used.std()).where(rewards.used, 0)


AnyBaseline = MovingAverage | LeaveOneOut | Greedy | NoBaseline | GroupMean | GroupZScore | Whitened
