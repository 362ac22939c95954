"""Supervised fine-tuning: maximise the log-probability of each response given its prompt.

    loss = -(1 / tokens) * sum over responses, sum over tokens of log pi(y_t | prompt, y_<t)

The mean is over all scored tokens of the batch, end tokens included, however it is packed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from treeward.checks import identities
from treeward.checks.check import Check
from treeward.data.prepare import DataConfig
from treeward.evaluation import policies
from treeward.methods.method import Method, RunConfig
from treeward.models.policy import Policy, tokenized
from treeward.models.reference import ReferenceModel
from treeward.models.sampler import Sampler
from treeward.rewards.scorers import Scorer
from treeward.stats.tables import Measurement, Table
from treeward.training.loop import Result, Step, TrainingConfig, result_of, training_steps
from treeward.training.objectives import Terms, unit_weights
from treeward.trees.forest import Forest
from treeward.trees.forward import TreeModule
from treeward.trees.text import Tree
from treeward.trees.tokens import TokenTree


@dataclass(frozen=True, kw_only=True)
class SFTConfig(TrainingConfig):
    """Supervised fine-tuning."""

    lr: float = 5e-5
    """Peak learning rate: 1e-5 from 1B parameters, 5e-5 at 100M, 3e-3 under 20M or from random weights."""


@dataclass(frozen=True)
class TokenNLL:
    """-log pi of each scored token; a unit is a token."""

    def count(self, tree: TokenTree) -> int:
        return sum(map(len, tree.branches))

    def __call__(self, model: TreeModule, forest: Forest) -> Terms:
        return Terms(-model(forest), {}, unit_weights(forest.sources, self.count, model.device))


def sft_steps(policy: Policy, trees: Sequence[Tree | TokenTree], config: SFTConfig | None = None) -> Iterator[Step]:
    """Fine-tune `policy` in place on every response of `trees`; yields each step after it was taken.

    Raises:
        NonFinite: a loss or gradient is not finite.
        UserError: there are no trees, or a path is longer than the model's positions.
    """
    yield from training_steps(policy, tokenized(trees, policy.tokenizer), TokenNLL(), config or SFTConfig())


def sft(policy: Policy, trees: Sequence[Tree | TokenTree], config: SFTConfig | None = None) -> Result:
    """Fine-tune `policy` in place: all steps of `sft_steps`."""
    return result_of(sft_steps(policy, trees, config))


@dataclass(frozen=True, kw_only=True)
class SFTRun(SFTConfig, RunConfig):
    """treeward sft: supervised fine-tuning."""

    data: DataConfig = field(default_factory=lambda: DataConfig(source="world-texts"))
    """The data."""


class SFT(Method):
    """Measured by held-out NLL per token, and by fresh samples; with a scorer their score may be the metric."""

    name = "sft"
    Config = SFTRun
    usual_lr = (1e-5, 5e-5, 3e-3)
    purpose = "sft"

    def __init__(
        self,
        config: SFTRun,
        *,
        sampler: Sampler | None = None,
        scorer: Scorer | None = None,
        judges: Sequence[Scorer] | None = None,
    ) -> None:
        self.config = config
        self.model: Policy = Policy.from_config(config.model, config.seed)
        self.start: ReferenceModel = self.model.frozen_copy()
        self.objective = TokenNLL()
        self.samples: policies.SampleEvaluation = policies.SampleEvaluation.of(
            self.model, self.start, config, sampler, scorer, judges
        )
        self.metric = config.evaluation.metric or "nll"

    def identities(self, trees: Sequence[TokenTree]) -> list[Check]:
        return identities.policy_identities(self.model.packed, self.start, trees, self.config.model.random)

    def measure(self, trees: Sequence[TokenTree]) -> Measurement:
        samples, rows = self.samples.measure(trees)
        return Measurement({"texts": policies.likelihood(self.model, trees), "samples": samples}, rows)

    def measure_again(self, trees: Sequence[TokenTree]) -> Table | None:
        return self.samples.measure(trees, offset=1)[0] if self.config.evaluation.aa else None

    def verdict_groups(self, trees: Sequence[TokenTree]) -> int:
        return super().verdict_groups(trees) if self.metric == "nll" else len(self.samples.prompts_of(trees))
