"""The embedded world's known score."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from treeward.data import world
from treeward.rewards import texts
from treeward.trees.tokens import Tokenizer, TokenTree


class Gold:
    """The embedded world's known score."""

    name = "gold"

    def __call__(self, trees: Sequence[TokenTree], tokenizer: Tokenizer) -> Float[Tensor, "N"]:
        return torch.tensor([world.gold(prompt, response) for prompt, response in texts.pairs(trees, tokenizer)])
