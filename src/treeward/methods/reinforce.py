"""REINFORCE: raise the log-probability of sampled responses by how much better they scored than a baseline.

    R_i  = score_i - penalties - beta * k1_i          k1 = log pi(y_i | prompt) - log pi_ref(y_i | prompt), a constant
    A_i  = R_i - baseline                             (losses.advantages)
    loss = -(1 / N) sum_i A_i log pi(y_i | prompt)    (losses.policy_gradient)

Each step samples K responses to each prompt of a batch from the policy as it is now, at temperature 1, so the expected
gradient is that of E[score] - beta * KL(policy, reference). With a moving-average baseline this is the REINFORCE of
"Back to Basics" (arXiv:2402.14740). RLOO, ReMax, Dr.GRPO, GRPO's advantage and REINFORCE++ are other choices of
baseline, estimator and place of the KL.

Letters: G prompts, K samples a prompt, N = G K responses, S scored tokens.
"""

import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import fmean, pstdev, stdev
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from treeward.checks import guards, identities
from treeward.checks.check import Check
from treeward.data import embedded
from treeward.data.formats import Purpose
from treeward.data.prompts import prepare_prompts, prompt_range
from treeward.data.store import Prepared
from treeward.errors import UserError
from treeward.evaluation import policies
from treeward.losses.advantages import AnyBaseline, GroupZScore, MovingAverage, Rewards, Whitened
from treeward.losses.policy_gradient import (
    AnyCorrection,
    AnyEstimator,
    AnyKL,
    InLoss,
    InReward,
    InRewardToGo,
    NoCorrection,
    Reinforce,
    SampledTokens,
    effective_share,
    k2_loss,
)
from treeward.methods.method import Method, RunConfig
from treeward.models.policy import Policy, bare_prompts, token_logps
from treeward.models.reference import AnyReference, Frozen, ReferenceModel, reference_for
from treeward.models.sampler import DecodeSampler, Noise, Sampler, SyncedSampler, row_ids
from treeward.rewards import scorers
from treeward.rewards.models import RunOptions
from treeward.rewards.scorers import AnyScorer, Mixture, Scorer
from treeward.stats.diversity import repetition
from treeward.stats.tables import Measurement, Table
from treeward.training.loop import Loop, Result, Step, TrainingConfig, result_of
from treeward.training.objectives import Terms
from treeward.trees.forest import Forest
from treeward.trees.forward import TreeModule
from treeward.trees.rollout import Rollout, Sampled
from treeward.trees.text import Tree
from treeward.trees.tokens import Tokenizer, TokenTree

EXAMPLES = 32
"""Most prompts that are sampled before the first step, for the checks that run the model and the reward."""


@dataclass(frozen=True, kw_only=True)
class ReinforceConfig(TrainingConfig):
    """REINFORCE on responses that the policy samples while it trains."""

    batch_size: int = 16
    """Prompts in an optimizer step; each is answered `samples` times."""
    lr: float = 1e-6
    """Peak learning rate: 1e-6 from 1B parameters, 1e-5 at 100M, 3e-4 under 20M or from random weights."""
    schedule: Literal["constant", "constant_with_warmup", "linear", "cosine"] = "constant_with_warmup"
    """How the learning rate changes; constant after warm-up is usual."""
    warmup: float = 0.03
    """Share of the steps in which the learning rate rises."""
    samples: int = 4
    """Responses sampled for each prompt."""
    max_new_tokens: int = 64
    """Longest response in tokens, end token included."""
    baseline: AnyBaseline = field(default_factory=MovingAverage)
    """What is subtracted from a reward to give the advantage."""
    estimator: AnyEstimator = field(default_factory=Reinforce)
    """The loss of a response, given its advantage."""
    kl: AnyKL = field(default_factory=InReward)
    """How the KL to the reference is charged."""
    reference: AnyReference = field(default_factory=Frozen)
    """The model that the KL is measured against."""
    unfinished: Literal["penalise", "mask", "keep"] = "penalise"
    """Responses without an end token: penalise lowers their reward by `missing_end_penalty`, mask gives them advantage
    0 and leaves them out of every baseline, keep does nothing."""
    missing_end_penalty: float = 1.0
    """Subtracted from the reward of an unfinished response."""
    length_penalty: float = 0.0
    """Subtracted from the reward for each token of a response; 0.0005 is usual where one is wanted."""
    correction: AnyCorrection = field(default_factory=NoCorrection)
    """Importance weights for a sampler that is not the policy itself."""
    normalise: Literal["none", "running"] = "none"
    """running: subtract the mean of all earlier scores and divide by their standard deviation, at most 5 either way."""
    refill: int | None = None
    """Leave out prompts whose samples all score alike, and replace them by at most this many other prompts a step; 0
    only leaves them out. By default they stay."""
    steps_per_rollout: int = 1
    """Optimizer steps on each rollout; above 1 needs a clipped estimator."""

    def __post_init__(self) -> None:
        for name in ("samples", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least 1")
        super().__post_init__()
        check_samples(self.baseline, self.samples)
        if self.unfinished != "penalise" and self.missing_end_penalty != 1.0:
            raise UserError(
                f"missing_end_penalty is {self.missing_end_penalty}, but unfinished is {self.unfinished!r}: set "
                "unfinished to penalise, or leave the penalty out"
            )
        if self.refill is not None and self.samples < 2:
            raise UserError(
                f"refill is {self.refill}, but samples is 1: one sample always scores like itself; leave it out"
            )
        if self.refill is not None and self.refill < 0:
            raise UserError(f"refill is {self.refill}; it must be 0 or more")
        check_reuse(self.estimator, self.steps_per_rollout)
        if self.normalise not in ("none", "running"):
            raise UserError(f"normalise is {self.normalise!r}; it is none or running")
        if self.batch_size * self.samples < 2:
            raise UserError("batch_size is 1 and samples is 1, so a step has one response; use at least 2 responses")

    @property
    def steps_per_batch(self) -> int:
        return self.steps_per_rollout


class PolicyGradientObjective:
    """Policy gradient on a scored rollout; a unit is a response.

    `Loop.step(rollout)` calls `training_trees`, which computes rewards and advantages and moves the baseline's average.
    The average and an adaptive coefficient of the KL are saved by `Loop.save`.

    Args:
        reference: The reference model; may be left out where `kl.beta` is 0.
        baseline: A class of `losses.advantages`; by default a moving average.
        estimator: `Reinforce`, or a clipped loss for rollouts that are used several times.
        kl: How the KL is charged; by default beta 0.05 in the reward.
        unfinished: What is done with responses without an end token: "penalise", "mask" or "keep".
        missing_end_penalty: Subtracted from their reward under "penalise".
        length_penalty: Subtracted from the reward for each token.
        correction: Importance weights for samples of another engine, whose log-probabilities the rollout has.
        normalise: "none", or "running" for scores relative to the mean and standard deviation of earlier ones.

    Raises:
        UserError: the KL needs a reference, or the choices do not go together.
    """

    def __init__(
        self,
        reference: ReferenceModel | None = None,
        baseline: AnyBaseline | None = None,
        estimator: AnyEstimator | None = None,
        kl: AnyKL | None = None,
        *,
        unfinished: Literal["penalise", "mask", "keep"] = "penalise",
        missing_end_penalty: float = 1.0,
        length_penalty: float = 0.0,
        correction: AnyCorrection | None = None,
        normalise: Literal["none", "running"] = "none",
    ) -> None:
        self.reference = reference
        self.baseline = baseline or MovingAverage()
        self.estimator = estimator or Reinforce()
        self.kl = kl or InReward()
        self.unfinished = unfinished
        self.missing_end_penalty = missing_end_penalty
        self.length_penalty = length_penalty
        self.scale: RunningScale | None = RunningScale() if normalise == "running" else None
        self.correction = correction or NoCorrection()
        self.of_rollout: dict[str, float] = {}
        """Metrics of the last rollout as a whole."""
        self._last: tuple[Rollout, list[TokenTree]] | None = None
        self.beta = self.kl.beta
        self.average: float | None = None
        if reference is None and self.beta:
            raise UserError(
                f"reference is not given, but kl.beta is {self.beta}: pass policy.frozen_copy(), or "
                "losses.policy_gradient.InReward(beta=0)"
            )
        if isinstance(self.kl, InRewardToGo) and isinstance(self.baseline, GroupZScore):
            raise UserError(
                "kl.kind in-reward-to-go does not go with baseline.kind group-z-score, which scales whole responses; "
                "use kl.kind in-reward"
            )

    @classmethod
    def of(cls, config: ReinforceConfig, reference: ReferenceModel) -> "PolicyGradientObjective":
        """The objective of a configuration."""
        return cls(
            reference,
            config.baseline,
            config.estimator,
            config.kl,
            unfinished=config.unfinished,
            missing_end_penalty=config.missing_end_penalty,
            length_penalty=config.length_penalty,
            correction=config.correction,
            normalise=config.normalise,
        )

    def state_dict(self) -> dict[str, Any]:
        """The moving average of the rewards, the coefficient of the KL, and the running scale of the scores."""
        return {"average": self.average, "beta": self.beta, "scale": asdict(self.scale) if self.scale else None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put them back."""
        self.average, self.beta = state["average"], state["beta"]
        if self.scale is not None:
            self.scale = RunningScale(**state["scale"])

    # From a scored rollout to trees with advantages

    def training_trees(self, model: Policy, rollout: Rollout, token_budget: int) -> list[TokenTree]:
        """The rollout's trees with rewards and advantages. The first call for a rollout moves the average; another one
        gives the same trees, for further steps on the same samples.

        Args:
            model: The policy that was sampled.
            rollout: Scored samples, equally many for each prompt.
            token_budget: Packed tokens of one forward pass.

        Raises:
            UserError: the rollout has no scores, was not sampled at temperature 1, or does not fit the baseline.
        """
        if self._last is not None and self._last[0] is rollout:
            return self._last[1]
        trees, rewards = self._with_advantages(model, rollout, token_budget)
        scores = _scores(rollout)
        if self.scale is not None:
            self.scale.add(score for row in scores for score in row)
        if isinstance(self.baseline, MovingAverage) and bool(rewards.used.any()):
            self.average = self.baseline.updated(rewards)
        kls = [ratio.sum().item() for tree in trees for ratio in _log_ratios(tree.sampled)]
        self.beta = self.kl.adapted(self.beta, sum(kls) / len(kls))
        self._last = rollout, trees
        return trees

    def examples(self, model: Policy, rollout: Rollout, token_budget: int) -> list[TokenTree]:
        """As `training_trees`, but the average and the coefficient stay as they are; for checks."""
        return self._with_advantages(model, rollout, token_budget)[0]

    def _with_advantages(self, model: Policy, rollout: Rollout, token_budget: int) -> tuple[list[TokenTree], Rewards]:
        scores = _scores(rollout)
        logps, weights = self._policy_logps(model, rollout)
        self._measure_rollout(rollout, scores)
        finished = rollout.finished or [[True] * len(tree.branches) for tree in rollout.trees]
        if self.reference is None:
            reference_logps = logps
        else:
            self.reference.verify_layout(rollout.trees)
            by_tree = self.reference.token_logps(list(dict.fromkeys(rollout.trees)), token_budget)
            reference_logps = [by_tree[tree] for tree in rollout.trees]
        shaped = self._shaped(rollout.trees, scores, finished)
        returns = [
            [self.kl.returns(r, (p - q).double(), self.beta) for r, p, q in zip(*branches, strict=True)]
            for branches in zip(shaped, logps, reference_logps, strict=True)
        ]
        rewards = Rewards(
            torch.tensor([[tokens[0].item() for tokens in branches] for branches in returns], dtype=torch.float64),
            torch.tensor(finished) if self.unfinished == "mask" else torch.ones(len(scores), len(scores[0])).bool(),
            self.average,
            self._greedy_rewards(rollout),
        )
        advantages = self._token_advantages(rewards, returns)
        trees = [
            replace(
                tree,
                sampled=Sampled(
                    tuple(logps[g]),
                    tuple(reference_logps[g]),
                    tuple(advantages[g]),
                    tuple(scores[g]),
                    tuple(rewards.values[g].tolist()),
                    tuple(finished[g]),
                    tuple(rewards.used[g].tolist()),
                    None if weights is None else tuple(weights[g]),
                    {name: tuple(scores[g]) for name, scores in rollout.parts.items()},
                ),
            )
            for g, tree in enumerate(rollout.trees)
        ]
        spread = pstdev(reward for row in shaped for reward in row)
        if self.reference is not None and spread:
            kl = fmean(ratio.sum().item() for tree in trees for ratio in _log_ratios(tree.sampled))
            self.of_rollout["kl/to_reward"] = self.beta * abs(kl) / spread
        return trees, rewards

    def _policy_logps(self, model: Policy, rollout: Rollout) -> tuple[Sequence[Sequence[Tensor]], Any]:
        """Log-probabilities under the policy as it is now, by tree and branch; and, where the samples are corrected for
        another sampler, the weight of each response.
        """
        recorded = _sampled_logps(model, rollout)
        self.of_rollout = {}
        if isinstance(self.correction, NoCorrection):
            return recorded, None
        if rollout.logps is None:
            raise UserError(
                "correction needs the sampler's log-probabilities, but rollout.logps is None; let the sampler record "
                "them, or leave correction out"
            )
        logps = token_logps(model, rollout.trees)
        off = [p - q for ps, qs in zip(logps, recorded, strict=True) for p, q in zip(ps, qs, strict=True)]
        raw = torch.stack([part.double().sum() for part in off]).exp()
        weights = self.correction(raw)
        self.of_rollout = {
            "sampler/gap": torch.cat(off).abs().mean().item(),
            "sampler/effective": effective_share(raw),
            "sampler/corrected": (weights != raw).double().mean().item(),
        }
        lengths = [len(tree.branches) for tree in rollout.trees]
        return logps, [part.tolist() for part in torch.split(weights, lengths)]

    def _measure_rollout(self, rollout: Rollout, scores: Sequence[Sequence[float]]) -> None:
        """`no_signal`, `reward_std` and `distinct`, which need the whole rollout.

        A single sample of a prompt has nothing to differ from; then the scores of all prompts are compared.
        """
        groups = scores if len(scores[0]) > 1 else [[row[0] for row in scores]]
        alike = rollout.left_out + sum(min(group) == max(group) for group in groups)
        branches = [branch for tree in rollout.trees for branch in tree.branches]
        self.of_rollout |= {
            "no_signal": alike / (rollout.left_out + len(groups)),
            "distinct": len(set(branches)) / len(branches),
        }
        spreads = [stdev(group) for group in groups if len(group) > 1]
        if spreads:
            self.of_rollout["reward_std"] = fmean(spreads)
        if rollout.probe_gap is not None:
            self.of_rollout["sampler/probe_gap"] = rollout.probe_gap

    def _shaped(
        self, trees: Sequence[TokenTree], scores: Sequence[Sequence[float]], finished: Sequence[Sequence[bool]]
    ) -> list[list[float]]:
        """Scores, relative to earlier ones if asked, minus the penalties for length and for a missing end token."""
        if self.scale is not None:
            scores = self.scale(scores)
        missing_end = self.missing_end_penalty if self.unfinished == "penalise" else 0.0
        return [
            [
                score - self.length_penalty * len(branch) - (0.0 if ended else missing_end)
                for branch, score, ended in zip(tree.branches, scores[g], finished[g], strict=True)
            ]
            for g, tree in enumerate(trees)
        ]

    def _greedy_rewards(self, rollout: Rollout) -> Float[Tensor, "G"] | None:
        if not self.baseline.needs_greedy:
            return None
        greedy = rollout.greedy
        if greedy is None:
            raise UserError("baseline greedy needs rollout.greedy, the scored greedy responses of the same prompts")
        finished = greedy.finished or [[True]] * len(greedy)
        return torch.tensor(self._shaped(greedy.trees, _scores(greedy), finished), dtype=torch.float64)[:, 0]

    def _token_advantages(self, rewards: Rewards, returns: Sequence[Sequence[Tensor]]) -> list[list[Tensor]]:
        """The advantage of each token: its return minus the baseline of its response.

        Whitening scales as well; with a reward-to-go it is done over tokens.
        """
        check_samples(self.baseline, rewards.values.shape[1])
        if isinstance(self.baseline, Whitened) and isinstance(self.kl, InRewardToGo):
            tokens = torch.cat([part for branches in returns for part in branches])
            lengths = torch.tensor([len(part) for branches in returns for part in branches])
            used = rewards.used.flatten().repeat_interleave(lengths)
            whitened = iter(torch.split(self.baseline(Rewards(tokens[None], used[None]))[0], lengths.tolist()))
            return [[next(whitened) for _ in branches] for branches in returns]
        advantages = self.baseline(rewards)
        if isinstance(self.kl, InRewardToGo):
            return [
                [(advantages[g, k] + part - part[0]) * bool(rewards.used[g, k]) for k, part in enumerate(branches)]
                for g, branches in enumerate(returns)
            ]
        return [
            [advantages[g, k].expand_as(part) for k, part in enumerate(branches)] for g, branches in enumerate(returns)
        ]

    # The loss

    def count(self, tree: TokenTree) -> int:
        return len(tree.branches)

    def __call__(self, model: TreeModule, forest: Forest) -> Terms:
        samples = [_sampled(tree) for tree in forest.sources]
        logps = model(forest)

        def tokens(name: str) -> Float[Tensor, "S"]:
            return torch.cat([part for each in samples for part in getattr(each, name)]).to(logps)

        sampled = SampledTokens(
            logps,
            tokens("logps"),
            tokens("advantages"),
            forest.scored_branch.to(logps.device),
            forest.branches,
        )
        values = self.estimator(sampled)
        if isinstance(self.kl, InLoss) and self.beta:
            used = torch.tensor([u for each in samples for u in each.used], device=values.device)
            values = values + self.beta * k2_loss(sampled, tokens("reference_logps")) * used
        gap = (logps.detach() - sampled.sampled_logps).abs()
        weights = [weight for each in samples for weight in each.weights or ()]
        return Terms(
            values,
            {"sampler/gap": gap, **self._metrics(forest.sources)},
            torch.tensor(weights).to(values) if weights else None,
        )

    def _metrics(self, trees: Sequence[TokenTree]) -> dict[str, Tensor]:
        """By response, except those of the whole rollout."""
        samples = [_sampled(tree) for tree in trees]
        ratios = [ratio.double() for each in samples for ratio in _log_ratios(each)]
        scores = [torch.tensor(each.scores, dtype=torch.float64) for each in samples]
        metrics = {
            "score": torch.cat(scores),
            "reward": torch.tensor([r for each in samples for r in each.rewards], dtype=torch.float64),
            "length": torch.tensor([float(len(part)) for each in samples for part in each.logps]),
            "ended": torch.tensor([float(f) for each in samples for f in each.finished]),
            "entropy": torch.cat([-part.double() for each in samples for part in each.logps]),
            "advantages/size": torch.tensor([part[0].abs().item() for each in samples for part in each.advantages]),
            "repetition": torch.tensor([each for tree in trees for each in map(repetition, tree.branches)]),
        }
        metrics |= {
            name: torch.full((len(samples),), value, dtype=torch.float64) for name, value in self.of_rollout.items()
        }
        for name in samples[0].parts:
            metrics[f"score/{name}"] = torch.tensor([value for each in samples for value in each.parts[name]])
        if self.reference is not None:
            metrics |= {
                "kl": torch.stack([ratio.sum() for ratio in ratios]),
                "kl/k3": torch.stack([(torch.expm1(-ratio) + ratio).sum() for ratio in ratios]),
                "kl/beta": torch.full((len(samples),), self.beta, dtype=torch.float64),
            }
        if isinstance(self.baseline, MovingAverage):
            advantages = torch.stack([part[0] for each in samples for part in each.advantages])
            metrics["baseline"] = metrics["reward"] - advantages
        return metrics


@dataclass
class RunningScale:
    """Mean and spread of all scores so far, by Welford's updates, which do not cancel."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    """Sum of squared deviations from the mean."""

    def add(self, scores: Iterable[float]) -> None:
        """Take these scores in."""
        for score in scores:
            self.count += 1
            off = score - self.mean
            self.mean += off / self.count
            self.squares += off * (score - self.mean)

    def __call__(self, scores: Sequence[Sequence[float]]) -> list[list[float]]:
        """(score - mean) / standard deviation, at most `LARGEST` either way. The first scores are scaled by their own
        mean and spread; scores without spread become 0.
        """
        scale = self
        if not self.count:
            scale = RunningScale()
            scale.add(score for row in scores for score in row)
        spread = math.sqrt(scale.squares / (scale.count - 1)) if scale.count > 1 else 0.0
        if not spread:
            return [[0.0] * len(row) for row in scores]
        return [[max(-LARGEST, min(LARGEST, (score - scale.mean) / spread)) for score in row] for row in scores]


LARGEST = 5.0
"""Largest normalised score, in standard deviations."""


def check_reuse(estimator: AnyEstimator, steps: int) -> None:
    """Whether the estimator may take this many steps on one rollout.

    Raises:
        UserError: the number is below 1, or above 1 for a loss without a ratio to the sampling policy.
    """
    if steps < 1:
        raise UserError(f"steps_per_rollout is {steps}; it must be at least 1")
    if steps > 1 and isinstance(estimator, Reinforce):
        raise UserError(
            f"steps_per_rollout is {steps}, but estimator.kind reinforce is right at the policy that sampled only; use "
            "estimator.kind clipped-responses or clipped-tokens, or steps_per_rollout 1"
        )


def check_samples(baseline: AnyBaseline, samples: int) -> None:
    """Whether there are enough samples a prompt for the baseline.

    Raises:
        UserError: there are not.
    """
    if samples < baseline.min_samples:
        raise UserError(
            f"samples is {samples}, but baseline.kind {type(baseline).__name__} compares the samples of a prompt with "
            f"each other; use {baseline.min_samples} or more, or baseline.kind moving-average"
        )


def _scores(rollout: Rollout) -> Sequence[Sequence[float]]:
    if rollout.scores is None:
        raise UserError("rollout has no scores; call treeward.score(rollout, scorer) first")
    if len({len(scores) for scores in rollout.scores}) > 1:
        raise UserError("rollout has different numbers of samples for its prompts; sample equally many for each")
    return rollout.scores


def _sampled_logps(model: Policy, rollout: Rollout) -> Sequence[Sequence[Tensor]]:
    """The log-probabilities recorded while sampling, or computed now where the sampler records none."""
    if rollout.logps is None:
        return token_logps(model, rollout.trees)
    for policy, drawn in zip(rollout.logps, rollout.drawn_logps or rollout.logps, strict=True):
        if any(not torch.equal(p, d) for p, d in zip(policy, drawn, strict=True)):
            raise UserError(
                "rollout was sampled at another temperature than 1, so its samples are not the policy's; sample with "
                "temperature=1"
            )
    return rollout.logps


def _sampled(tree: TokenTree) -> Sampled:
    if tree.sampled is None:
        raise UserError(
            "the policy gradient needs rollouts: pass treeward.score(treeward.sample(policy, prompts, ...), scorer) to "
            "Loop.step"
        )
    return tree.sampled  # type: ignore[no-any-return]


def _log_ratios(sampled: Sampled) -> list[Tensor]:
    """log pi - log pi_ref of each token, by branch, at sampling."""
    return [p - q for p, q in zip(sampled.logps, sampled.reference_logps, strict=True)]


# Sampling and training


GREEDY = 1e-6
"""Sampling temperature at which the most likely token is taken."""
RANDOM_REWARD, START = -1, -2
"""The `member` of the noise that random rewards are drawn from, and of the start model's responses; samples have 0 and
up."""

Control = Literal["random-reward", "target-token"]
EXPECTED: dict[Control, tuple[str, ...]] = {
    "random-reward": ("no detectable change", "worse"),
    "target-token": ("improved",),
}
"""The verdicts with which a control ends as it should."""


@dataclass(frozen=True)
class Rollouts:
    """Makes scored rollouts: K responses to each prompt, and a greedy one where the baseline needs it.

    The noise of a response depends on seed, step and prompt alone, so that a resumed run samples the same responses.
    """

    policy: Policy
    scorer: Scorer
    config: ReinforceConfig
    sampler: Sampler | None = None
    random: bool = False
    """Replace every score by a random number in [0, 1), drawn anew at each step: a control that teaches nothing."""
    seconds: dict[str, float] = field(default_factory=lambda: {"sampling": 0.0, "scoring": 0.0}, compare=False)
    """Time spent so far on the responses and on their scores."""

    def __call__(self, prompts: Sequence[TokenTree], step: int, spare: Sequence[TokenTree] = ()) -> Rollout:
        """Sample from the policy as it is now, before the step of this number, and score the samples.

        With `config.refill` prompts whose samples all have the same score are left out, and some of `spare` take their
        place. If nothing else is left, the first prompts stay.

        Raises:
            BadScore: a score is missing or not finite.
            UserError: a sample could exceed the model's positions.
        """
        rollout = self._sampled(prompts, step)
        if self.config.refill is None:
            return rollout
        with_signal = [rollout.where(_differs(rollout))]
        tried = len(prompts)
        spare = self._drawn(spare, prompts, step)
        missing = len(prompts) - len(with_signal[0])
        while missing and spare:
            more = self._sampled(spare[:missing], step)
            tried += len(more)
            spare = spare[missing:]
            with_signal.append(more.where(_differs(more)))
            missing -= len(with_signal[-1])
        together = Rollout.joined(with_signal)
        return replace(together, left_out=tried - len(together)) if len(together) else rollout

    def _drawn(self, spare: Sequence[TokenTree], prompts: Sequence[TokenTree], step: int) -> list[TokenTree]:
        """At most `config.refill` of `spare` that are not in the batch, in an order that depends on seed and step."""
        assert self.config.refill is not None
        taken = {tree.prompt for tree in prompts}
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + step)
        chosen: list[TokenTree] = []
        for place in torch.randperm(len(spare), generator=generator).tolist():
            if len(chosen) == self.config.refill:
                break
            if spare[place].prompt not in taken:
                taken.add(spare[place].prompt)
                chosen.append(spare[place])
        return chosen

    def _sampled(self, prompts: Sequence[TokenTree], step: int) -> Rollout:
        config = self.config
        sampler = self.sampler or DecodeSampler.of(self.policy, config.max_new_tokens)
        noise = Noise(config.seed, step=step)
        gap = synchronised(sampler, self.policy, prompts) if isinstance(sampler, SyncedSampler) else None
        clock = time.monotonic()
        rollout = sampler(prompts, config.samples, noise)
        if config.baseline.needs_greedy:
            greedy = DecodeSampler.of(self.policy, config.max_new_tokens, GREEDY)
            rollout = replace(rollout, greedy=greedy(prompts, 1, noise))
        sampled = time.monotonic()
        scored = self._scored(replace(rollout, probe_gap=gap), step)
        if scored.greedy is not None:
            scored = replace(scored, greedy=self._scored(scored.greedy, step))
        self.seconds["sampling"] += sampled - clock
        self.seconds["scoring"] += time.monotonic() - sampled
        return scored

    def _scored(self, rollout: Rollout, step: int) -> Rollout:
        if self.random:
            noise = Noise(self.config.seed, member=RANDOM_REWARD, step=step)
            count = max(len(tree.branches) for tree in rollout.trees)
            return rollout.with_scores([u for row in row_ids(rollout.trees) for u in noise.uniforms(row, 0, count)])
        if not isinstance(self.scorer, Mixture):
            return rollout.with_scores(self.scorer(rollout).tolist())
        parts = self.scorer.parts(rollout)
        return rollout.with_scores(self.scorer.total(parts).tolist(), {name: v.tolist() for name, v in parts.items()})


PROBES = 2
"""Prompts whose log-probabilities are compared after each synchronisation of another sampler."""


def synchronised(sampler: SyncedSampler, policy: Policy, prompts: Sequence[TokenTree]) -> float:
    """Give a sampler the policy's weights; the mean difference of their log-probabilities of a few tokens after it.

    The tokens are those of the first prompts: each but the first token is scored as a response.
    """
    sampler.sync(policy)
    probes = [TokenTree(tree.prompt[:1], (tree.prompt[1:],)) for tree in prompts[:PROBES] if len(tree.prompt) > 1]
    if not probes:
        return 0.0
    ours, theirs = (torch.cat([part for parts in logps for part in parts])
                    for logps in (token_logps(policy, probes), sampler.logps(probes)))  # fmt: skip
    return (ours - theirs.to(ours)).abs().mean().item()


def _differs(rollout: Rollout) -> list[bool]:
    """By prompt, whether its samples have different raw scores."""
    return [min(scores) < max(scores) for scores in _scores(rollout)]


def reinforce_steps(
    policy: Policy,
    prompts: Sequence[Tree | TokenTree],
    reward: AnyScorer,
    config: ReinforceConfig | None = None,
    reference: ReferenceModel | None = None,
    *,
    sampler: Sampler | None = None,
) -> Iterator[Step]:
    """Train `policy` in place on its own samples; yields each step after it was taken.

    Args:
        policy: The policy.
        prompts: Trees; responses that they have are ignored, their rows are passed on to the reward.
        reward: A function `(prompt, response, row) -> float`, a reward model, a scorer, or a scorer's name.
        config: Training, sampling, baseline, estimator and KL.
        reference: A reference model; by default the one of `config.reference`.
        sampler: Another sampler than the policy's own decoding.

    Raises:
        BadScore: the reward failed, or is not a finite number.
        NonFinite: a loss or gradient is not finite.
        UserError: there are no prompts, or a response could exceed the model's positions.
    """
    config = config or ReinforceConfig()
    objective = PolicyGradientObjective.of(config, reference or reference_for(policy, config.reference))
    bare = bare_prompts(prompts, policy.tokenizer)
    rollouts = Rollouts(policy, scorers.as_scorer(reward), config, sampler)
    batches = config.batches(bare)
    loop = Loop.from_config(policy, objective, config, len(batches) * config.steps_per_rollout)
    for batch in batches:
        rollout = rollouts(batch, loop.index + 1, bare)
        for _ in range(config.steps_per_rollout):
            yield loop.step(rollout)


def reinforce(
    policy: Policy,
    prompts: Sequence[Tree | TokenTree],
    reward: AnyScorer,
    config: ReinforceConfig | None = None,
    reference: ReferenceModel | None = None,
    *,
    sampler: Sampler | None = None,
) -> Result:
    """Train `policy` in place: all steps of `reinforce_steps`."""
    return result_of(reinforce_steps(policy, prompts, reward, config, reference, sampler=sampler))


@dataclass(frozen=True, kw_only=True)
class ReinforceRun(ReinforceConfig, RunConfig):
    """treeward reinforce: REINFORCE with a baseline, on the policy's own samples."""

    prompt_tokens: int | tuple[int, int] = 8
    """First tokens of a text that become its prompt, if the data has no prompts; [2, 8] draws from a range."""
    kl_cap: float | None = None
    """Stop when a step's mean KL is above this many nats a response, and keep the best weights within it."""
    reward: tuple[str, ...] = ()
    """Scores the samples that train: `gold` (the embedded world, and its default), `exact-match`, `length`,
    `count:WORD`, `FILE.py:FUNCTION`, or the directory of a reward model, an ensemble (`DIR#worst`) or a classifier
    (`DIR#LABEL`). `DIR#mean-sd:1`, `#cvar:0.25`, `#entropic`, `#beats-reference` and `#par` read a reward model's
    distribution. Several are added up."""
    reward_weights: tuple[float, ...] = ()
    """The weight of each reward, in the same order; 1 each by default."""
    reward_processes: int = 0
    """Processes that call a slow reward function of FILE.py; 0 calls it in this one."""
    reward_timeout: float = 60.0
    """Longest call of such a function in seconds, where `reward_processes` is above 0."""
    reference_samples: int = 1
    """Responses of the start model to each prompt that `#beats-reference` and `#par` compare with."""
    control: Control | None = None
    """Test the set-up: random-reward trains on random numbers, and `reward` must not improve; target-token trains on
    how often the prompts' most frequent token occurs, and that must improve. The exit code is 0 if it ends so."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.reward and self.control != "target-token" and embedded.model_of(self.data.source) != "world":
            raise UserError("reward is not given; name a scorer with --reward, such as gold or FILE.py:FUNCTION")
        if self.control == "target-token" and self.reward:
            raise UserError(f"control is target-token, which has a reward of its own; leave reward {self.reward} out")
        prompt_range(self.prompt_tokens)
        for name, lowest in (("reward_processes", 0), ("reference_samples", 1)):
            if getattr(self, name) < lowest:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least {lowest}")
        if not 0 < self.reward_timeout < math.inf:
            raise UserError(f"reward_timeout is {self.reward_timeout}; it must be above 0, in seconds")
        if self.kl_cap is not None and not self.kl_cap > 0:
            raise UserError(f"kl_cap is {self.kl_cap}; it must be above 0, in nats a response")
        if self.kl_cap is not None and not self.data.validation:
            raise UserError(
                "kl_cap is set, but data.validation is 0: the weights within the cap are chosen on that part"
            )

    @property
    def longest_sample(self) -> int | None:
        return self.max_new_tokens


@dataclass(frozen=True)
class StartResponses:
    """Responses of the start model, for rewards that compare with it; the same for a prompt whenever it is asked."""

    start: ReferenceModel
    policy: Policy
    config: ReinforceRun

    def __call__(self, prompts: Sequence[TokenTree]) -> Rollout:
        noise = Noise(self.config.seed, member=START)
        bare = [TokenTree(tree.prompt, (), "", row=tree.row) for tree in prompts]
        with self.start.inference() as packed:
            tokens, tokenizer = self.config.max_new_tokens, self.policy.tokenizer
            sampler = DecodeSampler(packed, self.policy.end_ids, tokens, tokenizer=tokenizer)
            return sampler(bare, self.config.reference_samples, noise)


@dataclass(frozen=True)
class TargetToken:
    """Scores a response by how often a token occurs in it."""

    token: int

    @property
    def name(self) -> str:
        """Shown as the scorer of the run."""
        return f"token {self.token}"

    def __call__(self, rollout: Rollout) -> Float[Tensor, "N"]:
        return torch.tensor([float(branch.count(self.token)) for tree in rollout.trees for branch in tree.branches])


def most_frequent_token(prompts: Sequence[TokenTree], policy: Policy) -> int:
    """The token that occurs most often in these prompts, special tokens left out."""
    special = {*policy.tokenizer.all_special_ids, *policy.end_ids}
    counts = Counter(token for tree in prompts for token in tree.prompt if token not in special)
    return counts.most_common(1)[0][0]


class REINFORCE(Method):
    """Measured by the score of fresh samples for held-out prompts, with the KL to the start model beside it.

    The score is that of `evaluation.scorer`; without one it is the reward that trains, and the verdict says so.
    """

    name = "reinforce"
    Config = ReinforceRun
    usual_lr = (1e-6, 1e-5, 3e-4)
    shown = ("score", "kl", "length", "ended")

    def __init__(
        self,
        config: ReinforceRun,
        *,
        sampler: Sampler | None = None,
        reward: Scorer | None = None,
        scorer: Scorer | None = None,
        judges: Sequence[Scorer] | None = None,
    ) -> None:
        self.config = config
        self.purpose: Purpose = "prompts"
        self.model: Policy = Policy.from_config(config.model, config.seed)
        reference = reference_for(self.model, config.reference)
        self.start: ReferenceModel = reference if config.reference.is_start else self.model.frozen_copy()
        self.objective: PolicyGradientObjective = PolicyGradientObjective.of(config, reference)
        if config.control == "target-token":
            reward = TargetToken(most_frequent_token(self.prepare(self.model.tokenizer).train, self.model))
        reward = reward or Mixture.find(config.reward or ("gold",), config.reward_weights, self._run_options(config))
        random = config.control == "random-reward"
        self.reward_name = config.control if random else reward.name
        self.rollouts = Rollouts(self.model, reward, config, sampler, random)
        self.scorer_name = config.evaluation.scorer or reward.name
        if scorer is None and not config.evaluation.scorer:
            scorer = reward
        self.samples: policies.SampleEvaluation = policies.SampleEvaluation.of(
            self.model, self.start, config, sampler, scorer, judges
        )
        self.metric = config.evaluation.metric or "score"
        self.prompts: list[TokenTree] = []

    def _run_options(self, config: ReinforceRun) -> RunOptions:
        """What rewards may need of this run."""
        fixed = config.kl.beta > 0 and config.kl.target is None and config.normalise == "none"
        return RunOptions(
            kappa=1 / config.kl.beta if fixed else None,
            responses=StartResponses(self.start, self.model, config),
            processes=config.reward_processes,
            timeout=config.reward_timeout,
        )

    @property
    def token_budget(self) -> int:
        """Packed tokens of one forward pass."""
        return self.config.token_budget or self.model.token_budget

    def prepare(self, tokenizer: Tokenizer) -> Prepared:
        data = prepare_prompts(self.config.data, tokenizer, prompt_range(self.config.prompt_tokens))
        self.prompts = bare_prompts(data.train, tokenizer)
        return data

    def batch(self, trees: Sequence[TokenTree], step: int) -> Rollout:
        return self.rollouts(bare_prompts(trees, self.model.tokenizer), step, self.prompts)

    def examples(self, trees: Sequence[TokenTree]) -> tuple[list[TokenTree], list[Check]]:
        """A first rollout, prompts whose samples differ in reward first, and what it must show before training."""
        rollout = self.batch(trees[: min(EXAMPLES, self.config.batch_size)], 0)
        self.rollouts.seconds.update(sampling=0.0, scoring=0.0)  # the receipt has the time of training alone
        scores = _scores(rollout)
        finished = [ended for branches in rollout.finished or [] for ended in branches]
        checks = [
            *identities.sampled_rollout(self.model, rollout),
            guards.first_rollout(scores if len(scores[0]) > 1 else [[row[0] for row in scores]], rollout.texts()),
        ]
        if finished and self.config.unfinished != "keep":
            checks.append(guards.first_cut(finished, self.config.max_new_tokens))
        examples = self.objective.examples(self.model, rollout, self.token_budget)
        rewards = torch.tensor([tree.sampled.rewards for tree in examples], dtype=torch.float64)
        checks.append(identities.advantages(self.config.baseline, rewards))
        signal = {id(tree): max(a.abs().max().item() for a in tree.sampled.advantages) for tree in examples}
        return sorted(examples, key=lambda tree: -signal[id(tree)]), checks

    def identities(self, trees: Sequence[TokenTree]) -> list[Check]:
        return identities.policy_identities(self.model.packed, self.start, trees, self.config.model.random)

    def step_checks(self, steps: Sequence[Mapping[str, Any]]) -> list[Check]:
        first_passes = [row for row in steps if (row["step"] - 1) % self.config.steps_per_rollout == 0]
        if first_passes[-1] is not steps[-1]:
            return []  # the samples are those of the step before, and the policy has moved since
        return guards.rollout_checks(first_passes, fixed_length=self.config.unfinished == "keep")

    def stop_reason(self, steps: Sequence[Mapping[str, Any]]) -> str | None:
        cap, kl = self.config.kl_cap, steps[-1].get("kl", 0.0)
        if cap is not None and kl > cap:
            return f"KL {kl:.4g} nats is above kl_cap {cap:g}"
        return guards.collapse(steps)

    def may_keep(self, values: Mapping[str, float]) -> bool:
        return self.config.kl_cap is None or values["kl"] <= self.config.kl_cap

    def exit_code(self, verdict: str, code: int) -> int:
        control = self.config.control
        if control is None or code == 4:
            return code
        return 0 if verdict in EXPECTED[control] else 3

    def facts(self, measured: Measurement, trees: Sequence[TokenTree]) -> dict[str, Any]:
        control = self.config.control
        facts: dict[str, Any] = {"rollout_seconds": dict(self.rollouts.seconds)}
        return facts if control is None else facts | {"control": control, "expected_verdicts": list(EXPECTED[control])}

    def measure(self, trees: Sequence[TokenTree]) -> Measurement:
        samples, rows = self.samples.measure(trees)
        return Measurement({"samples": samples}, rows)

    def measure_again(self, trees: Sequence[TokenTree]) -> Table | None:
        return self.samples.measure(trees, offset=1)[0] if self.config.evaluation.aa else None

    def verdict_groups(self, trees: Sequence[TokenTree]) -> int:
        return len(self.samples.prompts_of(trees))
