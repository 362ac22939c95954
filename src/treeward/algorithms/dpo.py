"""Direct preference optimisation: a loss on the log-ratios of the two responses of a pair.

    x = log pi(y | prompt) - log anchor(y | prompt)        summed over response tokens, end token included

The loss is any member of `maths.preference.AnyPreferenceLoss`. The anchor is the policy as it was before the first
step; its log-probabilities cannot change, so they are computed once, before it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from treeward.algorithms.loop import LoopConfig, Step, Terms, fit, reached
from treeward.maths.logprobs import branch_lengths, sum_by_branch
from treeward.maths.preference import AnyPreferenceLoss, PairScores, PreferenceLoss, Sigmoid
from treeward.models.anchor import Anchor
from treeward.models.policy import Policy, tokenised
from treeward.trees.forest import Forest
from treeward.trees.forward import TreeLM
from treeward.trees.text import Tree
from treeward.trees.tokens import TokenTree
from treeward.trees.verify import verified


@dataclass(frozen=True, kw_only=True)
class DPOConfig(LoopConfig):
    """Direct preference optimisation."""

    lr: float = 1e-6
    """Peak learning rate: 1e-6 from 1B parameters, 1e-5 at 100M, up to 3e-4 under 20M or from random weights."""
    loss: AnyPreferenceLoss = field(default_factory=Sigmoid)
    """The preference loss."""


@dataclass(frozen=True)
class PairPreference:
    """A preference loss over forests of two-branch trees; `anchor` maps each tree to its branches' log-probs."""

    model: TreeLM
    loss: PreferenceLoss
    anchor: Mapping[TokenTree, Float[Tensor, "N"]]

    def count(self, tree: TokenTree) -> int:
        assert len(tree.branches) == 2, "a pair has two branches"
        return 1

    def scores(self, forest: Forest) -> PairScores:
        """Log-ratios, lengths and the policy's own sums of every pair of the forest."""
        scored_branch = forest.scored_branch.to(self.model.device)
        logps = sum_by_branch(self.model(forest), scored_branch, forest.branches)
        ratios = logps - torch.cat([self.anchor[tree] for tree in forest.sources]).to(logps.device)
        lengths = branch_lengths(scored_branch, forest.branches)
        return PairScores(ratios[0::2], ratios[1::2], lengths[0::2], lengths[1::2], logps[0::2], logps[1::2])

    def __call__(self, forest: Forest) -> Terms:
        scores = self.scores(forest)
        assert scores.chosen_logp is not None
        assert scores.rejected_logp is not None
        beta = self.loss.beta if hasattr(self.loss, "beta") else 1.0
        margin = scores.chosen - scores.rejected
        metrics = {
            "rewards/chosen": beta * scores.chosen, "rewards/rejected": beta * scores.rejected,
            "rewards/margins": beta * margin,
            "rewards/accuracies": (margin > 0).float() + 0.5 * (margin == 0).float(),
            "logps/chosen": scores.chosen_logp, "logps/rejected": scores.rejected_logp,
        }  # fmt: skip
        return Terms(self.loss(scores), metrics)


def dpo(
    policy: Policy, trees: Sequence[Tree | TokenTree], config: DPOConfig | None = None, anchor: Anchor | None = None,
    resume: Path | None = None,
) -> Iterator[Step]:  # fmt: skip
    """Train `policy` in place on pairs (chosen first, rejected second); yields a `Step` after each optimiser step.

    `anchor` is the policy as it stands unless another is given.

    Raises:
        NonFinite: a loss or gradient is not finite.
        ValueError: there are no trees, a path is too long, or `resume` belongs to another run.
    """
    config = config or DPOConfig()
    planted = tokenised(trees, policy.tokenizer)
    verified(policy.tree, planted)
    anchor = anchor or Anchor.of(policy)
    budget = config.token_budget or policy.token_budget
    known = anchor.branch_logps(reached(config, planted), budget)
    yield from fit(policy.tree, planted, PairPreference(policy.tree, config.loss, known), config, budget, resume)
