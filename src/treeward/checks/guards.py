"""Checks of the trained model: guards of its fresh samples, the movement of the weights, and what was saved.

A failed guard against learning the wrong thing (F24, F32) makes a run `worse`, not `broken`: training did what the
reward asks for, and the result is not good.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from treeward.checks.check import Check, below, result
from treeward.checks.identities import exact
from treeward.models.policy import Policy
from treeward.models.reference import EMAReference, ReferenceModel
from treeward.models.reward_model import RewardModel
from treeward.models.weights import fingerprint, movement
from treeward.stats.intervals import Difference, by_group, holm
from treeward.stats.tables import JUDGE, Comparison, Table
from treeward.trees.tokens import TokenTree

KL_STANDARD_ERRORS = 4.0
"""Standard errors that k1 may differ from the Rao-Blackwellised KL. A limit of 3 would fail one correct run in 370, 4
one in 16,000."""
KL_ROUNDING, KL_RARE = 1e-4, 0.01
"""By how much the two may differ, however small their standard error is: nats, for rounding in fp32, and a share of the
KL, for tokens so rare under a nearly deterministic policy that the exact sum has them and no sample does."""
MAX_INCREASE = {
    "repetition": (0.2, "repetition-limited"),
    "start_nll": (math.log(4), "samples-likely-under-start"),
    "kl_token": (2.0, "kl-limited"),
}
"""By column, how far the whole interval of the change may go up, and the slug of the check. ln 4 is four times the
perplexity. A KL of 2 nats a token is far above what a change of style needs: the run that moved furthest on film
reviews had 0.5 (docs/on-policy-pairs.md)."""
MAX_BIGRAMS_LOST = 0.5
"""Share of the start model's distinct bigrams that the samples may lose with the whole interval."""

CLEAR_P = 1e-4
"""p below which an accuracy is clearly on one side of one half. Both parts are so by chance in under 1 of 10^8 runs."""

MAX_CUT = 0.8
"""Largest share of the first samples that may be cut off at the length limit."""

WATCHED_STEPS = 20
"""Steps over which the samples of a rollout are watched."""
CUT_IN_A_ROW = 3
"""Steps in a row in which no sample ends that stop a run."""
MAX_FLAT = 0.9
"""Largest share of prompts whose samples all score alike, over the watched steps."""
MIN_SPREAD = 0.01
"""Smallest spread of a prompt's scores over the watched steps, as a share of that of the first steps; below it the
reward is saturated."""
MORE_REPETITION = 0.5
"""By how much the repetition of samples may rise while training."""
MIN_ENTROPY, MIN_DISTINCT = 0.05, 0.05
"""Shares of the first steps' entropy and of distinct samples; below both the policy has collapsed."""
MIN_EFFECTIVE = 0.3
"""Smallest effective share of the samples of another sampler."""
MAX_GAP = 0.05
"""Largest mean difference of a token's sampled and recomputed log-probability, in nats."""


def k1_check(table: Table, temperature: float) -> Check:
    """Whether both estimates of KL(policy, start) on these samples have the same mean, with errors clustered by prompt.

    The limit is that of the t distribution at the probability of `KL_STANDARD_ERRORS` normal errors. The check is
    skipped where the samples are not the policy's own distribution (temperature other than 1) and for a single prompt.

    Args:
        table: samples with the columns `k1` and `kl`, in nats a response.
        temperature: at which they were sampled.
    """
    if temperature != 1:
        return result("kl-estimates-agree", passed=None, detail=f"the temperature is {temperature:g}, not 1")
    difference = by_group(table.columns["k1"] - table.columns["kl"], table.groups)
    if len(difference) < 2:
        return result("kl-estimates-agree", passed=None, detail="a single prompt has no standard error")
    error = float(difference.std(ddof=1)) / math.sqrt(len(difference))
    limit = float(stats.t.isf(stats.norm.sf(KL_STANDARD_ERRORS), len(difference) - 1))
    mean = float(difference.mean())
    k1, kl = (float(np.mean(by_group(table.columns[c], table.groups))) for c in ("k1", "kl"))
    errors = 0.0 if abs(mean) <= max(KL_ROUNDING, KL_RARE * kl) else abs(mean) / max(error, 1e-12)
    detail = f"k1 {k1:.4g}, Rao-Blackwellised {kl:.4g} nats a response, n={len(difference)}"
    return result("kl-estimates-agree", passed=errors <= limit, value=errors, limit=limit, detail=detail)


def first_rollout(scores: Sequence[Sequence[float]], texts: Sequence[str]) -> Check:
    """Whether any of the first prompts has samples with different scores; without one there is nothing to learn.

    Args:
        scores: one row of scores for each prompt.
        texts: some samples to show.
    """
    differing = sum(max(row) > min(row) for row in scores)
    detail = f"of the first {len(scores)}"
    if not differing:
        low, middle, high = np.quantile([score for row in scores for score in row], (0, 0.5, 1))
        shown = ", ".join(repr(text[:40]) for text in texts[:3])
        detail += f"; scores {low:.3g} to {high:.3g}, median {middle:.3g}; samples {shown}"
    return result("first-samples-differ", passed=differing > 0, value=differing, limit=1, detail=detail)


def first_cut(ended: Sequence[bool], limit: int) -> Check:
    """Whether enough of the first samples end within `limit` tokens."""
    share = 1 - sum(ended) / len(ended)
    detail = f"{len(ended) - sum(ended)} of {len(ended)} samples have no end within max_new_tokens {limit}"
    return result("first-samples-end", passed=share <= MAX_CUT, value=share, limit=MAX_CUT, detail=detail)


def judge_guards(comparisons: Sequence[Comparison]) -> list[Check]:
    """One check for each judge: it must not fall while the main metric, the first comparison, improves.

    Both intervals must exclude zero for a failure. The p values of several judges are corrected for their number
    (Holm 1979), so that judges without a change seldom fail.
    """
    main, *others = comparisons
    judges = [comparison for comparison in others if comparison.metric.name.startswith(JUDGE)]
    corrected = holm([judge.difference.p for judge in judges])
    return [_judge_check(main, judge, p, len(judges)) for judge, p in zip(judges, corrected, strict=True)]


def _judge_check(main: Comparison, judge: Comparison, p: float, judges: int) -> Check:
    name = judge.metric.name.removeprefix(JUDGE)
    changes = ", ".join(
        f"{label} {change.value:+.3g} [{change.low:+.3g}, {change.high:+.3g}]"
        for label, change in ((main.metric.name, main.difference), (f"judge {name}", judge.difference))
    )
    corrected = f", Holm's p over {judges} judges" if judges > 1 else ""
    return result(
        "judges-agree",
        passed=not (main.outcome == "improved" and judge.outcome == "worse" and p < 0.05),
        value=judge.difference.value,
        detail=f"{changes}; p={p:.2g}{corrected}",
    )


def labels_check(held_out: Difference, training: Difference) -> Check:
    """Whether the accuracies of the two parts are not clearly on opposite sides: held out below, training above half.

    A model learns labels that are reversed everywhere. Only labels that are reversed in one part give accuracies on
    opposite sides.

    Args:
        held_out: the difference of the held-out accuracy from one half.
        training: the same for the training part.
    """
    opposite = clearly_below_half(held_out) and training.value > 0 and training.p < CLEAR_P
    detail = (
        f"accuracy {0.5 + held_out.value:.3g} held out (p={held_out.p:.2g}), {0.5 + training.value:.3g} on the "
        f"training part (p={training.p:.2g})"
    )
    fix = "the labels or their order are reversed in one of the parts: look at both"
    return result("labels-agree-between-parts", passed=not opposite, detail=detail, fix=fix)


def clearly_below_half(accuracy: Difference) -> bool:
    """Whether an accuracy, given as its difference from one half, is below one half with p < `CLEAR_P`."""
    return accuracy.value < 0 and accuracy.p < CLEAR_P


def collapse_guards(comparisons: Sequence[Comparison], diversity: Mapping[str, Any], random_start: bool) -> list[Check]:
    """Whether fresh samples became repetitive, unlike language, or all alike.

    A check fails only where the whole interval is past its limit (`MAX_INCREASE`, `MAX_BIGRAMS_LOST`). There are none
    for a start with random weights, whose samples are not text, and none where the main metric, the first comparison,
    is the NLL of given text: then moving away from the start is expected.

    Args:
        comparisons: the metrics of fresh samples, before and after; the main metric is first.
        diversity: the facts of that name from `evaluation.versus.facts`.
        random_start: whether the start has random weights.
    """
    if random_start or comparisons[0].metric.name == "nll":
        return []
    low = {comparison.metric.name: comparison.difference.low for comparison in comparisons}
    bigrams = diversity["distinct_2"]
    lost = -bigrams["difference"]["high"] / max(bigrams["before"]["value"], 1e-12)
    measured = [(slug, low[column], limit) for column, (limit, slug) in MAX_INCREASE.items() if column in low]
    measured.append(("bigrams-kept", lost, MAX_BIGRAMS_LOST))
    return [result(slug, passed=not value > limit, value=value, limit=limit) for slug, value, limit in measured]


MAX_CLIPPED = 0.01
"""Largest share of a run's pairs that may have no gradient because of `loss.clip`."""
MIN_MOVEMENT = 1e-8
"""Least movement of the weights, relative to their norm."""


@dataclass(frozen=True)
class Movement:
    """How far the trainable weights moved, relative to their norm at the start: in all and by module.

    A module that was all zeros, such as a new head, has no such ratio: its entry is "from zero".
    """

    relative_update: float
    by_module: dict[str, float | str]
    parameters_unmoved: list[str]

    @classmethod
    def since(cls, model: Policy | RewardModel, start: Mapping[str, Tensor]) -> "Movement":
        """The movement of a model since `weights.snapshot` made `start`."""
        norms = movement(model.packed, start)
        modules: dict[str, list[float]] = {}
        for name, (change, norm) in norms.items():
            total = modules.setdefault(_module_of(name), [0.0, 0.0])
            total[0] += change**2
            total[1] += norm**2
        change = sum(c for c, _ in modules.values()) ** 0.5
        norm = sum(n for _, n in modules.values()) ** 0.5
        by_module = {name: _ratio(c**0.5, n**0.5) for name, (c, n) in modules.items()}
        relative = change / norm if norm else math.inf if change else 0.0
        return cls(relative, by_module, [name for name, (c, _) in norms.items() if c == 0])


def reference_follows(reference: EMAReference, start: Mapping[str, Tensor], policy: Movement, updates: int) -> Check:
    """F39: how far the averaged reference has moved, as a share of what it would have behind a steady drift.

    Behind a policy that moves by the same vector in each of n updates, a reference with rate mu ends
    (1 - mu)/mu (1 - (1 - mu)^n) updates behind.

    Args:
        reference: The reference after training.
        start: The trainable parameters before it.
        policy: The movement of the policy since then.
        updates: How often the reference should have been updated.
    """
    rate = reference.rate
    behind = (1 - rate) / rate * (1 - (1 - rate) ** updates) if rate else updates
    share = 1 - behind / updates if updates else 0.0
    if not share or not policy.relative_update:
        return result("reference-follows-policy", passed=None, detail=f"nothing to follow: rate {rate:g}")
    now = {name: p.detach().cpu() for name, p in reference.packed.named_parameters()}
    moved = math.sqrt(sum(float((now[name] - first).double().square().sum()) for name, first in start.items()))
    norm = math.sqrt(sum(float(first.double().square().sum()) for first in start.values()))
    followed = moved / norm / policy.relative_update / share
    detail = f"rate {rate:g}, {updates} updates: {share:.1%} of the policy's way behind a steady drift"
    return result("reference-follows-policy", passed=followed >= 0.5, value=followed, limit=0.5, detail=detail)


def _ratio(change: float, norm: float) -> float | str:
    """The change relative to the norm at the start; "from zero" where that norm was zero."""
    if norm == 0:
        return "from zero" if change else 0.0
    return change / norm


def _module_of(name: str) -> str:
    """The block that a parameter belongs to: its name up to and including the first number."""
    parts = name.removeprefix("model.").split(".")
    for place, part in enumerate(parts):
        if part.isdigit():
            return ".".join(parts[: place + 1])
    return ".".join(parts[:-1])


def movement_checks(movement: Movement, expected: bool) -> list[Check]:
    """Whether the weights moved at all, and every trainable tensor did (biases excepted).

    `expected` is False where the learning rate is zero; then the first of the two is skipped.
    """
    unmoved = [name for name in movement.parameters_unmoved if not name.endswith("bias")]
    change = movement.relative_update
    moved = not change < MIN_MOVEMENT if expected else None
    return [
        result("weights-moved", passed=moved, value=change, limit=MIN_MOVEMENT),
        below("every-tensor-moved", len(unmoved), 0, detail=", ".join(unmoved[:4])),
    ]


def updates_check(taken: int, planned: int) -> Check:
    """Whether at least 95 % of the planned optimizer steps were taken."""
    return below("planned-updates-taken", 1 - taken / planned, 0.05, detail=f"{taken} of {planned}")


def clip_checks(steps: Sequence[Mapping[str, Any]], chi_po: bool) -> list[Check]:
    """The share of log-ratios in a divergence's linear tail, and of pairs without a gradient because of `loss.clip`.

    The tail has a gradient, so its share is reported only. The clip may apply to 1 % of the pairs; with chi-PO, whose
    objective includes its clip, that share is reported only, too.

    Args:
        steps: the metrics of each step; each check exists only where they have its column.
        chi_po: whether the objective is chi-PO.
    """
    tail, clipped = (
        [float(step[column]) for step in steps if step.get(column) is not None]
        for column in ("divergence/clamped", "loss/clipped")
    )
    checks = []
    if tail:
        detail = "reported only: the tail has a gradient"
        checks.append(result("divergence-tail", passed=True, value=fmean(tail), detail=detail))
    if clipped and chi_po:
        detail = "reported only: chi-PO includes this clip"
        checks.append(result("clip-seldom-binds", passed=True, value=fmean(clipped), detail=detail))
    elif clipped:
        checks.append(below("clip-seldom-binds", fmean(clipped), MAX_CLIPPED))
    return checks


def rollout_checks(steps: Sequence[Mapping[str, Any]], fixed_length: bool = False) -> list[Check]:
    """Whether the last steps' samples can teach: their scores differ, they end, and they are the policy's own.

    Args:
        steps: the metrics of each step so far.
        fixed_length: whether responses without an end token are wanted.
    """
    last, recent, first = steps[-1], steps[-WATCHED_STEPS:], steps[:WATCHED_STEPS]
    where = f"step {last['step']}"
    checks = []
    if "sampler/effective" in last:
        lost = 1 - last["sampler/effective"]
        checks.append(
            below("samples-effective", lost, 1 - MIN_EFFECTIVE, detail=f"{where}, gap {last['sampler/gap']:.3g}")
        )
    else:
        checks.append(below("sampler-follows-policy", last["sampler/gap"], MAX_GAP, detail=where))
    if "sampler/probe_gap" in last:
        checks.append(below("sampler-follows-policy", last["sampler/probe_gap"], MAX_GAP, detail=f"probe, {where}"))
    enough = len(recent) == WATCHED_STEPS
    if enough and fmean(step["score"] for step in recent) <= fmean(step["score"] for step in first):
        share = fmean(step["no_signal"] for step in recent)
        detail = f"score {last['score']:.4g}"
        spreads = [fmean(step["reward_std"] for step in part) for part in (first, recent) if "reward_std" in last]
        if spreads and spreads[1] < MIN_SPREAD * spreads[0]:
            share, detail = 1.0, f"{detail}; spread {spreads[1]:.3g} of a prompt's scores, {spreads[0]:.3g} at first"
        checks.append(below("rollouts-differ", share, MAX_FLAT, detail=detail))
    if not fixed_length:
        in_a_row = len(steps) >= CUT_IN_A_ROW and not any(step["ended"] for step in steps[-CUT_IN_A_ROW:])
        if in_a_row or enough:
            share = 1.0 if in_a_row else 1 - fmean(step["ended"] for step in recent)
            checks.append(below("rollouts-end", share, MAX_CUT, detail=f"mean length {last['length']:.4g} tokens"))
    return checks


def collapse(steps: Sequence[Mapping[str, Any]]) -> str | None:
    """Why the last steps' samples are no longer worth training on: they repeat themselves, or are nearly all one text.

    Args:
        steps: the metrics of each step so far.
    """
    if len(steps) < 2 * WATCHED_STEPS:
        return None
    first, recent = (
        {name: fmean(step[name] for step in part) for name in ("entropy", "distinct", "repetition")}
        for part in (steps[:WATCHED_STEPS], steps[-WATCHED_STEPS:])
    )
    if recent["repetition"] > first["repetition"] + MORE_REPETITION:
        return (
            f"the samples repeat themselves: {recent['repetition']:.0%} of their 4-token sequences, "
            f"{first['repetition']:.0%} at first; raise kl.beta or change the reward"
        )
    if recent["entropy"] < MIN_ENTROPY * first["entropy"] and recent["distinct"] < MIN_DISTINCT:
        return (
            f"the policy has collapsed: entropy {recent['entropy']:.3g} nats a token, {first['entropy']:.3g} at first, "
            f"and {recent['distinct']:.0%} of the samples differ from each other; raise kl.beta or change the reward"
        )
    return None


def reference_unchanged(reference: ReferenceModel) -> Check:
    """Whether a frozen reference model has the weights that it had at the start."""
    same = reference.hash is None or reference.hash == fingerprint(reference.packed)
    return result("reference-unchanged", passed=same)


def reload_check(model: Policy | RewardModel, directory: Path, trees: list[TokenTree]) -> Check:
    """Whether the saved model, loaded by plain transformers, has the weights and values of the one in memory.

    The weights must be equal bit for bit, unless an adapter was merged into them; the values up to rounding.

    Args:
        model: the trained model.
        directory: the run directory, whose folder `model` holds the saved one.
        trees: a few trees whose values are compared, one plain row each.
    """
    auto = AutoModelForCausalLM if isinstance(model, Policy) else AutoModelForSequenceClassification
    saved = auto.from_pretrained(directory / "model", dtype=torch.float32, local_files_only=True)
    saved = saved.to(model.packed.device).eval()
    with exact(model.packed), torch.no_grad():
        deviation = max(_deviation(model, saved, tree) for tree in trees)
    same = model.adapter is not None or fingerprint(saved) == fingerprint(model.packed.model)
    return result(
        "saved-equals-trained",
        passed=same and deviation <= 1e-4,
        value=deviation,
        limit=1e-4,
        detail="" if same else "the saved weights are not those in memory",
    )


def _deviation(model: Policy | RewardModel, saved: torch.nn.Module, tree: TokenTree) -> float:
    """The largest difference between the values of the first branch in memory and from the saved model."""
    ids = torch.tensor([tree.rows()[0]], device=model.packed.device)
    in_memory = model.packed.unpacked(tree, 0)
    logits = saved(input_ids=ids).logits
    if isinstance(model, RewardModel):
        return float((model.packed.outputs_of(logits) - in_memory).abs().max())
    start = len(tree.prompt)
    predictions = logits[0, start - 1 : -1].float()
    logps = predictions.gather(1, ids[0, start:, None]).squeeze(1) - predictions.logsumexp(1)
    return float((logps - in_memory).abs().max())
