"""Is the packed forward pass the plain one? Values and gradients, on real trees, before the first step.

The comparison runs without autocast: it tests the layout, not rounding. Under `torch.no_grad()` values alone are
compared, which is all that scoring needs; training after that verifies again.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from treeward.trees.attention import rule
from treeward.trees.forest import Backend, check_positions, plant
from treeward.trees.forward import TreeModule
from treeward.trees.tokens import TokenTree

log = logging.getLogger(__name__)

VALUE_LIMIT = 1e-4
GRADIENT_LIMIT = 1e-4


@dataclass(frozen=True)
class Verification:
    """What was compared: the largest absolute deviation of a value (nats per token, or score), and the deviation of
    the gradient relative to its norm. `fallback` says why the tree layout is not used, if it is not."""

    backend: Backend
    value_deviation: float
    gradient_deviation: float
    fallback: str | None

    @property
    def passed(self) -> bool:
        """Both deviations lie below their limits; NaN does not."""
        return self.value_deviation <= VALUE_LIMIT and self.gradient_deviation <= GRADIENT_LIMIT


def verify(model: TreeModule, trees: Sequence[TokenTree]) -> Verification:
    """Choose the backend by the rule, compare it with plain calls, fall back to rows, saying so; sets `model.backend`.

    The comparison runs on the tree that holds the longest path and on the two smallest. A backend that was asked for
    by name is tested and never replaced.

    Raises:
        ValueError: the layout, or neither layout, gives the numbers of plain calls; or a path is longer than the
            model's positions.
    """
    if model.positions is not None:
        check_positions(trees, model.positions)
    longest = max(tree.longest_path for tree in trees)
    probe = _probe(trees)
    if model.asked is not None:
        backend, reason = model.asked, "asked for" if model.asked == "rows" else None
    else:
        backend, reason = rule(model.module, longest)
    result = compare(model, probe, backend, reason if backend == "rows" else None)
    if not result.passed and backend == "tree" and model.asked is None:
        reason = f"the tree layout is off by {result.value_deviation:.2g} (gradients {result.gradient_deviation:.2g})"
        result = compare(model, probe, "rows", reason)
    if not result.passed:
        raise ValueError(
            f"{type(model.module).__name__}: the layout {result.backend!r} deviates from plain calls by "
            f"{result.value_deviation:.3g} (limit {VALUE_LIMIT}), gradients by {result.gradient_deviation:.3g} "
            f"(limit {GRADIENT_LIMIT}); set model.backend to auto, or use another model class"
        )
    if result.fallback:
        log.info("one row a branch: %s", result.fallback)
    model.backend, model.verified_path = result.backend, longest
    model.verified_gradients = torch.is_grad_enabled()
    return result


def verified(model: TreeModule, trees: Sequence[TokenTree]) -> None:
    """Verify unless that has been done for paths as long as these, with gradients where they are recorded now.

    Gradients that were verified before are verified again with longer paths, also under `torch.no_grad()`.
    """
    if not trees:
        return
    gradients = torch.is_grad_enabled() or model.verified_gradients
    known = model.backend is not None and model.verified_gradients == gradients
    if not known or max(tree.longest_path for tree in trees) > model.verified_path:
        with torch.set_grad_enabled(gradients):
            verify(model, trees)


def compare(model: TreeModule, trees: Sequence[TokenTree], backend: Backend, fallback: str | None) -> Verification:
    """Values and gradients of one forest of `trees` under `backend` against plain calls, row by row."""
    before = model.backend, model.precision
    model.backend, model.precision = backend, "fp32"
    try:
        with awakened(model):
            deviation, gradient = _deviations(model, trees)
    except (RuntimeError, TypeError, IndexError, AttributeError) as problem:
        if backend == "rows":
            raise
        log.info("the tree layout failed: %s", problem)
        deviation = gradient = float("nan")
    finally:
        model.backend, model.precision = before
    return Verification(backend, deviation, gradient, fallback)


@contextmanager
def awakened(model: nn.Module) -> Iterator[None]:
    """Random values in trainable tensors that are all zero (a zero head, LoRA's B), and the zeros back after.

    A zero head would give every layout the same scores, and hide every gradient below it.
    """
    draw = torch.Generator().manual_seed(0)
    asleep = [
        p for name, p in model.named_parameters() if p.requires_grad and not bool(p.any()) and not name.endswith("bias")
    ]
    with torch.no_grad():
        for parameter in asleep:
            parameter.copy_(0.02 * torch.randn(parameter.shape, generator=draw))
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter in asleep:
                parameter.zero_()


def _probe(trees: Sequence[TokenTree], count: int = 3) -> list[TokenTree]:
    longest = max(trees, key=lambda tree: tree.longest_path)
    others = sorted((tree for tree in trees if tree is not longest), key=len)
    return [longest, *others[: count - 1]]


def _deviations(model: TreeModule, trees: Sequence[TokenTree]) -> tuple[float, float]:
    """Largest deviation of a value, relative deviation of the gradient of their sum under fixed random weights.

    One graph lives at a time: the packed one, then each plain row's.
    """
    parameters = [p for p in model.parameters() if p.requires_grad] if torch.is_grad_enabled() else []
    packed = model(plant(trees))
    weights = torch.randn(packed.shape, generator=torch.Generator().manual_seed(0)).to(packed)
    difference = _gradients((packed * weights).sum(), parameters)
    packed = packed.detach()
    norm = [torch.zeros_like(gradient) for gradient in difference]
    deviations: list[Tensor] = []
    at = 0
    for tree in trees:
        for branch in range(len(tree.branches)):
            plain = model.plain(tree, branch)
            rows = slice(at, at + len(plain))
            at = rows.stop
            deviations.append((packed[rows] - plain.detach()).abs().max())
            for left, total, gradient in zip(
                difference, norm, _gradients((plain * weights[rows]).sum(), parameters), strict=True
            ):
                left.sub_(gradient)
                total.add_(gradient)
    assert at == len(packed), "both layouts score the same tokens"
    off, size = (sum(g.square().sum().item() for g in gradients) for gradients in (difference, norm))
    return torch.stack(deviations).max().item(), float((off / max(size, 1e-30)) ** 0.5)


def _gradients(value: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """Gradients of a value, zeros where it does not depend on a parameter; none without parameters."""
    if not parameters:
        return []
    found = torch.autograd.grad(value, parameters, allow_unused=True, materialize_grads=True)
    return list(found)
