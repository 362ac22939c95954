"""Batched rendering gives the ids of one tree at a time, in few calls."""

from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from treeward.data import batched, world
from treeward.data.batched import token_trees
from treeward.data.render import Account, token_tree
from treeward.trees.text import Response, Tree

TEMPLATE = (
    "{% for m in messages %}{{ 'w3 ' + m['content'] + ' <eos> ' }}{% endfor %}"
    "{% if add_generation_prompt %}w4{% endif %}"
)


@pytest.fixture
def chatting(tiny_tokenizer: Any) -> Any:
    return PreTrainedTokenizerFast(
        tokenizer_object=tiny_tokenizer.backend_tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>",
        chat_template=TEMPLATE,
    )  # fmt: skip


def forest(count: int) -> list[Tree]:
    spoken = [{"role": "user", "content": "w5 w6"}]
    every = [
        [Tree(f"w{3 + n % 50} w7", [f"w8 w{3 + n % 60}", Response("w9 w10", finished=False)]),
         Tree([*spoken, {"role": "user", "content": f"w{3 + n % 40}"}], ["w11 w12", ""]),
         Tree("", ["w13"], group=str(n))]
        for n in range(count)
    ]  # fmt: skip
    return [tree for trees in every for tree in trees]


def test_batched_equals_one_at_a_time(chatting: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batched, "CHUNK", 7)
    trees = forest(20)
    one, many = Account(), Account()
    assert list(token_trees(trees, chatting, 3, 2, many)) == [token_tree(t, chatting, 3, 2, one) for t in trees]
    assert one == many


def test_a_tokenizer_that_opens_with_bos() -> None:
    trees = [Tree(row["prompt"], [row["chosen"], row["rejected"]]) for row in world.pairs(0, 30)]
    tokenizer = world.tokenizer()
    assert list(token_trees(trees, tokenizer)) == [token_tree(tree, tokenizer) for tree in trees]


def test_a_chunk_costs_a_few_calls(chatting: Any) -> None:
    calls = []

    class Counting:
        def __getattr__(self, name: str) -> Any:
            return getattr(chatting, name)

        def __call__(self, *texts: Any, **named: Any) -> Any:
            calls.append(texts)
            return chatting(*texts, **named)

    assert len(list(token_trees(forest(150), Counting()))) == 450
    assert len(calls) <= 5


def test_messages_without_a_template_are_refused(tiny_tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="no chat template"):
        list(token_trees(forest(1), tiny_tokenizer))
