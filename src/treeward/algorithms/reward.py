"""Reward-model training on pairs: the Bradley-Terry likelihood of the chosen response.

The formula is `maths.reward.BradleyTerry`. The loss without margin and centring is logged beside it as `nll`: only
that one compares models.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from treeward.algorithms.loop import LoopConfig, Step, Terms, fit
from treeward.maths.reward import BradleyTerry, pair_nll
from treeward.models.policy import tokenised
from treeward.models.reward_model import RewardModel
from treeward.trees.forest import Forest
from treeward.trees.forward import TreeScorer
from treeward.trees.text import Tree
from treeward.trees.tokens import TokenTree


@dataclass(frozen=True, kw_only=True)
class RewardConfig(LoopConfig):
    """Reward-model training."""

    lr: float = 5e-5
    """Peak learning rate: 1e-5 from 1B parameters, 5e-5 at 100M, up to 3e-3 under 20M or from random weights."""
    loss: BradleyTerry = field(default_factory=BradleyTerry)
    """The pair loss."""


@dataclass(frozen=True)
class PairRanking:
    """The pair loss over forests of two-branch trees: first branch chosen, second rejected."""

    model: TreeScorer
    loss: BradleyTerry

    def count(self, tree: TokenTree) -> int:
        assert len(tree.branches) == 2, "a pair has two branches"
        return 1

    def __call__(self, forest: Forest) -> Terms:
        scores = self.model(forest)
        chosen, rejected = scores[0::2], scores[1::2]
        gap = torch.tensor([tree.gap for tree in forest.sources], device=scores.device)
        right = (chosen > rejected).float() + 0.5 * (chosen == rejected).float()
        metrics = {
            "nll": pair_nll(chosen, rejected), "rewards/accuracies": right, "rewards/margins": chosen - rejected,
            "rewards/chosen": chosen, "rewards/rejected": rejected,
        }  # fmt: skip
        return Terms(self.loss(chosen, rejected, gap), metrics)


def reward(
    model: RewardModel, trees: Sequence[Tree | TokenTree], config: RewardConfig | None = None,
    resume: Path | None = None,
) -> Iterator[Step]:  # fmt: skip
    """Train `model` in place on pairs (chosen first, rejected second); yields a `Step` after each optimiser step.

    Raises:
        NonFinite: a loss or gradient is not finite.
        ValueError: there are no trees, a path is too long, or `resume` belongs to another run.
    """
    config = config or RewardConfig()
    planted = tokenised(trees, model.tokenizer)
    yield from fit(model.tree, planted, PairRanking(model.tree, config.loss), config, model.token_budget, resume)
