"""Checks before the first step that run the model: identities that hold whatever the weights are, and the learning
rate.

The identities run in fp32 on at most four small trees, because they test logic and not rounding, and in the modes of a
training step, without dropout. `sampled` alone looks at samples, in the run's own precision.
"""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from treeward.checks.check import Check, below, result
from treeward.checks.registry import Stage
from treeward.losses.advantages import AnyBaseline, Rewards
from treeward.losses.preference import loss_name
from treeward.models.policy import Policy, branch_logps, token_logps
from treeward.models.reference import Audit, ReferenceModel
from treeward.models.weights import trainable
from treeward.stats.intervals import Floats, clustered_mean
from treeward.stats.tables import Table
from treeward.training.loop import Loop
from treeward.training.objectives import Objective, prepare
from treeward.trees.forest import pack
from treeward.trees.forward import Precision, TreeLM, TreeModule
from treeward.trees.rollout import Rollout
from treeward.trees.tokens import TokenTree
from treeward.trees.verify import GRADIENT_LIMIT, VALUE_LIMIT, Verification, perturb_zero_parameters

log = logging.getLogger(__name__)

PROBE_TREES, PROBE_TOKENS = 4, 128
"""Number of trees that the identities run on, and the most tokens of each."""
VOCABULARY_TREES = 32
"""Number of trees whose NLL is compared with a uniform guess."""
START_PROMPTS, START_TOKENS, START_GAIN = 128, 32, 0.02
"""Prompts that are scored with a start token in front, tokens of each, and the gain in nats a token that warns."""
SAMPLED_LIMITS = {"fp32": (1e-4, 1e-4), "bf16": (1e-2, 1e-1)}
"""Limits of the mean and the largest deviation of a sampled token's log-probability from the recomputed one, in
nats.
"""


def probe(trees: Sequence[TokenTree]) -> list[TokenTree]:
    """At most four different trees of at most 128 tokens, or the smallest trees if none is that small."""
    small = [tree for tree in trees if len(tree) <= PROBE_TOKENS]
    return list(dict.fromkeys(small or sorted(trees, key=len)))[:PROBE_TREES]


@contextmanager
def exact(*models: TreeModule) -> Iterator[None]:
    """fp32 products while identities are tested."""
    before = [model.precision for model in models]
    for model in models:
        model.precision = "fp32"
    try:
        yield
    finally:
        for model, precision in zip(models, before, strict=True):
            model.precision = precision


@contextmanager
def prepared(model: TreeModule, objective: Objective, trees: Sequence[TokenTree]) -> Iterator[None]:
    """fp32 products of the model and of the objective's reference, the objective prepared for these trees, in the modes
    of a training step but without dropout.
    """
    reference: ReferenceModel | None = getattr(objective, "reference", None)
    models = {id(m): m for m in (model, reference.packed if reference is not None else model)}
    with exact(*models.values()), model.training_mode(dropout=False):
        prepare(objective, model, trees, sum(map(len, trees)))
        yield


def layout(verification: Verification) -> Check:
    """I05: packed values and gradients equal those of plain calls. A reported fallback to rows passes."""
    detail = f"{verification.backend}; gradients {verification.gradient_deviation:.2g} (limit {GRADIENT_LIMIT})"
    if verification.fallback:
        detail += f"; one row a branch: {verification.fallback}"
    return result(
        "layout-equals-rows",
        passed=verification.passed,
        value=verification.value_deviation,
        limit=VALUE_LIMIT,
        detail=detail,
    )


def passes(model: TreeModule, trees: Sequence[TokenTree]) -> list[Check]:
    """I04 and I07: padding, the rest of the batch and repetition change no value, in the modes of a training step."""
    with exact(model), model.training_mode(dropout=False), perturb_zero_parameters(model), torch.no_grad():
        together = model(pack(trees))
        again = model(pack(trees))
        alone = torch.cat([model(pack([tree])) for tree in trees])
        backend = model.backend
        model.backend = "rows"
        padded = model(pack(trees))
        model.backend = backend
    repeated = (together - again).abs().max().item()
    deviation = max((together - values).abs().max().item() for values in (alone, padded))
    return [
        below("batch-independent", deviation, 1e-4),
        below("passes-repeat", repeated, 0.0 if together.is_cpu else 1e-6),
    ]


def start_value(model: TreeModule, objective: Objective, trees: Sequence[TokenTree], expected: float) -> Check:
    """I02: the loss, computed as in a training step, has its known value at the start.

    `expected` is the value where the policy equals the reference model, or the score head is zero.
    """
    with prepared(model, objective, trees), torch.no_grad():
        value = objective(model, pack(trees)).values.double().mean().item()
    deviation = abs(value - expected) / max(1.0, abs(expected))
    return below("first-loss-known", deviation, 1e-4, detail=f"loss {value:.6f}, expected {expected:.6f}")


def start_value_not_declared(loss: Any) -> Check:
    """I02 is skipped for a loss that declares no value at the start."""
    return result("first-loss-known", passed=None, detail=f"the loss {loss_name(loss)} declares no value at the start")


def unpacked_logps(model: TreeLM, trees: Sequence[TokenTree]) -> Tensor:
    """The log-probability of each branch by a plain call on its own row, in order, without gradient."""
    with torch.no_grad():
        return torch.stack([model.unpacked(tree, n).sum().cpu() for tree in trees for n in range(len(tree.branches))])


def stored_logps(audit: Audit) -> Check:
    """F22: log-probabilities in the store are those of the reference model."""
    passed = audit.passed if audit.entries else None
    return result("stored-logps-match", passed=passed, value=audit.deviation, limit=audit.limit, detail=audit.detail)


def policy_identities(
    model: TreeLM, start: ReferenceModel, trees: Sequence[TokenTree], random_weights: bool
) -> list[Check]:
    """The identities of every method that trains a policy."""
    checks = start_checks(model, start, trees)
    return checks if random_weights else [*checks, knows_vocabulary(model, trees)]


def start_checks(model: TreeLM, reference: ReferenceModel, trees: Sequence[TokenTree]) -> list[Check]:
    """I03 and I15: the log-ratios to a copy of the start are zero, and a frozen copy shares no memory."""
    with exact(model), torch.no_grad():
        policy_logps = model(pack(trees))
        with reference.inference() as start, exact(start):
            reference_logps = start(pack(trees))
    logratio = (policy_logps - reference_logps).abs().max().item()
    shared = 0
    if reference.packed is not model:
        policy_storage = {p.data_ptr() for p in model.parameters()}
        shared = sum(p.data_ptr() in policy_storage for p in reference.packed.parameters())
    return [
        below("reference-equals-start", logratio, 1e-4),
        below("reference-has-own-weights", shared, 0),
    ]


def accumulation(model: TreeModule, objective: Objective, trees: Sequence[TokenTree]) -> Check:
    """I06: the gradient of a batch is the sum of the gradients of its trees, one by one."""
    parameters = [p for _, p in trainable(model)]
    count = sum(objective.count(tree) for tree in trees)
    with prepared(model, objective, trees), perturb_zero_parameters(model):
        batch = torch.autograd.grad(objective(model, pack(trees)).values.sum() / count, parameters, allow_unused=True)
        single = [
            torch.autograd.grad(objective(model, pack([tree])).values.sum() / count, parameters, allow_unused=True)
            for tree in trees
        ]
    distance = norm = 0.0
    for index, gradient in enumerate(batch):
        if gradient is not None:
            total = sum((part[index] for part in single if part[index] is not None), torch.zeros_like(gradient))
            distance += (gradient - total).square().sum().item()
            norm += gradient.square().sum().item()
    return below("accumulation-equals-batch", (distance / max(norm, 1e-30)) ** 0.5, 1e-4)


def weights_reach_gradient(loop: Loop, trees: Sequence[TokenTree]) -> list[Check]:
    """F68: half the importance weights give half the gradient, by the loop's own backward pass.

    Nothing for trees without such weights.
    """
    if not trees or any(tree.sampled is None or tree.sampled.weights is None for tree in trees):
        return []

    def gradient(share: float) -> Tensor:
        scaled = [
            replace(tree, sampled=replace(tree.sampled, weights=tuple(share * w for w in tree.sampled.weights)))
            for tree in trees
        ]
        loop.backward(scaled)
        flat = torch.cat([p.grad.flatten() for p in loop.parameters if p.grad is not None])
        loop.discard()
        return flat

    whole, half = gradient(1.0), gradient(0.5)
    deviation = ((half - whole / 2).norm() / (whole / 2).norm().clamp(min=1e-30)).item()
    return [below("weights-reach-gradient", deviation, 1e-4, detail=f"gradient norm {whole.norm().item():.3g}")]


def reached(
    model: TreeModule, objective: Objective, trees: Sequence[TokenTree], optimised: Sequence[Tensor]
) -> tuple[Check, list[str]]:
    """I11: the optimizer holds exactly the trainable tensors, and each gets a finite gradient that is not zero.

    Args:
        model: the model that is trained.
        objective: the training objective.
        trees: a batch for one backward pass.
        optimised: the tensors that the optimizer holds.

    Returns:
        The check, and the names of the tensors without a gradient. Biases are ignored: some have none by symmetry.
    """
    parameters = dict(trainable(model))
    mismatched = {id(p) for p in optimised} ^ {id(p) for p in parameters.values()}
    count = sum(objective.count(tree) for tree in trees)
    with prepared(model, objective, trees), perturb_zero_parameters(model):
        loss = objective(model, pack(trees)).values.sum() / count
        gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    missing = [
        name
        for name, gradient in zip(parameters, gradients, strict=True)
        if not name.endswith("bias") and (gradient is None or not 0 < gradient.norm().item() < float("inf"))
    ]
    detail = f"{len(parameters)} tensors"
    if missing:
        detail += f"; without gradient: {', '.join(missing[:4])}"
    if mismatched:
        detail += "; the optimizer holds other tensors than the model"
    return below("gradient-reaches-weights", len(missing) + len(mismatched), 0, detail=detail), missing


def sampled(gaps: Floats, largest: Floats, lengths: Floats, precision: Precision, stage: Stage = "before") -> Check:
    """I09: the log-probabilities recorded while sampling are those of a forward pass over the same ids.

    Args:
        gaps: Float[N], for each response the mean deviation of its tokens, in nats.
        largest: Float[N], their largest deviation.
        lengths: Float[N], their number.
        precision: of the forward pass; it sets the limits (`SAMPLED_LIMITS`).
        stage: when the samples were drawn.
    """
    mean_limit, limit = SAMPLED_LIMITS[precision]
    mean, most = float(np.average(gaps, weights=lengths)), float(np.max(largest))
    return result(
        "sampled-logps-match",
        passed=mean <= mean_limit and most <= limit,
        value=most,
        limit=limit,
        detail=f"mean {mean:.2g} (limit {mean_limit}) of {lengths.sum():.0f} tokens, {precision}",
        stage=stage,
    )


def sampled_table(table: Table, precision: Precision, stage: Stage = "before") -> list[Check]:
    """`sampled` for a table of fresh samples; nothing where the sampler recorded no log-probabilities."""
    columns = table.columns
    if "gap" not in columns:
        return []
    return [sampled(columns["gap"], columns["gap_max"], columns["length"], precision, stage)]


def sampled_rollout(policy: Policy, rollout: Rollout) -> list[Check]:
    """`sampled` for a rollout, whose log-probabilities are recomputed by the policy as it is now."""
    if rollout.logps is None:
        return []
    recomputed = [branch for tree in token_logps(policy, rollout.trees) for branch in tree]
    recorded = [branch for tree in rollout.logps for branch in tree]
    deviations = [(a - b).abs() for a, b in zip(recomputed, recorded, strict=True)]
    gaps, largest = (np.array([f(row).item() for row in deviations], dtype=np.float64) for f in (torch.mean, torch.max))
    lengths = np.array([len(row) for row in deviations], dtype=np.float64)
    return [sampled(gaps, largest, lengths, policy.packed.precision)]


def advantages(baseline: AnyBaseline, rewards: Float[Tensor, "G K"]) -> Check:
    """I10: the advantages of a first rollout are those that the baseline declares.

    Where they sum to 0 by prompt, they do, and equal rewards give 0. Where they are not scaled, a reward that is 1
    higher raises its own advantage by 1, less the weight that the baseline declares for a sample's own reward.
    """
    used = torch.ones_like(rewards).bool()
    average, greedy = rewards.mean().item(), rewards[:, 0].clone()

    def of(values: Tensor) -> Tensor:
        return baseline(Rewards(values, used, average, greedy))

    deviations = [0.0]
    if baseline.sums_to_zero:
        deviations += [of(rewards).sum(1).abs().max().item(), of(torch.full_like(rewards, average)).abs().max().item()]
    if not baseline.scales:
        raised = rewards.clone()
        raised[0, -1] += 1
        rise = (of(raised) - of(rewards))[0, -1].item()
        deviations.append(abs(rise - (1 - baseline.own_share(rewards.shape[1]))))
    largest = max(1.0, rewards.abs().max().item())
    return below("advantages-as-declared", max(deviations) / largest, 1e-5, detail=type(baseline).__name__)


def knows_vocabulary(model: TreeLM, trees: Sequence[TokenTree]) -> Check:
    """F09: pretrained weights predict these ids better than a uniform guess, so the tokenizer is the model's own."""
    shortest = sorted(trees, key=len)[:VOCABULARY_TREES]
    embedding: Any = model.model.get_input_embeddings()  # type: ignore[operator]
    with torch.no_grad():
        nll = -torch.cat([model(pack([tree])) for tree in shortest]).mean().item()
    return below("nll-below-uniform", nll, math.log(embedding.num_embeddings))


def warn_missing_start_token(policy: Policy, prompts: Sequence[Sequence[int]]) -> None:
    """Warn if plain-text prompts lack a start token that the model expects.

    Where the tokenizer or the model's configuration names a start token and prompts do not begin with it, their tokens
    after the first are scored with and without it.
    """
    start: Any = policy.tokenizer.bos_token_id
    if start is None:
        start = getattr(policy.model.config.get_text_config(), "bos_token_id", None)
    if not isinstance(start, int):
        return
    lacking = [tuple(prompt[:START_TOKENS]) for prompt in prompts if prompt[0] != start and len(prompt) > 3]
    bare = list(dict.fromkeys(lacking[:: math.ceil(len(lacking) / START_PROMPTS) or 1]))
    if not bare:
        return
    without, with_start = (
        branch_logps(policy, [TokenTree((*opening, first), (tuple(rest),), "") for first, *rest in bare]).numpy()
        for opening in ((), (start,))
    )
    gain = clustered_mean((with_start - without) / [len(prompt) - 1 for prompt in bare], range(len(bare)))
    if gain.value >= START_GAIN and gain.low > 0:
        log.warning(
            "prompts do not begin with the start token %r, which the model expects: with it, their tokens are likelier "
            "by %.2g [%.2g, %.2g] nats each (n=%d prompts); write it in front of each prompt, or set add_bos_token in "
            "tokenizer_config.json",
            policy.tokenizer.convert_ids_to_tokens(start), gain.value, gain.low, gain.high, gain.n,
        )  # fmt: skip


def swapped(margins: Callable[[Sequence[TokenTree]], Tensor], trees: Sequence[TokenTree]) -> Check:
    """I08: every margin changes its sign when the two responses of its pair are swapped.

    Args:
        margins: a function of pairs that returns Float[P].
        trees: pairs.
    """
    mirrored = [TokenTree(t.prompt, t.branches[::-1], t.group, t.ratings[::-1]) for t in trees]
    deviation = (margins(trees) + margins(mirrored)).abs().max().item()
    return below("swap-changes-sign", deviation, 1e-3)


FACTOR = 30
"""How far the rate may be from the usual one, as a factor."""
WEIGHT_SCALE = 0.02
"""The usual standard deviation of a weight."""
MIN_REACH = 1e-3
"""Least movement that a run must be able to give a weight, as a share of `WEIGHT_SCALE`."""


def usual_rate(usual: tuple[float, float, float], parameters: int, random: bool) -> float:
    """The usual learning rate for a model of this size.

    Args:
        usual: the method's rates from 1B parameters, at 100M, and under 20M.
        parameters: number of the model's parameters.
        random: whether the weights are random; such models count as the smallest.
    """
    large, middle, small = usual
    if random or parameters < 20_000_000:
        return small
    return large if parameters >= 1_000_000_000 else middle


def rate_check(usual: tuple[float, float, float], lr: float, steps: int, parameters: int, random: bool) -> Check:
    """Whether the rate is within a factor of 30 of the usual one, and the run long enough to move a weight.

    Args:
        usual: the method's rates from 1B parameters, at 100M, and under 20M.
        lr: the peak learning rate.
        steps: number of optimizer steps.
        parameters: number of the model's parameters.
        random: whether the weights are random.
    """
    rate = usual_rate(usual, parameters, random)
    reach = lr * steps / WEIGHT_SCALE
    return result(
        "learning-rate-usual",
        passed=rate / FACTOR <= lr <= rate * FACTOR and reach >= MIN_REACH,
        value=lr,
        limit=rate * FACTOR,
        detail=f"lr {lr:g}, usual {rate:g} for {parameters / 1e6:.1f}M parameters"
        f"{' with random weights' if random else ''}; {steps} steps move a weight by at most about {reach:.2g} of its "
        "scale",
        fix=f"use about {rate:g}, or accept with --skip-check learning-rate-usual",
    )
