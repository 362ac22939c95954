"""Rules as scorers: `length`, the tokens of a response, and `count:WORD`, how often a word stands in it.

They show what a policy can gain without getting better, and are the plainest reward for a fault to be planted with.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from treeward.errors import UserError
from treeward.rewards import texts
from treeward.trees.tokens import Tokenizer, TokenTree

COUNT = "count:"


class Length:
    """The number of scored tokens, the end token with them."""

    name = "length"

    def __call__(self, trees: Sequence[TokenTree], tokenizer: Tokenizer) -> Float[Tensor, "N"]:
        return torch.tensor([float(len(branch)) for tree in trees for branch in tree.branches])


@dataclass(frozen=True)
class Count:
    """How often a word stands in the response, whole and in any case."""

    word: str

    def __post_init__(self) -> None:
        if not self.word.strip():
            raise UserError(f"scorer {self.name!r} names no word; write count:WORD, such as count:good")

    @property
    def name(self) -> str:
        """As it is asked for."""
        return COUNT + self.word

    def __call__(self, trees: Sequence[TokenTree], tokenizer: Tokenizer) -> Float[Tensor, "N"]:
        word = re.compile(rf"(?<!\w){re.escape(self.word)}(?!\w)", re.IGNORECASE)
        return torch.tensor([float(len(word.findall(response))) for _, response in texts.pairs(trees, tokenizer)])
