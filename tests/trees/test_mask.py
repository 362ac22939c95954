"""The attention mask, against a hand-written picture and its definition; and attention in slices."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from growing import groves, may_see, tokens_of
from hypothesis import given
from hypothesis import strategies as st

from treeward.trees import attention
from treeward.trees.attention import SLICES, mask, slice_arguments, slices
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


def tree_of(prompt: int, *branches: int) -> TokenTree:
    return TokenTree((5,) * prompt, tuple((6,) * length for length in branches))


@given(
    st.lists(
        st.tuples(st.integers(1, 300), st.lists(st.integers(1, 300), min_size=1, max_size=8)), min_size=1, max_size=8
    )
)
def test_slices_cover_all_tokens_in_order_and_split_no_branch(sizes: list[tuple[int, list[int]]]) -> None:
    trees = [tree_of(prompt, *branches) for prompt, branches in sizes]
    parts = slices(trees)
    edges = [0, *torch.tensor([len(tree) for tree in trees]).cumsum(0).tolist()]
    branch_edges = {
        edge + prompt + sum(branches[:n])
        for edge, (prompt, branches) in zip(edges, sizes, strict=False)
        for n in range(len(branches) + 1)
    }
    assert [part.start for part in parts] == [0, *(part.end for part in parts[:-1])]
    assert parts[-1].end == edges[-1]
    for part in parts:
        assert part.start < part.end
        if part.prefix == part.prefix_end:
            assert part.start in edges
            assert part.end in edges or part.end in branch_edges
        else:
            tree = edges.index(part.prefix)
            assert part.prefix_end == part.prefix + sizes[tree][0]
            assert {part.start, part.end} <= branch_edges
            assert part.end <= edges[tree + 1]


@given(st.integers(1, 300), st.lists(st.integers(1, 300), min_size=1, max_size=8))
def test_a_tree_is_cut_only_where_that_halves_the_scores(prompt: int, branches: list[int]) -> None:
    tree = tree_of(prompt, *branches)
    parts = slices([tree])
    scores = sum(part.scores for part in parts)
    assert scores == len(tree) ** 2 or 2 * scores <= len(tree) ** 2
    if len(branches) < 3:
        assert len(parts) == 1, "a pair stays whole"


def test_slices_written_out() -> None:
    trees = [
        tree_of(50, length - 50) if length > 50 else tree_of(1, length - 1) for length in (100, 92, 2, 500, 10, 10)
    ]
    assert slices(trees) == [(0, 192, 0, 0), (192, 194, 0, 0), (194, 694, 0, 0), (694, 714, 0, 0)]
    sampled = tree_of(10, 120, 100, 70, 120)
    assert slices([tree_of(1, 1), sampled, tree_of(1, 1)]) == [
        (0, 2, 0, 0), (2, 132, 0, 0), (132, 302, 2, 12), (302, 422, 2, 12), (422, 424, 0, 0),
    ]  # fmt: skip


@given(groves(longest=60, branches=8, trees=6), st.integers(50, 1000))
def test_no_token_sees_beyond_its_slice(trees: list[TokenTree], budget: int) -> None:
    for forest in pack_to_budget(trees, budget):
        seen = mask(forest)[0, 0]
        inside = torch.zeros_like(seen)
        for part in slices(forest.sources):
            inside[part.start : part.end, part.start : part.end] = True
            inside[part.start : part.end, part.prefix : part.prefix_end] = True
        assert not (seen & ~inside).any()


@pytest.mark.parametrize("kind", [TreeLM, TreeScorer])
@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3", "phi3"])
def test_branches_of_a_large_tree_are_attended_apart(
    family: str, kind: Any, tiny: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outputs and gradients are those of the whole row."""
    model = kind(tiny(family, scorer=kind is TreeScorer))
    model.backend = "tree"
    branches = tuple(
        tuple((3 + 7 * n + k * k) % 61 + 3 for k in range(length)) for n, length in enumerate((90, 80, 100, 120))
    )
    forest = pack([TokenTree((9,), ((4,),)), TokenTree((7, 8, 9), branches), TokenTree((10,), ((11,),))])
    assert len(slices(forest.sources)) == 5

    def numbers() -> list[torch.Tensor]:
        model.zero_grad()
        values = model(forest)
        (values * torch.arange(1.0, values.numel() + 1).view(values.shape)).sum().backward()
        return [values.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]

    apart = numbers()
    monkeypatch.setattr("treeward.trees.forward.slice_arguments", lambda module, forest: {})
    whole = numbers()
    assert len(apart) == len(whole) > 5
    for ours, theirs in zip(apart, whole, strict=True):
        assert (ours - theirs).norm() <= 1e-5 * theirs.norm()


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
    assert slice_arguments(model.model, forest) == {SLICES: [(0, 2, 0, 0)]}
    model.model.set_attn_implementation("eager")
    assert slice_arguments(model.model, forest) == {}
