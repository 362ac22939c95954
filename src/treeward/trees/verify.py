"""Is the packed forward pass the plain one? Values and gradients, on real trees, before the first step.

A few trees are compared first, values and gradients: the one with the longest path and the two smallest. Then, where
the caller says how many tokens a forest has, one whole forest of that size, values alone, since an error may begin
beyond the first few trees. The comparison runs without autocast: it tests the layout, not rounding. Under
`torch.no_grad()` values alone are compared, which is all that scoring needs; training after that verifies again.

A layout that fell back to rows stays rows.
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
from treeward.trees.attention import rule
from treeward.trees.forest import Backend, check_positions, pack
from treeward.trees.forward import TreeLM, TreeModule
from treeward.trees.tokens import TokenTree

log = logging.getLogger(__name__)

VALUE_LIMIT = 1e-4
GRADIENT_LIMIT = 1e-4
FAILURES = (RuntimeError, TypeError, IndexError, AttributeError, ValueError)
"""What public model classes raise on inputs that they do not understand."""
FEWEST = 3
"""Tokens of a probe's branch, at least: a branch of one token is predicted from the prompt alone, and with two the last
one is seen by nobody, so that a mask which mixes up branches would not show."""


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


def verify(model: TreeModule, trees: Sequence[TokenTree], budget: int | None = None) -> Verification:
    """Choose the backend by the rule, compare it with plain calls, fall back to rows, saying so; sets `model.backend`.

    The comparison runs on the tree that holds the longest path and on the two smallest, and with a token `budget` on
    one whole forest. A backend that was asked for by name is tested and never replaced; rows are never left again.

    Raises:
        UserError: the layout, or neither layout, gives the numbers of plain calls; the model is no decoder where one
            is needed, or has an encoder and a decoder; or a path is longer than the model's positions.
    """
    if model.positions is not None:
        check_positions(trees, model.positions)
    _check_kind(model, trees)
    longest = max(tree.longest_path for tree in trees)
    probe = _probe(trees, model.positions)
    reason: str | None
    if model.asked is not None:
        backend, reason = model.asked, "asked for" if model.asked == "rows" else None
    elif model.fallback is not None:
        backend, reason = "rows", model.fallback
    else:
        backend, reason = rule(model.model, longest)
    result = compare(model, probe, backend, reason if backend == "rows" else None)
    if result.passed and backend == "tree" and budget is not None and len(trees) > len(probe):
        result = _whole(model, trees, budget, result)
    if not result.passed and backend == "tree" and model.asked is None:
        reason = f"the tree layout is off by {result.value_deviation:.2g} (gradients {result.gradient_deviation:.2g})"
        result = compare(model, probe, "rows", reason)
    if not result.passed:
        raise UserError(
            f"{type(model.model).__name__}: the layout {result.backend!r} deviates from plain calls by "
            f"{result.value_deviation:.3g} (limit {VALUE_LIMIT}), gradients by {result.gradient_deviation:.3g} "
            f"(limit {GRADIENT_LIMIT}); set model.backend to auto, or use another model class"
        )
    if result.fallback and result.fallback != model.fallback:
        log.info("one row a branch: %s", result.fallback)
    model.backend, model.verified_path, model.fallback = result.backend, longest, result.fallback
    model.verified_gradients, model.verified_budget = torch.is_grad_enabled(), budget or 0
    return result


def verify_once(model: TreeModule, trees: Sequence[TokenTree], budget: int | None = None) -> None:
    """Verify unless that has been done for paths as long as these, with gradients where they are recorded now.

    What was looked at before, gradients or a forest of this many tokens, is looked at again with longer paths, also
    under `torch.no_grad()`.
    """
    if not trees:
        return
    gradients = torch.is_grad_enabled() or model.verified_gradients
    budget = max(budget or 0, model.verified_budget) or None
    known = model.backend is not None and model.verified_gradients == gradients
    known = known and (budget or 0) == model.verified_budget
    if not known or max(tree.longest_path for tree in trees) > model.verified_path:
        with torch.set_grad_enabled(gradients):
            verify(model, trees, budget)


def compare(model: TreeModule, trees: Sequence[TokenTree], backend: Backend, fallback: str | None) -> Verification:
    """Values and gradients of one forest of `trees` under `backend` against plain calls, row by row.

    Raises:
        UserError: the model cannot run rows.
    """
    before = model.backend, model.precision
    model.backend, model.precision = backend, "fp32"
    try:
        with perturb_zero_parameters(model):
            deviation, gradient = _deviations(model, trees)
    except FAILURES as problem:
        if backend == "rows":
            raise _refusal(model, problem) from problem
        if out_of_memory(problem):
            raise
        log.info("the tree layout failed: %s", problem)
        deviation = gradient = float("nan")
    finally:
        model.backend, model.precision = before
    return Verification(backend, deviation, gradient, fallback)


def _refusal(model: TreeModule, problem: Exception) -> Exception:
    """What to tell of a class that fails on a plain row of ids; the error itself where the memory is full."""
    if out_of_memory(problem):
        return problem
    first = (str(problem).strip() or type(problem).__name__).splitlines()[0]
    name = type(model.model).__name__
    return UserError(f"{name} cannot be called with plain rows of ids ({first[:160]}); use another model class")


def out_of_memory(problem: Exception) -> bool:
    """Whether an error says nothing of the layout: the memory is full. On the CPU torch says so in words alone."""
    return isinstance(problem, torch.OutOfMemoryError) or "not enough memory" in str(problem)


def _whole(model: TreeModule, trees: Sequence[TokenTree], budget: int, result: Verification) -> Verification:
    """`result`, its deviation of values that of one whole forest too.

    Gradients stay those of the few trees: each row of plain calls has one of its own, and a forest's would cost as much
    as several steps of training.
    """
    forest = _full(trees, budget)
    with torch.no_grad():
        other = compare(model, forest, "tree", None)
    return replace(result, value_deviation=_larger(result.value_deviation, other.value_deviation))


def _larger(a: float, b: float) -> float:
    """The larger one; NaN where one is."""
    return math.nan if math.isnan(a) or math.isnan(b) else max(a, b)


def _full(trees: Sequence[TokenTree], budget: int) -> list[TokenTree]:
    """As many trees as one forest holds, drawn by a fixed seed; at least one."""
    order = random.Random(0).sample(range(len(trees)), len(trees))
    chosen, tokens = [order[0]], len(trees[order[0]])
    for place in order[1:]:
        tokens += len(trees[place])
        if tokens > budget:
            break
        chosen.append(place)
    return [trees[place] for place in sorted(chosen)]


def _check_kind(model: TreeModule, trees: Sequence[TokenTree]) -> None:
    """Refuse what cannot work in any layout: two towers, and a policy whose tokens see what comes after them."""
    name = type(model.model).__name__
    if getattr(model.model.config, "is_encoder_decoder", False):
        raise UserError(f"{name} has an encoder and a decoder; use a decoder, or an encoder for a reward model")
    if not isinstance(model, TreeLM):
        return
    tree = _probe(trees, model.positions)[-1]
    branch = tree.branches[0]
    if len(branch) < 2:
        return
    both = TokenTree(tree.prompt, (branch, branch[:-1]))
    before, model.precision = model.precision, "fp32"
    try:
        with torch.no_grad():
            whole, shorter = model.plain(both, 0), model.plain(both, 1)
    except FAILURES as problem:
        raise _refusal(model, problem) from problem
    finally:
        model.precision = before
    ahead = (whole[:-1] - shorter).abs().max().item()
    if ahead > VALUE_LIMIT:
        raise UserError(
            f"{name} looks at later tokens (the last one changes those before it by {ahead:.2g} nats), so it is no "
            "policy; use a decoder, and an encoder for a reward model alone"
        )


@contextmanager
def perturb_zero_parameters(model: nn.Module) -> Iterator[None]:
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


def _probe(trees: Sequence[TokenTree], positions: int | None, count: int = 3) -> list[TokenTree]:
    """The tree of the longest path and the smallest ones, with two branches at least, of `FEWEST` tokens at least."""
    longest = max(trees, key=lambda tree: tree.longest_path)
    others = sorted((tree for tree in trees if tree is not longest), key=len)
    return [_widened(tree, positions) for tree in (longest, *others[: count - 1])]


def _widened(tree: TokenTree, positions: int | None) -> TokenTree:
    """A tree in which every fault of the layout shows: a branch that is too short goes on with the prompt's ids, as far
    as the model has positions, and a single branch gets a short sibling.
    """
    room = FEWEST if positions is None else min(FEWEST, positions - len(tree.prompt))
    filler = tree.prompt * FEWEST
    branches = tree.branches if len(tree.branches) != 1 else (*tree.branches, tree.branches[0][FEWEST - 1 :: -1])
    longer = tuple(branch + filler[: max(0, room - len(branch))] for branch in branches)
    return TokenTree(tree.prompt, longer, tree.group)


def _deviations(model: TreeModule, trees: Sequence[TokenTree]) -> tuple[float, float]:
    """Largest deviation of a value, relative deviation of the gradient of their sum under fixed random weights.

    One graph lives at a time: the packed one, then each plain row's.
    """
    parameters = [p for p in model.parameters() if p.requires_grad] if torch.is_grad_enabled() else []
    packed = model(pack(trees))
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
