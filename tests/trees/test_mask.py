"""The attention mask, against a hand-written picture and its definition; and attention in slices."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from growing import groves, may_see, tokens_of
from hypothesis import given
from hypothesis import strategies as st

from treeward.trees import attention
from treeward.trees.attention import SLICE_TOKENS, SLICES, mask, slice_arguments, slices
from treeward.trees.forest import pack, pack_to_budget
from treeward.trees.forward import TreeLM, TreeScorer
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
    ranges = slices(lengths)
    edges = [0, *torch.tensor(lengths).cumsum(0).tolist()]
    assert [start for start, _ in ranges] == [0, *(end for _, end in ranges[:-1])]
    assert ranges[-1][1] == edges[-1]
    for start, end in ranges:
        assert start < end
        assert start in edges
        assert end in edges
        assert end - start <= SLICE_TOKENS or edges.index(end) == edges.index(start) + 1


def test_slices_written_out() -> None:
    assert slices([100, 92, 1, 500, 10, 10]) == [(0, 192), (192, 193), (193, 693), (693, 713)]


@given(groves(longest=60, branches=4, trees=6), st.integers(50, 1000))
def test_no_token_sees_beyond_its_slice(trees: list[TokenTree], budget: int) -> None:
    for forest in pack_to_budget(trees, budget):
        seen = mask(forest)[0, 0]
        inside = torch.zeros_like(seen)
        for start, end in slices([len(tree) for tree in forest.sources]):
            inside[start:end, start:end] = True
        assert not (seen & ~inside).any()


@pytest.mark.parametrize("kind", [TreeLM, TreeScorer])
@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3", "phi3"])
def test_attention_runs_slice_by_slice_and_gives_the_numbers_of_the_whole_row(
    family: str, kind: Any, tiny: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = kind(tiny(family, scorer=kind is TreeScorer))
    model.backend = "tree"
    large = TokenTree((7,) * 110, ((8,) * 20, (9,)))
    forest = pack([TokenTree((5,) * 90, ((6,) * 10,)), large, TokenTree((10,), ((11,),))])
    lengths: list[int] = []
    sdpa = attention.sdpa_attention_forward

    def counted(module: Any, query: torch.Tensor, *rest: Any, **arguments: Any) -> Any:
        assert SLICES not in arguments
        lengths.append(query.shape[2])
        return sdpa(module, query, *rest, **arguments)

    monkeypatch.setattr(attention, "sdpa_attention_forward", counted)
    with torch.no_grad():
        sliced = model(forest)
        assert lengths == [100, 133] * 2, "two slices in each of two layers"
        monkeypatch.setattr("treeward.trees.forward.slice_arguments", lambda module, forest: {})
        torch.testing.assert_close(model(forest), sliced, rtol=0, atol=1e-4)
    assert lengths[4:] == [233] * 2


def test_slices_are_passed_only_to_our_attention(tiny: Callable[..., Any]) -> None:
    forest = pack([TokenTree((5,), ((6,),))])
    model = TreeLM(tiny("llama"))
    assert slice_arguments(model.model, forest) == {SLICES: [(0, 2)]}
    model.model.set_attn_implementation("eager")
    assert slice_arguments(model.model, forest) == {}
