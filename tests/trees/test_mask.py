"""Who sees whom, against a hand-written picture and the plain definition; and the slices of trees."""

import torch
from growing import groves, may_see, tokens_of
from hypothesis import given
from hypothesis import strategies as st

from treeward.trees.attention import SLICE, mask, slices
from treeward.trees.forest import pack, pack_to_budget
from treeward.trees.tokens import TokenTree

PICTURE = """
x . . . . . . .
x x . . . . . .
x x x . . . . .
x x x x . . . .
x x . . x . . .
. . . . . x . .
. . . . . x x .
. . . . . x x x
"""
"""Two trees: a prompt of two with branches of two and one; a prompt of one with a branch of two."""


def test_the_mask_of_a_hand_written_example() -> None:
    seen = mask(pack([TokenTree((1, 2), ((3, 4), (5,))), TokenTree((6,), ((7, 8),))]))
    assert seen.shape == (1, 1, 8, 8)
    drawn = "\n".join(" ".join("x" if cell else "." for cell in row) for row in seen[0, 0].tolist())
    assert drawn == PICTURE.strip()


@given(groves(longest=8, branches=4))
def test_the_mask_is_its_definition(trees: list[TokenTree]) -> None:
    tokens = tokens_of(trees)
    expected = [[may_see(row, column) for column in tokens] for row in tokens]
    assert mask(pack(trees))[0, 0].tolist() == expected


@given(groves(longest=8, branches=4))
def test_every_token_sees_exactly_its_path(trees: list[TokenTree]) -> None:
    forest = pack(trees)
    assert mask(forest)[0, 0].sum(1).tolist() == (forest.position_ids + 1).tolist()


@given(st.lists(st.integers(1, 400), min_size=1, max_size=20))
def test_slices_cover_all_tokens_in_order_and_split_no_tree(lengths: list[int]) -> None:
    found = slices(lengths)
    edges = [0, *torch.tensor(lengths).cumsum(0).tolist()]
    assert [start for start, _ in found] == [0, *(end for _, end in found[:-1])]
    assert found[-1][1] == edges[-1]
    for start, end in found:
        assert start < end
        assert start in edges
        assert end in edges
        assert end - start <= SLICE or edges.index(end) == edges.index(start) + 1


def test_slices_written_out() -> None:
    assert slices([100, 92, 1, 500, 10, 10]) == [(0, 192), (192, 193), (193, 693), (693, 713)]


@given(groves(longest=60, branches=4, trees=6), st.integers(50, 1000))
def test_no_token_sees_beyond_its_slice(trees: list[TokenTree], budget: int) -> None:
    for forest in pack_to_budget(trees, budget):
        seen = mask(forest)
        inside = torch.zeros_like(seen[0, 0])
        for start, end in seen.slices:
            inside[start:end, start:end] = True
        assert not (seen[0, 0] & ~inside).any()
