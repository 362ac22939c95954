"""Scorers: the embedded world's gold score, and trained reward models.

A scorer sees token trees of the policy's vocabulary. A reward model with the same vocabulary scores their ids as they
are; any other gets the text, rendered by its own tokenizer.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from treeward.data import world
from treeward.data.render import Tokenizer, decode
from treeward.models.reward_model import RewardModel
from treeward.trees.text import Response, Tree
from treeward.trees.tokens import TokenTree


@runtime_checkable
class Scorer(Protocol):
    """One raw score a branch, in order; higher is better."""

    @property
    def name(self) -> str: ...

    def __call__(self, trees: Sequence[TokenTree], tokenizer: Tokenizer) -> Float[Tensor, "N"]: ...


class Gold:
    """The embedded world's known score."""

    name = "gold"

    def __call__(self, trees: Sequence[TokenTree], tokenizer: Tokenizer) -> Float[Tensor, "N"]:
        pairs = [(decode(tree.prompt, tokenizer), decode(b, tokenizer)) for tree in trees for b in tree.branches]
        return torch.tensor([world.gold(prompt, response) for prompt, response in pairs])


class Judge:
    """A trained reward model."""

    def __init__(self, model: RewardModel, name: str) -> None:
        self.model = model
        self.name = name

    def __call__(self, trees: Sequence[TokenTree], tokenizer: Tokenizer) -> Float[Tensor, "N"]:
        if self.model.tokenizer.get_vocab() == tokenizer.get_vocab():
            return self.model.score(trees)
        return self.model.score([_as_text(tree, tokenizer) for tree in trees])


def find(name: str) -> Scorer:
    """The scorer of that name: "gold", or the directory of a reward model (or of the run that trained one).

    Raises:
        ValueError: there is no such scorer.
    """
    if name == "gold":
        return Gold()
    return Judge(RewardModel.load(name), name)


def _as_text(tree: TokenTree, tokenizer: Tokenizer) -> Tree:
    ended = set(tokenizer.all_special_ids)
    responses = [Response(decode(b, tokenizer), finished=b[-1] in ended) for b in tree.branches]
    return Tree(decode(tree.prompt, tokenizer), responses, group=tree.group)
