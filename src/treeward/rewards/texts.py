"""What a scorer of text reads: prompt and response of every branch, in order."""

from collections.abc import Sequence

from treeward.errors import UserError
from treeward.trees.tokens import Tokenizer, TokenTree, decode


class BadScore(UserError):
    """A scorer failed, or gave something else than a finite number; the scorer and the response are named."""

    @classmethod
    def of(cls, scorer: str, value: object, row: int, text: str) -> "BadScore":
        """The error for a value that is no finite number; `row` counts responses from 1."""
        return cls(f"scorer {scorer!r} gave {value} for response {row}, {text[:60]!r}; it must give a finite number")


def pairs(trees: Sequence[TokenTree], tokenizer: Tokenizer) -> list[tuple[str, str]]:
    """(prompt, response) of every branch, special tokens left out."""
    prompts = [decode(tree.prompt, tokenizer) for tree in trees]
    return [(prompt, decode(b, tokenizer)) for tree, prompt in zip(trees, prompts, strict=True) for b in tree.branches]


def whole(trees: Sequence[TokenTree], tokenizer: Tokenizer) -> list[str]:
    """Prompt and response of every branch as one text, decoded together so that nothing between them is lost."""
    return [decode(tree.prompt + branch, tokenizer) for tree in trees for branch in tree.branches]
