"""Identities that hold at step 0 whatever the weights: I02 to I09, I11, I15 of the failure catalogue.

They run in fp32 on at most four small trees: they test logic, not rounding. They run in the modes that a training step
runs in, but for the dropout that was asked for. I09 alone looks at samples, in the run's own precision.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from treeward.checks.check import Check, Stage, below
from treeward.models.policy import Policy, token_logps
from treeward.models.reference import ReferenceModel
from treeward.models.weights import trainable
from treeward.stats.intervals import Floats
from treeward.stats.tables import Table
from treeward.training.loop import Objective
from treeward.trees.forest import pack
from treeward.trees.forward import Precision, TreeLM, TreeModule
from treeward.trees.rollout import Rollout
from treeward.trees.tokens import TokenTree
from treeward.trees.verify import GRADIENT_LIMIT, VALUE_LIMIT, Verification, perturb_zero_parameters

ROWS, TOKENS = 4, 128
VOCABULARY_ROWS = 32
SAMPLED = {"fp32": (1e-4, 1e-4), "bf16": (1e-2, 1e-1)}
"""How far the log-probability of a sampled token may lie from the one computed of the same ids, in nats: mean, most."""


def probe(trees: Sequence[TokenTree]) -> list[TokenTree]:
    """At most four trees of at most 128 tokens (the smallest ones, if there are none so small), all different."""
    small = [tree for tree in trees if len(tree) <= TOKENS]
    return list(dict.fromkeys(small or sorted(trees, key=len)))[:ROWS]


@contextmanager
def exact(model: TreeModule) -> Iterator[None]:
    """fp32 products, for as long as identities are tested."""
    before = model.precision
    model.precision = "fp32"
    try:
        yield
    finally:
        model.precision = before


def layout(found: Verification) -> Check:
    """I05: the packed pass equals plain calls; an announced fallback to rows passes."""
    detail = f"{found.backend}; gradients {found.gradient_deviation:.2g} (limit {GRADIENT_LIMIT})"
    if found.fallback:
        detail += f"; one row a branch: {found.fallback}"
    return Check("I05", "tree equals rows, largest deviation", found.passed, ("F07", "F22"), "before",
                 found.value_deviation, VALUE_LIMIT, detail)  # fmt: skip


def passes(model: TreeModule, trees: Sequence[TokenTree]) -> list[Check]:
    """I04 and I07: padding, neighbours and repetition change no number, in the modes of a training step."""
    with exact(model), model.training_mode(dropout=False), perturb_zero_parameters(model), torch.no_grad():
        together = model(pack(trees))
        again = model(pack(trees))
        alone = torch.cat([model(pack([tree])) for tree in trees])
        layout = model.backend
        model.backend = "rows"
        padded = model(pack(trees))
        model.backend = layout
    repeat = (together - again).abs().max().item()
    rest = max((together - other).abs().max().item() for other in (alone, padded))
    return [
        below(
            "I04", "padding and neighbours change nothing, largest deviation", rest, 1e-4, ["F03", "F14", "F26", "F36"]
        ),
        below("I07", "two passes are identical, largest deviation", repeat, 0.0 if together.is_cpu else 1e-6, ["F21"]),
    ]


def start_value(model: TreeModule, objective: Objective, trees: Sequence[TokenTree], expected: float) -> Check:
    """I02: the loss, as a training step computes it, has its known value where policy = reference, or the head is
    zero.
    """
    with exact(model), model.training_mode(dropout=False), torch.no_grad():
        value = objective(pack(trees)).values.double().mean().item()
    deviation = abs(value - expected) / max(1.0, abs(expected))
    detail = f"found {value:.6f}, expected {expected:.6f}"
    return below("I02", "the first loss has its known value, deviation", deviation, 1e-4,
                 ["F03", "F16", "F21", "F27"], detail=detail)  # fmt: skip


def start_checks(model: TreeLM, reference: ReferenceModel, trees: Sequence[TokenTree]) -> list[Check]:
    """I03 and I15: log-ratios to the reference are zero, and a frozen copy shares no storage."""
    with exact(model), torch.no_grad():
        own = model(pack(trees))
        with reference.model() as start, exact(start):
            other = start(pack(trees))
    ratio = (own - other).abs().max().item()
    shared = 0
    if reference.packed is not model:
        own_storage = {p.data_ptr() for p in model.parameters()}
        shared = sum(p.data_ptr() in own_storage for p in reference.packed.parameters())
    return [
        below("I03", "log-ratios and KL to the reference are zero, largest", ratio, 1e-4, ["F20", "F22", "F34"]),
        below("I15", "tensors that policy and reference share", shared, 0, ["F20", "F23"]),
    ]


def accumulation(model: TreeModule, objective: Objective, trees: Sequence[TokenTree]) -> Check:
    """I06: the loss and gradient of a batch are those of its rows, one by one."""
    parameters = [p for _, p in trainable(model)]
    count = sum(objective.count(tree) for tree in trees)
    with exact(model), model.training_mode(dropout=False), perturb_zero_parameters(model):
        whole = torch.autograd.grad(objective(pack(trees)).values.sum() / count, parameters, allow_unused=True)
        parts = [
            torch.autograd.grad(objective(pack([tree])).values.sum() / count, parameters, allow_unused=True)
            for tree in trees
        ]
    distance = norm = 0.0
    for index, gradient in enumerate(whole):
        if gradient is not None:
            rest = sum((part[index] for part in parts if part[index] is not None), torch.zeros_like(gradient))
            distance += (gradient - rest).square().sum().item()
            norm += gradient.square().sum().item()
    value = (distance / max(norm, 1e-30)) ** 0.5
    return below("I06", "gradient of 1 x n against n x 1, relative", value, 1e-4, ["F19", "F43"])


def reached(
    model: TreeModule, objective: Objective, trees: Sequence[TokenTree], held: Sequence[Tensor]
) -> tuple[Check, list[str]]:
    """I11: the optimiser holds exactly the trainable tensors, and each gets a finite non-zero gradient.

    Returns the check and the names of the tensors that no gradient reaches.
    """
    own = dict(trainable(model))
    wrong = {id(p) for p in held} ^ {id(p) for p in own.values()}
    count = sum(objective.count(tree) for tree in trees)
    with exact(model), model.training_mode(dropout=False), perturb_zero_parameters(model):
        loss = objective(pack(trees)).values.sum() / count
        gradients = torch.autograd.grad(loss, list(own.values()), allow_unused=True)
    missing = [
        name for name, gradient in zip(own, gradients, strict=True)
        if not name.endswith("bias") and (gradient is None or not 0 < gradient.norm().item() < float("inf"))
    ]  # fmt: skip
    detail = f"{len(own)} tensors"
    if missing:
        detail += f"; without gradient: {', '.join(missing[:4])}"
    if wrong:
        detail += "; the optimiser holds other tensors"
    name = "trainable tensors without gradient or outside the optimiser"
    return below("I11", name, len(missing) + len(wrong), 0, ["F15", "F44", "F47"], detail=detail), missing


def sampled(gaps: Floats, largest: Floats, lengths: Floats, precision: Precision, stage: Stage = "before") -> Check:
    """I09: the log-probabilities recorded while sampling are those of a forward pass over the same ids.

    One value a response: the mean and the largest deviation of its tokens in nats, and their number.
    """
    name = "log-probabilities of sampled tokens against those of the same ids, largest deviation, nats"
    mean_limit, limit = SAMPLED[precision]
    mean, most = float(np.average(gaps, weights=lengths)), float(np.max(largest))
    passed = mean <= mean_limit and most <= limit
    detail = f"mean {mean:.2g} (limit {mean_limit}) of {lengths.sum():.0f} tokens, {precision}"
    if not passed:
        detail += "; the samples are not the policy's: use --model.precision fp32, or another model class"
    return Check("I09", name, passed, ("F31", "F33", "F71"), stage, most, limit, detail)


def sampled_table(table: Table, precision: Precision, stage: Stage = "before") -> list[Check]:
    """`sampled` of a table of fresh samples; nothing where their sampler recorded no log-probabilities."""
    columns = table.columns
    if "gap" not in columns:
        return []
    return [sampled(columns["gap"], columns["gap_max"], columns["length"], precision, stage)]


def sampled_rollout(policy: Policy, rollout: Rollout) -> list[Check]:
    """`sampled` of a rollout, its ids computed again by the policy as it is now."""
    if rollout.logps is None:
        return []
    now = [branch for tree in token_logps(policy, rollout.trees) for branch in tree]
    off = [(a - b).abs() for a, b in zip(now, (b for tree in rollout.logps for b in tree), strict=True)]
    gaps, largest = (np.array([f(part).item() for part in off], dtype=np.float64) for f in (torch.mean, torch.max))
    lengths = np.array([len(part) for part in off], dtype=np.float64)
    return [sampled(gaps, largest, lengths, policy.packed.precision)]


def knows_vocabulary(model: TreeLM, trees: Sequence[TokenTree]) -> Check:
    """F09: pretrained weights read these ids better than a uniform guess, so the tokenizer is the model's own."""
    rows = sorted(trees, key=len)[:VOCABULARY_ROWS]
    embedding: Any = model.model.get_input_embeddings()  # type: ignore[operator]
    with torch.no_grad():
        nll = -torch.cat([model(pack([tree])) for tree in rows]).mean().item()
    uniform = math.log(embedding.num_embeddings)
    detail = "" if nll < uniform else "the tokenizer is another model's, or the weights are random"
    return below("F09", "NLL a token, against a uniform guess", nll, uniform, ["F09"], detail=detail)


def swapped(margins: Callable[[Sequence[TokenTree]], Tensor], trees: Sequence[TokenTree]) -> Check:
    """I08: with the two sides of each pair exchanged every margin changes its sign."""
    mirror = [TokenTree(t.prompt, t.branches[::-1], t.group, t.ratings[::-1]) for t in trees]
    deviation = (margins(trees) + margins(mirror)).abs().max().item()
    return below("I08", "swapped pairs change the sign of every margin, deviation", deviation, 1e-3,
                 ["F05", "F18", "F27"])  # fmt: skip
