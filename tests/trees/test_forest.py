"""Packing: the layout in a written-out example, and the properties of first-fit decreasing."""

import logging
from collections import Counter

import pytest
import torch
from growing import groves
from hypothesis import given
from hypothesis import strategies as st

from treeward.errors import UserError
from treeward.trees.forest import Forest, pack, pack_to_budget
from treeward.trees.tokens import TokenTree

ONE = TokenTree((10, 11), ((20, 21, 22), (30,)))
TWO = TokenTree((40,), ((50, 51),))


def sized(tokens: int, mark: int = 0) -> TokenTree:
    """A tree of this many tokens."""
    return TokenTree((mark,), ((1,) * (tokens - 1),))


def sizes(forests: list[Forest]) -> list[list[int]]:
    return [[len(tree) for tree in forest.sources] for forest in forests]


def test_the_layout_of_two_trees_written_out() -> None:
    forest = pack([ONE, TWO])
    assert forest.input_ids.tolist() == [10, 11, 20, 21, 22, 30, 40, 50, 51]
    assert forest.position_ids.tolist() == [0, 1, 2, 3, 4, 2, 0, 1, 2]
    assert forest.tree.tolist() == [0, 0, 0, 0, 0, 0, 1, 1, 1]
    assert forest.branch.tolist() == [-1, -1, 0, 0, 0, 1, -1, 2, 2]
    assert forest.predict_from.tolist() == [1, 2, 3, 1, 6, 7]
    assert forest.targets.tolist() == [20, 21, 22, 30, 50, 51]
    assert forest.scored_branch.tolist() == [0, 0, 0, 1, 2, 2]
    assert forest.ends.tolist() == [4, 5, 8]
    assert forest.sources == (ONE, TWO)
    assert forest.branches == 3


@given(groves())
def test_every_target_follows_the_token_that_predicts_it_on_its_path(trees: list[TokenTree]) -> None:
    forest = pack(trees)
    rows = [row for tree in trees for row in tree.rows()]
    starts = [len(tree.prompt) for tree in trees for _ in tree.branches]
    position = forest.position_ids[forest.predict_from]
    for branch, source, target, at in zip(
        forest.scored_branch.tolist(), forest.predict_from.tolist(), forest.targets.tolist(), position.tolist(),
        strict=True,
    ):  # fmt: skip
        assert rows[branch][at + 1] == target
        assert rows[branch][at] == forest.input_ids[source]
        assert at + 1 >= starts[branch]
    assert torch.bincount(forest.scored_branch).tolist() == [len(b) for tree in trees for b in tree.branches]
    assert forest.input_ids[forest.ends].tolist() == [row[-1] for row in rows]


def test_first_fit_decreasing_written_out() -> None:
    trees = [sized(n) for n in (2, 5, 4, 7, 3, 6, 8)]
    assert sizes(pack_to_budget(trees, 10)) == [[2, 8], [7, 3], [4, 6], [5]]


@given(groves(trees=12), st.integers(1, 600))
def test_forests_have_every_tree_once_within_the_budget_in_the_first_that_fits(
    trees: list[TokenTree], budget: int
) -> None:
    forests = pack_to_budget(trees, budget)
    packed = [tree for forest in forests for tree in forest.sources]
    assert Counter(map(id, packed)) == Counter(map(id, trees))
    bound = max(budget, *map(len, trees))
    room = [bound - len(forest.input_ids) for forest in forests]
    assert min(room) >= 0
    for late, forest in enumerate(forests):
        for early in range(late):
            assert all(len(tree) > room[early] for tree in forest.sources)


@given(groves(trees=8), st.integers(50, 600))
def test_a_forest_keeps_the_order_of_its_trees(trees: list[TokenTree], budget: int) -> None:
    place = {id(tree): n for n, tree in enumerate(trees)}
    for forest in pack_to_budget(trees, budget):
        order = [place[id(tree)] for tree in forest.sources]
        assert order == sorted(order)


def test_a_tree_above_the_budget_raises_it_and_is_logged_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("treeward.trees.forest._raised", set())
    with caplog.at_level(logging.INFO, logger="treeward"):
        forests = pack_to_budget([sized(3), sized(12), sized(9)], 10)
        pack_to_budget([sized(13)], 10)
    assert sizes(forests) == [[12], [3, 9]]
    assert [record.getMessage() for record in caplog.records] == [
        "token budget raised from 10 to 12: the largest tree has that many tokens"
    ]


def test_a_tree_as_large_as_the_budget_does_not_raise_it(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="treeward"):
        pack_to_budget([sized(10)], 10)
    assert caplog.records == []


def test_a_path_beyond_the_models_positions_is_refused_by_name() -> None:
    good = TokenTree((1, 2), ((3,),), "fine")
    bad = TokenTree((1, 2, 3), ((4,), (5, 6, 7, 8), (9,)), "the long one")
    assert len(pack_to_budget([good, bad], 100, positions=7)) == 1
    with pytest.raises(UserError, match=r"tree 1 \('the long one'\), branch 1: its path of 7 tokens .* 6 positions"):
        pack_to_budget([good, bad], 100, positions=6)


def test_many_branches_are_allowed_where_each_path_is_short() -> None:
    tree = TokenTree((1, 2), ((3,),) * 50)
    assert len(pack_to_budget([tree], 10, positions=3)[0].input_ids) == 52


@pytest.mark.parametrize("budget", [0, -5])
def test_a_budget_below_one_is_refused(budget: int) -> None:
    with pytest.raises(UserError, match=f"token_budget is {budget}"):
        pack_to_budget([ONE], budget)


def test_no_trees_make_no_forests() -> None:
    assert pack_to_budget([], 10) == []


def test_trees_without_branches_are_packed_as_prompts() -> None:
    forest = pack([TokenTree((1, 2), ()), TWO])
    assert forest.input_ids.tolist() == [1, 2, 40, 50, 51]
    assert forest.predict_from.tolist() == [2, 3]
    assert forest.branches == 1


def test_equal_trees_are_all_packed() -> None:
    assert sum(len(forest.sources) for forest in pack_to_budget([ONE, ONE, ONE], 12)) == 3


def test_moving_a_forest_keeps_everything() -> None:
    forest = pack([ONE, TWO])
    moved = forest.to("cpu")
    assert moved.sources == forest.sources
    assert moved.targets.tolist() == forest.targets.tolist()


def padded(forest: Forest) -> int:
    """Tokens of the padded rows that an encoder reads."""
    rows = [row for tree in forest.sources for row in tree.rows()]
    return len(rows) * max(map(len, rows))


def test_rows_are_packed_by_their_padded_size_written_out() -> None:
    """Paths of 8, 7, 3, 2, 2: two rows of 8 cost 16, three would cost 24. Counted in tokens all but one would fit."""
    trees = [sized(n) for n in (2, 8, 3, 7, 2)]
    assert sizes(pack_to_budget(trees, 20, layout="rows")) == [[8, 7], [2, 3, 2]]
    assert sizes(pack_to_budget(trees, 20)) == [[2, 8, 3, 7], [2]]


@given(groves(trees=12), st.integers(1, 900))
def test_padded_rows_stay_within_the_budget(trees: list[TokenTree], budget: int) -> None:
    trees = [tree for tree in trees if tree.branches]
    forests = pack_to_budget(trees, budget, layout="rows")
    assert Counter(id(t) for f in forests for t in f.sources) == Counter(map(id, trees))
    bound = max([budget, *(len(tree.branches) * tree.longest_path for tree in trees)])
    assert all(padded(forest) <= bound for forest in forests)
