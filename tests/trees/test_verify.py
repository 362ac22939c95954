"""The choice of a backend, the comparison that tests it, and planted faults that it must detect."""

import copy
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers

from treeward.errors import UserError
from treeward.trees import forward
from treeward.trees.attention import IMPLEMENTATION, choose_backend
from treeward.trees.forest import Forest, pack
from treeward.trees.forward import TreeLM, TreeScorer
from treeward.trees.tokens import TokenTree
from treeward.trees.verify import (
    GRADIENT_LIMIT,
    VALUE_LIMIT,
    Verification,
    _deviations,
    compare,
    verify,
    verify_once,
)

PACKED = ["gpt2", "llama", "qwen3", "phi3", "neox"]
Build = Callable[..., Any]


def causal_only(forest: Forest) -> torch.Tensor:
    """A planted fault: every token sees all tokens before it, in other branches and trees too."""
    size = len(forest.input_ids)
    return torch.ones(size, size, dtype=torch.bool).tril()[None, None]


def siblings_seen(forest: Forest) -> torch.Tensor:
    """A smaller fault: trees are separate, but a branch sees the branches before it."""
    return causal_only(forest) & (forest.tree[:, None] == forest.tree[None, :])


@pytest.mark.parametrize("family", PACKED)
def test_families_with_full_attention_use_the_tree(family: str, tiny: Build, grow: Build) -> None:
    model = TreeLM(tiny(family))
    result = verify(model, grow(5, branches=3, longest=30))
    assert (result.backend, result.fallback, model.backend) == ("tree", None, "tree")
    assert result.value_deviation < 5e-5
    assert result.gradient_deviation < 5e-5


@pytest.mark.parametrize(
    ("family", "reason"),
    [("mistral", "sliding window of 8"), ("gemma3", "sliding window of 8"), ("mamba", "linear_attention layers")],
)
def test_windows_and_recurrence_use_rows_and_report_it(
    family: str, reason: str, *, tiny: Build, grow: Build, plain_logps: Build, caplog: pytest.LogCaptureFixture
) -> None:
    model, trees = TreeLM(tiny(family)), grow(4, branches=3, longest=30)
    with caplog.at_level(logging.INFO, logger="treeward"):
        result = verify(model, trees)
    assert (result.backend, model.backend) == ("rows", "rows")
    assert reason in (result.fallback or "")
    assert any(reason in record.getMessage() for record in caplog.records)
    with torch.no_grad():
        expected = torch.cat([plain_logps(tiny(family), tree) for tree in trees]).float()
        torch.testing.assert_close(model(pack(trees)), expected, rtol=0, atol=5e-5)


@pytest.mark.parametrize("family", ["mistral", "gemma3"])
def test_a_window_longer_than_every_path_may_use_the_tree(family: str, tiny: Build, grow: Build) -> None:
    trees = grow(4, branches=3, longest=4)
    assert max(tree.longest_path for tree in trees) <= 8
    model = TreeLM(tiny(family))
    assert verify(model, trees).backend == "tree"
    longer = [TokenTree((5,) * 8, ((6,), (7,)))]
    verify_once(model, longer)
    assert model.backend == "rows"


@pytest.mark.parametrize("family", ["mistral", "gemma3"])
def test_forcing_the_tree_on_a_sliding_window_is_refused(family: str, tiny: Build, grow: Build) -> None:
    model = TreeLM(tiny(family), backend="tree")
    with pytest.raises(UserError, match="layout 'tree' deviates from plain calls"):
        verify(model, grow(4, branches=3, longest=30))
    assert model.backend is None


def test_forcing_the_tree_on_a_recurrent_model_is_refused(tiny: Build, grow: Build) -> None:
    with pytest.raises(UserError, match="layout 'tree'"):
        verify(TreeLM(tiny("mamba"), backend="tree"), grow(3))


def test_requested_rows_are_used(tiny: Build, grow: Build) -> None:
    model = TreeLM(tiny("llama"), backend="rows")
    result = verify(model, grow(3))
    assert (result.backend, result.fallback) == ("rows", "requested")


@pytest.mark.parametrize("fault", [causal_only, siblings_seen])
@pytest.mark.parametrize("family", PACKED)
def test_a_wrong_mask_is_detected_and_rows_are_used_instead(
    fault: Any, family: str, tiny: Build, grow: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forward, "mask", fault)
    model = TreeLM(tiny(family))
    result = verify(model, grow(5))
    assert model.backend == "rows"
    assert "tree layout is off by" in (result.fallback or "")


def test_a_wrong_mask_under_a_requested_tree_is_an_error(
    tiny: Build, grow: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forward, "mask", siblings_seen)
    with pytest.raises(UserError, match="layout 'tree' deviates"):
        verify(TreeLM(tiny("llama"), backend="tree"), grow(5))


def test_a_wrong_position_is_detected(tiny: Build, grow: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """Positions that count through all branches, as in a plain causal row."""
    original = Forest.to

    def running(forest: Forest, device: Any) -> Forest:
        moved = original(forest, device)
        moved.position_ids.copy_(torch.arange(len(moved.input_ids)))
        return moved

    monkeypatch.setattr(Forest, "to", running)
    model = TreeLM(tiny("llama"))
    assert "off by" in (verify(model, grow(5)).fallback or "")


def test_a_scorer_with_a_wrong_mask_falls_back(tiny: Build, grow: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    model = TreeScorer(tiny("qwen3", scorer=True))
    assert verify(model, grow(5)).backend == "tree"
    monkeypatch.setattr(forward, "mask", siblings_seen)
    assert verify(model, grow(5)).backend == "rows"


def test_a_wrong_gradient_alone_is_detected(tiny: Build, grow: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    original = TreeLM.forward

    def without_gradient(model: TreeLM, forest: Forest) -> torch.Tensor:
        return original(model, forest).detach() + 0 * original(model, forest)

    monkeypatch.setattr(TreeLM, "forward", without_gradient)
    result = compare(TreeLM(tiny("llama")), grow(3), "tree", None)
    assert result.value_deviation < 5e-5
    assert result.gradient_deviation == pytest.approx(1.0)
    assert not result.passed


def amplifies_rounding() -> TreeLM:
    """A model whose first layer cancels nearly all of its input, so that rounding is amplified after it."""
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                                 num_attention_heads=4, num_key_value_heads=4)
    )  # fmt: skip
    common = torch.nn.functional.normalize(torch.randn(32), dim=0)
    attention = model.model.layers[0].self_attn
    with torch.no_grad():
        model.model.embed_tokens.weight.add_(10_000 * common)
        attention.v_proj.weight.copy_(-10_000 / 32**0.5 * torch.outer(common, common))
        attention.o_proj.weight.copy_(torch.eye(32))
        model.lm_head.weight.mul_(0.01)
    return TreeLM(model)


@pytest.mark.parametrize("backend", ["tree", "rows"])
def test_rounding_that_the_weights_amplify_is_no_error_of_the_layout(backend: Any) -> None:
    """Gradients in float32 are off by more than the limit in any layout; a wrong gradient is still refused."""
    noise = torch.Generator().manual_seed(1)
    texts = [[tuple(torch.randint(3, 64, (n,), generator=noise).tolist()) for n in (11, 20, 9)] for _ in range(3)]
    trees = [TokenTree(prompt, tuple(branches), str(n)) for n, (prompt, *branches) in enumerate(texts)]
    model = amplifies_rounding()
    before = {name: parameter.data for name, parameter in model.named_parameters()}
    model.backend = backend
    assert _deviations(model, trees)[0] < VALUE_LIMIT
    single, double = (
        torch.cat([g.flatten().double() for g in torch.autograd.grad(each(pack(trees)).sum(), [*each.parameters()])])
        for each in (model, copy.deepcopy(model).double())
    )
    assert (single - double).norm() > GRADIENT_LIMIT * double.norm()
    result = compare(model, trees, backend, None)
    assert result.passed
    assert result.gradient_deviation < 1e-6
    assert all(parameter.data_ptr() == before[name].data_ptr() for name, parameter in model.named_parameters())

    class WrongGradient(TreeLM):
        def forward(self, forest: Forest) -> torch.Tensor:
            logps = super().forward(forest)
            return logps + 1e-3 * (logps - logps.detach())

    assert not compare(WrongGradient(model.model), trees, backend, None).passed


@pytest.mark.parametrize(("value", "gradient"), [(float("nan"), 0.0), (0.0, float("nan")), (1e-3, 0.0), (0.0, 1e-3)])
def test_either_deviation_alone_fails_a_verification(value: float, gradient: float) -> None:
    assert Verification("tree", 0.0, 0.0, None).passed
    assert not Verification("tree", value, gradient, None).passed


def test_weights_that_are_not_numbers_do_not_pass(tiny: Build, grow: Build) -> None:
    model = TreeLM(tiny("llama"))
    with torch.no_grad():
        model.model.model.norm.weight[0] = float("nan")
    with pytest.raises(UserError, match="deviates from plain calls by nan"):
        verify(model, grow(3))


def test_longer_paths_are_verified_again_and_shorter_ones_are_not(
    tiny: Build, grow: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = TreeLM(tiny("llama"))
    trees = sorted(grow(6, longest=30), key=lambda tree: tree.longest_path)
    verify_once(model, trees[:3])
    assert model.verified_path == trees[2].longest_path
    calls: list[int] = []
    monkeypatch.setattr("treeward.trees.verify.verify", lambda model, trees, budget: calls.append(len(trees)))
    verify_once(model, trees[:2])
    assert calls == []
    verify_once(model, trees)
    assert calls == [6]


def test_verification_changes_neither_gradients_nor_precision(tiny: Build, grow: Build) -> None:
    model = TreeLM(tiny("llama"), "bf16")
    verify(model, grow(3))
    assert model.precision == "bf16"
    assert all(p.grad is None for p in model.parameters())
    assert not model.training


@pytest.mark.parametrize("attention", ["eager", "flex_attention"])
def test_attention_other_than_sdpa_means_rows(attention: str, tiny: Build) -> None:
    backend, reason = choose_backend(tiny("llama", attention=attention), 10)
    assert backend == "rows"
    assert attention in reason


def test_sdpa_becomes_our_attention_and_gives_the_same_plain_numbers(tiny: Build) -> None:
    module = tiny("llama")
    ids = torch.arange(3, 40)[None]
    before = module(input_ids=ids).logits
    TreeLM(module)
    assert module.config._attn_implementation == IMPLEMENTATION
    assert torch.equal(module(input_ids=ids).logits, before)


def test_scoring_verifies_values_only_and_training_after_it_gradients_too(tiny: Build, grow: Build) -> None:
    model = TreeLM(tiny("llama"))
    with torch.no_grad():
        verify_once(model, grow(3))
    assert model.backend == "tree"
    assert not model.verified_gradients
    verify_once(model, grow(3))
    assert model.verified_gradients


def raise_on_packed_rows(model: TreeLM, error: BaseException) -> None:
    """Let the public model raise `error` when it is called with a mask."""

    def hook(module: Any, arguments: Any, named: dict[str, Any]) -> None:
        if named.get("attention_mask") is not None:
            raise error

    model.model.register_forward_pre_hook(hook, with_kwargs=True)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried to"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
        RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"),
    ],
)
def test_out_of_memory_is_raised_and_never_means_rows(error: BaseException, tiny: Build, grow: Build) -> None:
    model = TreeLM(tiny("llama"))
    raise_on_packed_rows(model, error)
    with pytest.raises(type(error)) as caught:
        verify(model, grow(3))
    assert caught.value is error
    assert (model.backend, model.fallback) == (None, None)


@pytest.mark.parametrize("error", [RuntimeError("shape '[2]' is invalid\nfor input"), TypeError("no such argument")])
def test_an_error_of_the_model_on_a_packed_row_is_logged_and_reported(
    error: Exception, tiny: Build, grow: Build, caplog: pytest.LogCaptureFixture
) -> None:
    model = TreeLM(tiny("llama"))
    raise_on_packed_rows(model, error)
    result = verify(model, grow(3))
    first_line = str(error).splitlines()[0]
    assert (result.backend, model.backend) == ("rows", "rows")
    assert result.fallback == f"the tree layout raised {type(error).__name__}: {first_line}"
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert first_line in warnings[0]
    assert "LlamaForCausalLM failed on a packed row" in warnings[0]


def test_an_error_under_a_requested_tree_is_reported_with_its_text(tiny: Build, grow: Build) -> None:
    model = TreeLM(tiny("llama"), backend="tree")
    raise_on_packed_rows(model, RuntimeError("no 4-D masks here"))
    with pytest.raises(UserError, match=r"it raised RuntimeError: no 4-D masks here\); set model.backend to auto"):
        verify(model, grow(3))
