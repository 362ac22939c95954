"""Compare packed and unpacked outputs and gradients on real trees, before the first step.

First a few trees are compared, values and gradients: the one with the longest path and the two smallest. Then, where
the caller gives the tokens of a forest, one whole forest of that size is compared, values only, because an error may
show beyond the first few trees. The comparison runs without autocast: it tests the layout, not rounding. Under
`torch.no_grad()` only values are compared, which is all that scoring needs; training after that verifies again.

A model that fell back to rows stays with rows.
"""

import logging
import math
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from treeward.errors import UserError
from treeward.trees.attention import choose_backend
from treeward.trees.forest import Backend, check_positions, pack
from treeward.trees.forward import TreeLM, TreeModule
from treeward.trees.tokens import TokenTree

log = logging.getLogger(__name__)

VALUE_LIMIT = 1e-4
"""Largest deviation of a value: nats a token, or a score."""
GRADIENT_LIMIT = 1e-4
"""Largest deviation of the gradient, relative to its norm."""
CALL_ERRORS = (RuntimeError, TypeError, IndexError, AttributeError, ValueError)
"""What public model classes raise on inputs that they do not support. RuntimeError also means that memory ran out: see
`is_out_of_memory`."""
PROBE_TOKENS = 3
"""Tokens of a probe's branch, at least. A branch of one token is predicted from the prompt alone, and no token attends
to the last one of two; with fewer than three, a mask that mixes up branches would not show."""


@dataclass(frozen=True)
class Verification:
    """The result of a comparison.

    `value_deviation` is the largest absolute deviation of a value (nats per token, or score), `gradient_deviation` that
    of the gradient relative to its norm; both are NaN where the call raised `error`. `fallback` is the reason for rows.
    """

    backend: Backend
    value_deviation: float
    gradient_deviation: float
    fallback: str | None
    error: str | None = None

    @property
    def passed(self) -> bool:
        """Whether both deviations are within their limits; NaN is not."""
        return self.value_deviation <= VALUE_LIMIT and self.gradient_deviation <= GRADIENT_LIMIT


def verify(model: TreeModule, trees: Sequence[TokenTree], budget: int | None = None) -> Verification:
    """Choose the backend, compare it with plain calls, and fall back to rows where it fails. Sets `model.backend`.

    The comparison runs on the tree with the longest path and on the two smallest; with a token `budget` also on one
    whole forest. A requested backend is tested and never replaced, and rows are never left again.

    Raises:
        UserError: neither layout, or not the requested one, gives the numbers of plain calls; a policy is not a
            decoder; the model has an encoder and a decoder; or a path is longer than the model's positions.
    """
    if model.positions is not None:
        check_positions(trees, model.positions)
    _check_model_class(model, trees)
    longest = max(tree.longest_path for tree in trees)
    probes = _probe_trees(trees, model.positions)
    reason: str | None
    if model.requested_backend is not None:
        backend, reason = model.requested_backend, "requested" if model.requested_backend == "rows" else None
    elif model.fallback is not None:
        backend, reason = "rows", model.fallback
    else:
        backend, reason = choose_backend(model.model, longest)
    result = compare(model, probes, backend, reason if backend == "rows" else None)
    if result.passed and backend == "tree" and budget is not None and len(trees) > len(probes):
        result = _compare_whole_forest(model, trees, budget, result)
    if not result.passed and backend == "tree" and model.requested_backend is None:
        reason = f"the tree layout is off by {result.value_deviation:.2g} (gradients {result.gradient_deviation:.2g})"
        if result.error is not None:
            reason = f"the tree layout raised {result.error}"
        result = compare(model, probes, "rows", reason)
    if not result.passed:
        raised = f" (it raised {result.error})" if result.error else ""
        raise UserError(
            f"{type(model.model).__name__}: the layout {result.backend!r} deviates from plain calls by "
            f"{result.value_deviation:.3g} (limit {VALUE_LIMIT}), gradients by {result.gradient_deviation:.3g} "
            f"(limit {GRADIENT_LIMIT}){raised}; set model.backend to auto, or use another model class"
        )
    if result.fallback and result.fallback != model.fallback:
        log.info("one row a branch: %s", result.fallback)
    model.backend, model.verified_path, model.fallback = result.backend, longest, result.fallback
    model.verified_gradients, model.verified_budget = torch.is_grad_enabled(), budget or 0
    return result


def verify_once(model: TreeModule, trees: Sequence[TokenTree], budget: int | None = None) -> None:
    """Verify unless that was done for paths as long as these, and with gradients where they are recorded now.

    Longer paths are verified as thoroughly as before (gradients, a whole forest), also under `torch.no_grad()`.
    """
    if not trees:
        return
    gradients = torch.is_grad_enabled() or model.verified_gradients
    budget = max(budget or 0, model.verified_budget) or None
    is_verified = model.backend is not None and model.verified_gradients == gradients
    is_verified = is_verified and (budget or 0) == model.verified_budget
    if not is_verified or max(tree.longest_path for tree in trees) > model.verified_path:
        with torch.set_grad_enabled(gradients):
            verify(model, trees, budget)


def compare(model: TreeModule, trees: Sequence[TokenTree], backend: Backend, fallback: str | None) -> Verification:
    """Values and gradients of one forest of `trees` under `backend`, against plain calls row by row.

    Gradients that deviate too far are compared once more in float64. Some weights amplify rounding so much that the
    same sum in another order deviates by 1e-4 in float32. In float64 rounding disappears, and an error of the layout
    stays.

    What the model's class raises on a packed row is logged and fails the comparison. An error because memory ran out is
    raised as it is, since it says nothing about the layout.

    Raises:
        UserError: the model cannot be called with rows.
    """
    before = model.backend, model.precision
    model.backend, model.precision = backend, "fp32"
    error: str | None = None
    try:
        with perturb_zero_parameters(model):
            value, gradient = _deviations(model, trees)
            if value <= VALUE_LIMIT and gradient > GRADIENT_LIMIT and model.device.type != "mps":
                with in_float64(model):
                    gradient = _deviations(model, trees)[1]
    except CALL_ERRORS as problem:
        if is_out_of_memory(problem):
            raise
        if backend == "rows":
            raise _not_callable(model, problem) from problem
        log.warning("%s failed on a packed row: %r", type(model.model).__name__, problem)
        error = f"{type(problem).__name__}: {first_line(problem)}"
        value = gradient = math.nan
    finally:
        model.backend, model.precision = before
    return Verification(backend, value, gradient, fallback, error)


@contextmanager
def in_float64(model: nn.Module) -> Iterator[None]:
    """Compute with float64 copies of all weights and buffers; the tensors themselves are put back after."""
    tensors = [tensor for tensor in (*model.parameters(), *model.buffers()) if tensor.is_floating_point()]
    originals = [tensor.data for tensor in tensors]
    try:
        for tensor in tensors:
            tensor.data = tensor.data.double()
        yield
    finally:
        for tensor, original in zip(tensors, originals, strict=True):
            tensor.data = original


def is_out_of_memory(problem: BaseException) -> bool:
    """Whether an error means that memory ran out. Of torch's errors only CUDA's has a class of its own.

    On the CPU torch raises RuntimeError("... DefaultCPUAllocator: can't allocate memory ..."), "not enough memory" on
    some systems; MPS and cuBLAS have texts of their own.
    """
    if isinstance(problem, torch.OutOfMemoryError | MemoryError):
        return True
    texts = ("out of memory", "not enough memory", "can't allocate memory", "ALLOC_FAILED")
    return isinstance(problem, RuntimeError) and any(text in str(problem) for text in texts)


def first_line(problem: BaseException) -> str:
    """The first line of an error's message, at most 160 characters; its class where the message is empty."""
    return (str(problem).strip() or type(problem).__name__).splitlines()[0][:160]


@contextmanager
def perturb_zero_parameters(model: nn.Module) -> Iterator[None]:
    """Give trainable tensors that are all zero (a zero head, LoRA's B) random values, and restore the zeros after.

    With a zero head every layout has the same scores, and all gradients below it are zero.
    """
    generator = torch.Generator().manual_seed(0)
    zero_parameters = [
        p for name, p in model.named_parameters() if p.requires_grad and not bool(p.any()) and not name.endswith("bias")
    ]
    with torch.no_grad():
        for parameter in zero_parameters:
            parameter.copy_(0.02 * torch.randn(parameter.shape, generator=generator))
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter in zero_parameters:
                parameter.zero_()


def _not_callable(model: TreeModule, problem: Exception) -> UserError:
    """The error for a class that fails on plain rows of ids."""
    name = type(model.model).__name__
    return UserError(f"{name} cannot be called with plain rows of ids ({first_line(problem)}); use another model class")


def _compare_whole_forest(
    model: TreeModule, trees: Sequence[TokenTree], budget: int, result: Verification
) -> Verification:
    """`result` with the values of one whole forest compared too.

    Gradients stay those of the few trees. Plain calls have one graph a row, so the gradients of a whole forest would
    cost as much as several training steps.
    """
    forest = _draw_forest(trees, budget)
    with torch.no_grad():
        whole = compare(model, forest, "tree", None)
    value = _larger(result.value_deviation, whole.value_deviation)
    return replace(result, value_deviation=value, error=whole.error)


def _larger(a: float, b: float) -> float:
    """The larger one; NaN where either is NaN."""
    return math.nan if math.isnan(a) or math.isnan(b) else max(a, b)


def _draw_forest(trees: Sequence[TokenTree], budget: int) -> list[TokenTree]:
    """As many trees as one forest holds, drawn with a fixed seed; at least one."""
    order = random.Random(0).sample(range(len(trees)), len(trees))
    indices, tokens = [order[0]], len(trees[order[0]])
    for index in order[1:]:
        tokens += len(trees[index])
        if tokens > budget:
            break
        indices.append(index)
    return [trees[index] for index in sorted(indices)]


def _check_model_class(model: TreeModule, trees: Sequence[TokenTree]) -> None:
    """Refuse classes that cannot work in any layout.

    Raises:
        UserError: the model has an encoder and a decoder, or is a policy whose tokens see later ones.
    """
    name = type(model.model).__name__
    if getattr(model.model.config, "is_encoder_decoder", False):
        raise UserError(f"{name} has an encoder and a decoder; use a decoder, or an encoder for a reward model")
    if not isinstance(model, TreeLM):
        return
    tree = _probe_trees(trees, model.positions)[-1]
    branch = tree.branches[0]
    if len(branch) < 2:
        return
    with_and_without_last = TokenTree(tree.prompt, (branch, branch[:-1]))
    precision, model.precision = model.precision, "fp32"
    try:
        with torch.no_grad():
            whole, shorter = model.unpacked(with_and_without_last, 0), model.unpacked(with_and_without_last, 1)
    except CALL_ERRORS as problem:
        if is_out_of_memory(problem):
            raise
        raise _not_callable(model, problem) from problem
    finally:
        model.precision = precision
    deviation = (whole[:-1] - shorter).abs().max().item()
    if deviation > VALUE_LIMIT:
        raise UserError(
            f"{name} looks at later tokens (the last token changes those before it by {deviation:.2g} nats), so it is "
            "no policy; use a decoder. An encoder can be a reward model"
        )


def _probe_trees(trees: Sequence[TokenTree], positions: int | None, count: int = 3) -> list[TokenTree]:
    """The tree with the longest path and the smallest ones, changed so that a wrong layout shows."""
    longest = max(trees, key=lambda tree: tree.longest_path)
    others = sorted((tree for tree in trees if tree is not longest), key=len)
    return [_as_probe(tree, positions) for tree in (longest, *others[: count - 1])]


def _as_probe(tree: TokenTree, positions: int | None) -> TokenTree:
    """The tree with at least two branches of at least `PROBE_TOKENS` tokens.

    Short branches are continued with the prompt's ids, as far as the model has positions. A single branch gets a short
    sibling.
    """
    length = PROBE_TOKENS if positions is None else min(PROBE_TOKENS, positions - len(tree.prompt))
    filler = tree.prompt * PROBE_TOKENS
    branches = tree.branches if len(tree.branches) != 1 else (*tree.branches, tree.branches[0][PROBE_TOKENS - 1 :: -1])
    longer = tuple(branch + filler[: max(0, length - len(branch))] for branch in branches)
    return TokenTree(tree.prompt, longer, tree.group)


def _deviations(model: TreeModule, trees: Sequence[TokenTree]) -> tuple[float, float]:
    """The largest deviation of a value, and the relative deviation of the gradient of a random weighted sum.

    Only one graph exists at a time: the packed one, then each plain row's.
    """
    parameters = [p for p in model.parameters() if p.requires_grad] if torch.is_grad_enabled() else []
    packed = model(pack(trees))
    weights = torch.randn(packed.shape, generator=torch.Generator().manual_seed(0)).to(packed)
    difference = _gradients((packed * weights).sum(), parameters)
    packed = packed.detach()
    total = [torch.zeros_like(gradient) for gradient in difference]
    deviations: list[Tensor] = []
    start = 0
    for tree in trees:
        for branch in range(len(tree.branches)):
            values = model.unpacked(tree, branch)
            rows = slice(start, start + len(values))
            start = rows.stop
            deviations.append((packed[rows] - values.detach()).abs().max())
            gradients = _gradients((values * weights[rows]).sum(), parameters)
            for remainder, running_sum, gradient in zip(difference, total, gradients, strict=True):
                remainder.sub_(gradient)
                running_sum.add_(gradient)
    assert start == len(packed), "both layouts score the same tokens"
    distance, norm = (sum(g.square().sum().item() for g in gradients) for gradients in (difference, total))
    return torch.stack(deviations).max().item(), float((distance / max(norm, 1e-30)) ** 0.5)


def _gradients(value: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """Gradients of a value, zeros where it does not depend on a parameter; none without parameters."""
    if not parameters:
        return []
    return list(torch.autograd.grad(value, parameters, allow_unused=True, materialize_grads=True))
