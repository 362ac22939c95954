"""Types of the shared fixtures, for annotations in tests."""

from typing import TYPE_CHECKING, Any, Protocol

import torch

if TYPE_CHECKING:
    from treeward.models.policy import Policy
    from treeward.trees.tokens import TokenTree


class BuildModel(Protocol):
    """Builds a tiny transformers model of a family with random weights, in eval mode; equal for equal seeds."""

    def __call__(
        self, family: str, seed: int = 0, attention: str = "sdpa", scorer: bool = False, **changes: Any
    ) -> Any: ...


class PlainLogps(Protocol):
    """The log-probability of each response token of a tree, one unpadded row for each branch, without a mask."""

    def __call__(self, model: Any, tree: "TokenTree") -> torch.Tensor: ...


class Grow(Protocol):
    """Draws token trees without special ids."""

    def __call__(self, count: int, branches: int = 2, seed: int = 0, longest: int = 12) -> "list[TokenTree]": ...


class BuildPolicy(Protocol):
    """Builds a fresh tiny policy."""

    def __call__(self, family: str = "llama", **changes: Any) -> "Policy": ...
