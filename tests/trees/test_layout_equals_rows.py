"""A packed forest gives the numbers and gradients of one plain row a response.

The plain calls are written here, on a second copy of the model with eager attention, to share no code. Matrix products
run in float64, because in float32 a plain row with SDPA is off by 1e-5 itself, which would hide an error of the layout.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from growing import RICH, groves
from hypothesis import example, given, settings
from hypothesis import strategies as st

from treeward.trees.forest import pack, pack_to_budget
from treeward.trees.forward import TreeLM, TreeScorer
from treeward.trees.tokens import TokenTree

PACKED = ["gpt2", "llama", "qwen3", "phi3", "neox"]
VALUES = 1e-5
GRADIENTS = 1e-5
Build = Callable[..., Any]


def relative_distance(ours: torch.nn.Module, plain: torch.nn.Module) -> float:
    """The distance of all gradients divided by the norm of the plain ones."""
    distance = norm = 0.0
    for (name, a), (plain_name, b) in zip(ours.named_parameters(), plain.named_parameters(), strict=True):
        assert name == plain_name
        assert (a.grad is None) == (b.grad is None), name
        if a.grad is not None and b.grad is not None:
            distance += (a.grad.double() - b.grad.double()).square().sum().item()
            norm += b.grad.double().square().sum().item()
    assert norm > 0
    return float((distance / norm) ** 0.5)


def weights(count: int) -> torch.Tensor:
    """One random weight a number, so that two errors do not cancel."""
    return torch.randn(count, generator=torch.Generator().manual_seed(count), dtype=torch.float64)


def check(ours: Any, plain: Any, plain_values: Callable[[TokenTree], torch.Tensor], forests: Any) -> None:
    """Compare values forest by forest, then the accumulated gradients."""
    for forest in forests:
        packed = ours(forest)
        expected = torch.cat([plain_values(tree) for tree in forest.sources])
        assert packed.dtype == torch.float32
        torch.testing.assert_close(packed.double(), expected.double(), rtol=0, atol=VALUES)
        (packed * weights(packed.numel()).view_as(packed)).sum().backward()
        (expected * weights(packed.numel()).view_as(packed)).sum().backward()
    assert relative_distance(ours.model, plain) < GRADIENTS


@pytest.mark.parametrize("family", PACKED)
@settings(max_examples=8)
@example(trees=RICH, budget=4096)
@given(trees=groves(longest=60, branches=8, trees=4), budget=st.sampled_from([1, 150, 500, 4096]))
def test_log_probs_and_gradients_are_those_of_plain_rows(
    family: str, trees: list[TokenTree], budget: int, tiny: Build, plain_logps: Build
) -> None:
    ours, plain = TreeLM(tiny(family).double()), tiny(family, attention="eager").double()
    ours.backend = "tree"
    check(ours, plain, lambda tree: plain_logps(plain, tree), pack_to_budget(trees, budget, ours.positions))


@pytest.mark.parametrize("family", ["gpt2", "mistral", "gemma3", "mamba"])
@settings(max_examples=4)
@example(trees=RICH)
@given(trees=groves(longest=24, branches=4, trees=2))
def test_the_rows_backend_gives_plain_numbers(
    family: str, trees: list[TokenTree], tiny: Build, plain_logps: Build
) -> None:
    ours, plain = TreeLM(tiny(family).double()), tiny(family, attention="eager").double()
    ours.backend = "rows"
    check(ours, plain, lambda tree: plain_logps(plain, tree), [pack(trees)])


@pytest.mark.parametrize("family", ["qwen3"])
@pytest.mark.parametrize("backend", ["tree", "rows"])
@settings(max_examples=8)
@example(trees=RICH, budget=4096)
@given(trees=groves(longest=60, branches=8, trees=3), budget=st.sampled_from([1, 150, 500, 4096]))
def test_scores_and_gradients_are_those_of_plain_rows(
    family: str, backend: Any, trees: list[TokenTree], budget: int, tiny: Build
) -> None:
    ours, plain = TreeScorer(tiny(family, scorer=True)), tiny(family, scorer=True, attention="eager").double()
    ours.backbone.double()
    ours.backend = backend

    def values(tree: TokenTree) -> torch.Tensor:
        scores = [plain(input_ids=torch.tensor([row])).logits[0] for row in tree.rows()]
        return torch.stack(scores)

    # The public class pools before padding; none of these ids is its pad id, so that it pools at the last token.
    shifted = [
        TokenTree(tuple(t or 1 for t in tree.prompt), tuple(tuple(t or 1 for t in b) for b in tree.branches))
        for tree in trees
    ]
    check(ours, plain, values, pack_to_budget(shifted, budget, ours.positions))


@pytest.mark.parametrize("family", PACKED)
def test_a_trees_numbers_do_not_depend_on_its_neighbours(family: str, tiny: Build, grow: Build) -> None:
    model = TreeLM(tiny(family).double())
    model.backend = "tree"
    tree, *others = grow(6, branches=3, longest=20)
    with torch.no_grad():
        alone = model(pack([tree]))
        for neighbours in (others, others[:1], others[::-1]):
            first = model(pack([tree, *neighbours]))[: len(alone)]
            last = model(pack([*neighbours, tree]))[-len(alone) :]
            torch.testing.assert_close(first, alone, rtol=0, atol=VALUES)
            torch.testing.assert_close(last, alone, rtol=0, atol=VALUES)


@pytest.mark.parametrize("family", PACKED)
def test_a_branch_does_not_depend_on_its_siblings(family: str, tiny: Build, grow: Build) -> None:
    model = TreeLM(tiny(family).double())
    model.backend = "tree"
    (tree,) = grow(1, branches=4, longest=20)
    with torch.no_grad():
        together = model(pack([tree])).split([len(branch) for branch in tree.branches])
        for branch, values in zip(tree.branches, together, strict=True):
            alone = model(pack([TokenTree(tree.prompt, (branch,))]))
            torch.testing.assert_close(values, alone, rtol=0, atol=VALUES)


def test_a_tree_larger_than_a_slice_is_attended_to_whole(tiny: Build, plain_logps: Build, grow: Build) -> None:
    model, plain = TreeLM(tiny("llama").double()), tiny("llama", attention="eager").double()
    model.backend = "tree"
    big = TokenTree(tuple(range(3, 63)) * 2, tuple((n,) * 40 for n in range(3, 8)))
    with torch.no_grad():
        for trees in ([big], [*grow(2), big, *grow(2)]):
            expected = torch.cat([plain_logps(plain, tree) for tree in trees]).float()
            torch.testing.assert_close(model(pack(trees)), expected, rtol=0, atol=VALUES)


@pytest.mark.parametrize("family", PACKED)
def test_the_projection_runs_at_scored_positions_only(family: str, tiny: Build, grow: Build) -> None:
    model = TreeLM(tiny(family))
    model.backend = "tree"
    forest = pack(grow(3))
    seen: list[torch.Size] = []
    head = model.model.get_output_embeddings()
    head.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    model(forest)
    assert seen == [torch.Size([1, len(forest.targets), 64])]


def test_bf16_products_are_near_the_fp32_ones(tiny: Build, grow: Build) -> None:
    wide, narrow = TreeLM(tiny("llama")), TreeLM(tiny("llama"), "bf16")
    wide.backend = narrow.backend = "tree"
    forest = pack(grow(3))
    a, b = wide(forest), narrow(forest)
    assert b.dtype == torch.float32
    assert 0 < (a - b).abs().max() < 0.3
    assert {p.dtype for p in narrow.parameters()} == {torch.float32}
