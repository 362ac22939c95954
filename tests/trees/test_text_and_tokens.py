"""Trees of text and of ids: JSON, equality, groups, and invalid values."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from treeward.errors import UserError
from treeward.trees.text import Response, Tree, normalised
from treeward.trees.tokens import TokenTree

TEXT = st.text(max_size=30)
MESSAGES = st.lists(st.fixed_dictionaries({"role": st.sampled_from(["user", "system"]), "content": TEXT}), min_size=1)
RESPONSES = st.builds(Response, TEXT, st.booleans(), st.none() | st.floats(allow_nan=False, allow_infinity=False))
TREES = st.builds(Tree, st.text(min_size=1, max_size=30) | MESSAGES, st.lists(RESPONSES, max_size=4), st.none() | TEXT)


@given(TREES)
def test_json_round_trip_gives_an_equal_tree(tree: Tree) -> None:
    again = Tree.from_json(tree.to_json())
    assert again == tree
    assert hash(again) == hash(tree)


def test_json_is_one_line_without_escaped_letters() -> None:
    line = Tree("Où ?\nLà", [" là"]).to_json()
    assert "\n" not in line
    assert "Où" in line
    assert json.loads(line) == {
        "prompt": "Où ?\nLà",
        "responses": [{"text": " là", "finished": True, "score": None, "grades": [], "ids": []}],
        "group": "où ? là",
        "subset": "",
        "weight": 1.0,
        "margin": None,
        "prompt_ids": [],
        "vocabulary": "",
        "attributes": [],
        "row": None,
    }


def test_strings_become_finished_responses() -> None:
    tree = Tree("p", [" a", Response(" b", finished=False, score=2.0)])
    assert tree.responses == (Response(" a", True, None), Response(" b", False, 2.0))


@pytest.mark.parametrize(
    "other",
    [
        Tree("p ", ["a"], "g"),
        Tree("p", ["b"], "g"),
        Tree("p", ["a"], "h"),
        Tree("p", [Response("a", finished=False)], "g"),
        Tree("p", [Response("a", score=1.0)], "g"),
        Tree([{"role": "user", "content": "p"}], ["a"], "g"),
    ],
)
def test_trees_that_differ_anywhere_are_not_equal(other: Tree) -> None:
    assert other != Tree("p", ["a"], "g")


def test_a_tree_is_frozen_and_copies_its_messages() -> None:
    message = {"role": "user", "content": "before"}
    tree = Tree([message])
    message["content"] = "after"
    assert tree.prompt == ({"role": "user", "content": "before"},)
    with pytest.raises(dataclasses.FrozenInstanceError):
        tree.group = "x"  # type: ignore[misc]


def test_the_group_is_the_normalised_prompt_unless_given() -> None:
    assert Tree("  The Film\n opens ").group == "the film opens"
    assert Tree([{"role": "User", "content": "Hi  THERE"}]).group == "user: hi there"
    assert Tree("p", group="").group == ""
    assert normalised("A\tB") == normalised("a b")


def test_roles_are_part_of_the_group() -> None:
    user = [{"role": "user", "content": "x"}]
    system = [{"role": "system", "content": "x"}]
    assert Tree(user).group != Tree(system).group


@pytest.mark.parametrize("prompt", ["", []])
def test_an_empty_prompt_needs_a_group(prompt: str | list[dict[str, str]]) -> None:
    with pytest.raises(UserError, match="prompt is empty"):
        Tree(prompt, ["a"])
    assert Tree(prompt, ["a"], group="row 1").group == "row 1"


def test_token_tree_refuses_an_empty_prompt() -> None:
    with pytest.raises(UserError, match="prompt has no tokens"):
        TokenTree((), ((1,),))


def test_token_tree_refuses_an_empty_branch_and_names_it() -> None:
    with pytest.raises(UserError, match="branch 1 of 'my group' has no tokens"):
        TokenTree((1,), ((2,), ()), "my group")


def test_token_tree_counts_its_prompt_once() -> None:
    tree = TokenTree((1, 2, 3), ((4,), (5, 6)))
    assert len(tree) == 6
    assert tree.longest_path == 5
    assert tree.rows() == [(1, 2, 3, 4), (1, 2, 3, 5, 6)]


def test_token_tree_without_branches_is_a_prompt() -> None:
    tree = TokenTree((1, 2), ())
    assert (len(tree), tree.longest_path, tree.rows()) == (2, 2, [])
