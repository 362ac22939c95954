"""Many trees rendered at a time: one tokenizer call for a chunk of texts, the same ids as one call a text.

A call has a cost of its own, and a fast tokenizer may spread a chunk over the cores. The ids are made by
`data.render.token_tree` as ever: it is given a tokenizer that has read the chunk ahead.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

from treeward.data.render import Account, templated, token_tree
from treeward.trees.text import Tree
from treeward.trees.tokens import Tokenizer, TokenTree

CHUNK = 512
"""Trees a call: memory is bounded by one chunk's ids."""


class Ids(NamedTuple):
    """What a tokenizer call gives, as far as rendering looks at it."""

    input_ids: list[int]


class Ahead:
    """A tokenizer that has read some trees ahead. What it has not read, and all else, it asks the tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._probes: dict[str, Any] = {}
        self._dialogues: dict[str, str] = {}
        self._ids: dict[str, list[int]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __call__(self, text: str, **named: Any) -> Any:
        if named == {"add_special_tokens": False} and text in self._ids:
            return Ids(self._ids[text])
        if named:
            return self._tokenizer(text, **named)
        if text not in self._probes:
            self._probes[text] = self._tokenizer(text)
        return self._probes[text]

    def apply_chat_template(self, spoken: Any, **named: Any) -> Any:
        """The template's text, rendered once for a chunk."""
        found = self._dialogues.get(repr(spoken)) if named == _PROMPT else None
        return self._tokenizer.apply_chat_template(spoken, **named) if found is None else found

    def read(self, trees: Sequence[Tree]) -> None:
        """Read these trees, and forget the ones before."""
        self._dialogues = {
            repr(spoken): templated(self._tokenizer, spoken, add_generation_prompt=True)
            for spoken in (list(tree.prompt) for tree in trees if isinstance(tree.prompt, tuple))
            if self._tokenizer.chat_template
        }
        prompts = [tree.prompt for tree in trees if isinstance(tree.prompt, str)]
        responses = [response.text for tree in trees for response in tree.responses]
        texts = list(dict.fromkeys([*prompts, *self._dialogues.values(), *responses]))
        found = self._tokenizer(texts, add_special_tokens=False).input_ids if texts else []
        self._ids = dict(zip(texts, found, strict=True))


_PROMPT = {"tokenize": False, "add_generation_prompt": True}


def token_trees(
    trees: Iterable[Tree],
    tokenizer: Tokenizer,
    max_prompt: int | None = None,
    max_response: int | None = None,
    account: Account | None = None,
) -> Iterator[TokenTree]:
    """`token_tree` of each, in order, a chunk at a time.

    Raises:
        UserError: as `token_tree`.
    """
    ahead = Ahead(tokenizer)
    rest = iter(trees)
    while chunk := list(islice(rest, CHUNK)):
        ahead.read(chunk)
        for tree in chunk:
            yield token_tree(tree, ahead, max_prompt, max_response, account)
    ahead.read(())
