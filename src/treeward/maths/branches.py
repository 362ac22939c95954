"""What a reward loss may see of a forest: the outputs of its branches, tree by tree, and the raters' numbers.

Letters: G trees, N branches, P pairs, W outputs a branch, A attributes, B score bins.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from treeward.maths.scores import AnyHead, Scalar


@dataclass(frozen=True)
class Branches:
    """All that a reward loss may see of a forest. Branches stand tree by tree, in a pair the chosen one first.

    `ratings` are the raters' numbers on their own scale, one column an attribute, NaN in the rows of a tree without.
    `margins` are those that trees bring with them, NaN where one brings none. None: no tree has any.
    """

    outputs: Float[Tensor, "N W"]
    head: AnyHead
    tree: Int[Tensor, "N"]
    ratings: Float[Tensor, "N A"] | None = None
    margins: Float[Tensor, "G"] | None = None

    @property
    def trees(self) -> int:
        """G."""
        return int(self.tree[-1]) + 1 if len(self.tree) else 0

    def scores(self) -> Float[Tensor, "N"]:
        """The head's scalar, or its mean score."""
        return self.head.scores(self.outputs)

    def log_probs(self) -> Float[Tensor, "N A B"]:
        """The head's distributions; a scalar head has none."""
        assert not isinstance(self.head, Scalar), "a scalar head has no distribution"
        return self.head.log_probs(self.outputs)

    def pair(self, values: Float[Tensor, "N *d"]) -> tuple[Float[Tensor, "P *d"], Float[Tensor, "P *d"]]:
        """Values of chosen and of rejected, where every tree is a pair."""
        assert len(values) == 2 * self.trees, "every tree is a pair"
        return values[0::2], values[1::2]

    def grades(self) -> Float[Tensor, "N"]:
        """The mean rating of each branch, NaN where its tree has none."""
        if self.ratings is None:
            return torch.full_like(self.tree, torch.nan, dtype=torch.float32)
        return self.ratings.mean(1)

    def order(self) -> Float[Tensor, "N"]:
        """What ranks the branches of a tree, higher is better: mean rating, in a tree without ratings their order."""
        grades = self.grades()
        return torch.where(grades.isnan(), -torch.arange(len(grades), device=grades.device).to(grades.dtype), grades)

    def only_pairs(self) -> "Branches":
        """The trees with two branches alone, without what was said of them."""
        rows = torch.bincount(self.tree, minlength=self.trees)[self.tree] == 2
        tree = torch.arange(int(rows.sum()) // 2, device=self.tree.device).repeat_interleave(2)
        return Branches(self.outputs[rows], self.head, tree)

    def tree_mean(self, values: Float[Tensor, "N"]) -> Float[Tensor, "G"]:
        """The mean of a tree's branches."""
        return self.tree_sum(values) / torch.bincount(self.tree, minlength=self.trees)

    def tree_sum(self, values: Float[Tensor, "N"]) -> Float[Tensor, "G"]:
        """The sum over a tree's branches."""
        return values.new_zeros(self.trees).index_add(0, self.tree, values)
