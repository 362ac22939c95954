"""A trained reward model as a scorer.

One with the policy's vocabulary scores the ids as they are; any other gets the text, rendered by its own tokenizer. A
chat is plain text to it, since its turns cannot be told from ids. One that was trained on labelled texts, which have no
prompts, gets prompt and response as one whole text. Texts longer than the budgets that it was trained with are cut as
they were in training.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace

from jaxtyping import Float
from torch import Tensor

from treeward.data.render import opening_id
from treeward.models.reward_model import RewardModel
from treeward.rewards import texts
from treeward.trees.text import Response, Tree
from treeward.trees.tokens import Tokenizer, TokenTree, decode

log = logging.getLogger(__name__)


class Judge:
    """A trained reward model."""

    def __init__(self, model: RewardModel, name: str) -> None:
        self.model = model
        self.name = name
        self._warned = False
        self.cut = 0
        """Trees with a text that was longer than in training."""

    def __call__(self, trees: Sequence[TokenTree], tokenizer: Tokenizer) -> Float[Tensor, "N"]:
        if self.model.reads_whole:
            return self.model.score([Tree("", [text], group=text) for text in texts.whole(trees, tokenizer)])
        if self.model.tokenizer.get_vocab() == tokenizer.get_vocab():
            return self.model.score([self._within(tree) for tree in trees])
        if not self._warned and any(_is_chat(tree, tokenizer) for tree in trees):
            self._warned = True
            log.warning("scorer %r has another vocabulary and reads these chats as plain text, without its template",
                        self.name)  # fmt: skip
        return self.model.score([_as_text(tree, tokenizer) for tree in trees])

    def _within(self, tree: TokenTree) -> TokenTree:
        """The tree at the budgets of the model's training: prompts cut on the left, responses on the right."""
        budgets = self.model.budgets
        if budgets is None:
            return tree
        prompt, branches = tree.prompt, tuple(branch[: budgets.max_response] for branch in tree.branches)
        if len(prompt) > budgets.max_prompt:
            opens = prompt[0] == opening_id(self.model.tokenizer) and budgets.max_prompt > 1
            prompt = (prompt[0], *prompt[1 - budgets.max_prompt :]) if opens else prompt[-budgets.max_prompt :]
        if (prompt, branches) != (tree.prompt, tree.branches):
            if not self.cut:
                log.warning("scorer %r was trained with prompts of %d and responses of %d tokens; longer ones are cut",
                            self.name, budgets.max_prompt, budgets.max_response)  # fmt: skip
            self.cut += 1
        return replace(tree, prompt=prompt, branches=branches)


def _is_chat(tree: TokenTree, tokenizer: Tokenizer) -> bool:
    """Whether special tokens stand within the prompt, as a chat template puts them."""
    return not set(tokenizer.all_special_ids).isdisjoint(tree.prompt[1:])


def _as_text(tree: TokenTree, tokenizer: Tokenizer) -> Tree:
    ended = set(tokenizer.all_special_ids)
    responses = [Response(decode(b, tokenizer), finished=b[-1] in ended) for b in tree.branches]
    return Tree(decode(tree.prompt, tokenizer), responses, group=tree.group)
