"""Sampled data keeps its ids for the tokenizer that they mean, and falls back to text for any other."""

from collections import Counter
from typing import Any

import pytest

from treeward.data import formats, world
from treeward.data.render import token_tree, vocabulary_hash
from treeward.data.shapes import shaped
from treeward.trees.text import Tree

TOKENIZER = world.tokenizer()
OWN = vocabulary_hash(TOKENIZER)
ODD = [5, 0, 6, 7]
"""Ids that no tokenizer call gives for their text, `. : a`."""


def pair(**changes: Any) -> dict[str, Any]:
    return {
        "prompt": "the plot is", "chosen": ". : a", "rejected": "acting", "prompt_ids": [1, 9, 9],
        "chosen_ids": [*ODD, 2], "rejected_ids": [8], "chosen_finished": True, "rejected_finished": False,
        "vocabulary": OWN,
    } | changes  # fmt: skip


def test_the_sampled_ids_stand() -> None:
    (tree,) = formats.preference(pair())
    found = token_tree(tree, TOKENIZER)
    assert found.prompt == (1, 9, 9)
    assert found.branches == ((5, 0, 6, 7, 2), (8,))


@pytest.mark.parametrize("changes", [{"vocabulary": "another"}, {"vocabulary": None}])
def test_another_vocabulary_reads_the_text(changes: dict[str, Any]) -> None:
    (tree,) = formats.preference(pair(**changes))
    found = token_tree(tree, TOKENIZER)
    assert found == token_tree(
        formats.preference(pair(chosen_ids=None, rejected_ids=None, prompt_ids=None))[0], TOKENIZER
    )
    assert found.branches[0][-1] == 2
    assert found.branches[1][-1] != 2, "an unfinished sample gets no end token"


def test_a_ranking_keeps_its_ids_when_it_is_put_in_order() -> None:
    row = {"prompt": "the plot is", "responses": ["acting", "."], "scores": [0.0, 1.0], "vocabulary": OWN,
           "prompt_ids": [1, 9], "responses_ids": [[8, 2], [5]], "responses_finished": [True, False]}  # fmt: skip
    (tree,) = shaped(formats.graded(row), "ranked", Counter())
    found = token_tree(tree, TOKENIZER)
    assert found.branches == ((5,), (8, 2))
    assert found.prompt == (1, 9)


def test_the_prompt_alone_keeps_its_ids() -> None:
    (tree,) = formats.reader("preference", "prompts", "last")(pair())
    assert token_tree(tree, TOKENIZER).prompt == (1, 9, 9)
    assert tree.responses == ()


def test_text_that_was_edited_under_its_ids_is_refused() -> None:
    (tree,) = formats.preference(pair(chosen=". : an"))
    with pytest.raises(ValueError, match=r"reads '\. : an', but its sampled ids '\. : a': .*take its ids away"):
        token_tree(tree, TOKENIZER)


def test_a_long_sample_is_cut() -> None:
    (tree,) = formats.preference(pair())
    assert token_tree(tree, TOKENIZER, max_response=2).branches == ((5, 0), (8,))


def test_json_gives_an_equal_tree_back() -> None:
    (tree,) = formats.preference(pair())
    assert Tree.from_json(tree.to_json()) == tree
