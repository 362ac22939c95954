"""Supervised fine-tuning: maximise the log-probability of each response given its prompt.

    loss = -(1 / tokens) * sum over responses, sum over tokens of log pi(y_t | prompt, y_<t)

The mean is over all scored tokens of the batch, end tokens included, however it is packed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from treeward.models.policy import Policy, tokenised
from treeward.training.loop import LoopConfig, Step, Terms, fit, settings
from treeward.training.outputs import weights
from treeward.trees.forest import Forest
from treeward.trees.forward import TreeLM
from treeward.trees.text import Tree
from treeward.trees.tokens import TokenTree


@dataclass(frozen=True, kw_only=True)
class SFTConfig(LoopConfig):
    """Supervised fine-tuning."""

    lr: float = 5e-5
    """Peak learning rate: 1e-5 from 1B parameters, 5e-5 at 100M, 3e-3 under 20M or from random weights."""


@dataclass(frozen=True)
class TokenNLL:
    """-log pi of each scored token."""

    model: TreeLM

    def count(self, tree: TokenTree) -> int:
        return sum(map(len, tree.branches))

    def __call__(self, forest: Forest) -> Terms:
        return Terms(-self.model(forest), {}, weights(forest.sources, self.count, self.model.device))


def sft(
    policy: Policy, trees: Sequence[Tree | TokenTree], config: SFTConfig | None = None, resume: Path | None = None
) -> Iterator[Step]:
    """Fine-tune `policy` in place on every branch of `trees`; yields a `Step` after each optimiser step.

    Raises:
        NonFinite: a loss or gradient is not finite.
        UserError: there are no trees, a path is too long, or `resume` belongs to another run.
    """
    config = config or SFTConfig()
    token_trees = tokenised(trees, policy.tokenizer)
    decided = settings(config, SFTConfig)
    yield from fit(
        policy.packed, token_trees, TokenNLL(policy.packed), config, policy.token_budget, resume, decided=decided
    )
