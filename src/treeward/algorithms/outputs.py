"""A forest's outputs, one row a branch, with what the losses must know of each branch."""

import torch
from jaxtyping import Float
from torch import Tensor

from treeward.maths.branches import Branches
from treeward.maths.scores import AnyHead
from treeward.trees.forest import Forest


def branches(forest: Forest, outputs: Float[Tensor, "N W"], head: AnyHead) -> Branches:
    """A forest's outputs with the tree and the ratings of each branch."""
    trees = forest.sources
    tree = torch.tensor([number for number, each in enumerate(trees) for _ in each.branches])
    rated = all(each.ratings for each in trees)
    ratings = torch.tensor([rating for each in trees for rating in each.ratings]) if rated else None
    return Branches(outputs, head, tree.to(outputs.device), None if ratings is None else ratings.to(outputs.device))
