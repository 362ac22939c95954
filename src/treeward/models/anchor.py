"""The anchor: the model that log-ratios and KL are measured against, at any moment.

A frozen copy of the policy as it was loaded or, with adapters, the same weights with the adapter switched off: in both
cases what the policy was before the first step, bit for bit.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from treeward.maths.logprobs import sum_by_branch
from treeward.models.policy import Policy
from treeward.models.weights import fingerprint
from treeward.trees.forest import Forest
from treeward.trees.forward import TreeLM
from treeward.trees.tokens import TokenTree
from treeward.trees.verify import verified


class Anchor:
    """A frozen reference. `hash` fingerprints its weights (None with adapters: the base weights cannot train)."""

    def __init__(self, tree: TreeLM, policy: Policy, adapter: Any | None = None) -> None:
        self.tree = tree
        self._policy = policy
        self._adapter = adapter
        self.hash = fingerprint(tree) if adapter is None else None

    @classmethod
    def of(cls, policy: Policy) -> "Anchor":
        """The policy as it stands: a frozen copy, or its base weights where it has an adapter.

        Raises:
            ValueError: the policy has an adapter and a base weight is trainable, so that the base would move.
        """
        if policy.adapter is None:
            return cls(copy.deepcopy(policy.tree).requires_grad_(False).eval(), policy)
        moving = [n for n, p in policy.tree.named_parameters() if p.requires_grad and "lora_" not in n]
        if moving:
            raise ValueError(f"the anchor is the policy with its adapter off, but {moving[0]!r} trains as well")
        return cls(policy.tree, policy, policy.adapter)

    def verified(self, trees: Sequence[TokenTree]) -> None:
        """Verify the layout for these trees, unless that has been done for the policy it was taken from."""
        verified(self._policy.tree, trees)

    @contextmanager
    def model(self) -> Iterator[TreeLM]:
        """The anchor's forward pass, without gradients, in the layout that was verified for the policy."""
        self.tree.backend, self.tree.verified_path = self._policy.tree.backend, self._policy.tree.verified_path
        off: AbstractContextManager[Any] = nullcontext() if self._adapter is None else self._adapter.disable_adapter()
        with torch.no_grad(), off:
            yield self.tree

    def branch_logps(self, trees: Sequence[TokenTree], token_budget: int) -> dict[TokenTree, Float[Tensor, "N"]]:
        """log anchor(response | prompt) of each tree's branches; they cannot change, so they are computed once."""
        found: dict[TokenTree, Tensor] = {}
        self.verified(trees)
        with self.model() as tree:
            for forest in tree.packed(list(dict.fromkeys(trees)), token_budget):
                found |= split_by_tree(forest, tree(forest))
        return found


def split_by_tree(forest: Forest, logps: Float[Tensor, "S"]) -> dict[TokenTree, Float[Tensor, "N"]]:
    """Sums over each branch, by tree, on the CPU."""
    sums = sum_by_branch(logps.cpu(), forest.scored_branch, forest.branches)
    parts = torch.split(sums, [len(tree.branches) for tree in forest.sources])
    return dict(zip(forest.sources, parts, strict=True))
