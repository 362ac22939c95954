"""A reference model whose log-probabilities are written out, passed to objectives in tests."""

from collections.abc import Sequence

import torch

from treeward.models.policy import Policy, summed_logps
from treeward.models.reference import Logps, ReferenceModel
from treeward.trees.tokens import TokenTree
from treeward.trees.verify import verify


class FixedReference(ReferenceModel):
    """Has these log-probabilities of each tree's branches, whatever its weights."""

    def __init__(self, policy: Policy, logps: Logps) -> None:
        super().__init__(policy.frozen_copy().packed, policy)
        self.logps = logps

    @classmethod
    def at(cls, policy: Policy, trees: Sequence[TokenTree], *log_ratios: Sequence[float]) -> "FixedReference":
        """The reference to which the policy has these log-ratios."""
        verify(policy.packed, trees)
        logps = [summed_logps(policy.packed, [tree], 1000) for tree in trees]
        return cls(policy, {t: a - torch.tensor(x).float() for t, a, x in zip(trees, logps, log_ratios, strict=True)})

    def compute_logps(self, trees: Sequence[TokenTree], token_budget: int) -> Logps:
        return {tree: self.logps[tree] for tree in trees}
