"""The end of a training run: movement, saving and reloading, the measurement after, the verdict, the receipt."""

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from treeward.checks import closing, guards, identities
from treeward.checks.check import Check
from treeward.checks.receipt import receipt
from treeward.checks.verdict import decide
from treeward.data.prepare import Prepared
from treeward.data.splits import shuffled
from treeward.evaluation import versus
from treeward.evaluation.rewards import score_spread
from treeward.losses.divergences import ChiSquaredMixed
from treeward.models.artifact import annotate
from treeward.models.reward_model import RewardModel
from treeward.report.page import write_page
from treeward.rewards.texts import BadScore
from treeward.runner.budgets import trained_with
from treeward.runner.options import AnyRun, DPORun, verb_of
from treeward.runner.tasks import Task
from treeward.runs.directory import RunDirectory, finite, whole
from treeward.stats.intervals import Difference, against_half
from treeward.stats.tables import Comparison, Measurement, compare, known
from treeward.training.loop import fingerprint
from treeward.trees.text import sides

LOOKED_AT = 1_000
"""Training trees whose accuracy is measured where the held-out one is clearly below one half."""


@dataclass(frozen=True)
class Updates:
    """Optimiser steps: those taken before this session began, those taken now in all, those planned."""

    before: int
    taken: int
    planned: int


@dataclass(frozen=True)
class Moved:
    """The movement of the weights at the last step, and of those that are kept, the best by validation."""

    trained: closing.Movement
    kept: closing.Movement


@dataclass
class Prologue:
    """What is known before the first step: the task with its model, the data, the checks that were made."""

    task: Task
    data: Prepared
    checks: list[Check]
    gradient_missing: list[str]


def conclude(
    config: AnyRun,
    begun: Prologue,
    run: RunDirectory,
    before: Measurement,
    moved: Moved,
    updates: Updates,
    broken: Check | None,
    seconds: float,
) -> tuple[dict[str, Any], int]:
    """Write model, evaluation, samples, receipt and report; returns the receipt and the exit code."""
    task, data = begun.task, begun.data
    task.model.budgets = trained_with(config.data)
    with whole(run.path / "model", run.path / "adapter"):
        task.model.save(run.path / "model", run.path / "adapter")
    after, broken = _after(task, data, before, broken)
    main = compare(task.metric, before.table_of(task.metric), after.table_of(task.metric))
    others = _others(task, before, after)
    checks = [*begun.checks, *([broken] if broken else []), *_closing_checks(config, begun, run, moved, updates, after)]
    compared = [main, *others]
    said = versus.facts(before, after)
    checks += guards.judge_guards(compared)
    if "diversity" in said:
        checks += guards.collapse_guards(compared, said["diversity"], config.model.random)
    scorer = config.evaluation.scorer if "samples" in after.tables else None
    rule = task.rule(after)
    half = _to_half(after) if task.metric == "accuracy" else None
    if half is not None and guards.clearly_below_half(half):
        checks += _labels(task, data, config, half)
    verdict = decide(main, checks, rule, scorer, half)
    order = config.order(len(data.train))
    tokens = sum(len(data.train[row]) for i in range(updates.before, updates.taken) for row in order.batch(i))
    extra: dict[str, Any] = {"command": verb_of(config), "seconds": seconds, "tokens_per_second": tokens / seconds}
    if data.best_accuracy is not None:
        extra["best_reachable_accuracy"] = data.best_accuracy
    if rule is not None:
        extra["longer_wins"] = rule.facts()["before"]
    extra |= task.facts(after, data.held_out) | said
    if isinstance(task.model, RewardModel):
        annotate(run.path / "model", finite(_credentials(config, data, after)))
    found = receipt(
        verdict, main, others, checks, moved.kept, begun.gradient_missing, data,
        config.require, scorer, extra,
    )  # fmt: skip
    run.write_lines("evaluation.jsonl", _evaluation(before, after))
    run.write_lines("samples.jsonl", versus.side_by_side(before, after))
    run.write_json("receipt.json", found)
    write_page(run.path)
    return found, verdict.exit_code(config.require)


def _after(task: Task, data: Prepared, before: Measurement, broken: Check | None) -> tuple[Measurement, Check | None]:
    """The measurement after; where it cannot be made or holds no finite numbers, the one before again, and a failed
    check."""
    try:
        after = task.measure(data.held_out)
        after.check_finite()
    except (FloatingPointError, BadScore) as problem:
        failed = broken or not_finite(problem)
        parts = dict.fromkeys([failed.detail, str(problem), "what stands as after is the start"])
        return before, replace(failed, detail="; ".join(parts))
    return after, broken


def not_finite(problem: FloatingPointError | BadScore) -> Check:
    """F35 where a scorer gave a sample no number; F28 for losses, gradients and logits."""
    if isinstance(problem, BadScore):
        return Check("F35", "a finite score for every sample", False, ("F35",), "after", detail=str(problem))
    return Check("F28", "finite losses and gradients", False, ("F28",), "during", detail=str(problem))


def _to_half(measured: Measurement) -> Difference:
    table = measured.table_of("accuracy")
    return against_half(table.columns["accuracy"], table.groups)


def _labels(task: Task, data: Prepared, config: AnyRun, held_out: Difference) -> list[Check]:
    """F05, from the accuracy on a sample of the training part, which is measured for this alone."""
    trees = shuffled(((tree.group, tree) for tree in data.train), config.data.seed, "labels check")
    table = task.pairs(trees[:LOOKED_AT])
    if table is None:
        return []
    return [guards.labels_check(held_out, against_half(table.columns["accuracy"], table.groups))]


def _closing_checks(
    config: AnyRun,
    begun: Prologue,
    run: RunDirectory,
    moved: Moved,
    updates: Updates,
    after: Measurement,
) -> list[Check]:
    task = begun.task
    found = [
        *closing.movement_checks(moved.trained, config.lr > 0),
        closing.updates(updates.taken, updates.planned),
        closing.reload_check(task.model, run.path, identities.probe(begun.data.held_out)),
    ]
    if task.start is not None:
        found.append(closing.reference_unchanged(task.start))
    reference = getattr(task, "reference", None)
    if reference is not None and reference is not task.start and reference.hash is not None:
        found.append(closing.reference_unchanged(reference))
    chi_po = isinstance(config, DPORun) and isinstance(config.divergence, ChiSquaredMixed)
    found += closing.clamps(run.lines("metrics.jsonl"), chi_po)
    if "samples" in after.tables:
        found += identities.sampled_table(after.tables["samples"], task.model.packed.precision, "after")
        found.append(guards.k1_check(after.tables["samples"], config.evaluation.temperature))
    if "pairs" in after.tables and task.start is None:
        spread = score_spread(after.tables["pairs"])
        found.append(Check("F18", "spread of the scores", spread > 0, ("F18",), "after", spread, 0.0))
    return found


def _credentials(config: AnyRun, data: Prepared, after: Measurement) -> dict[str, Any]:
    """What a reward model's artifact says of its data, its accuracy, and the scale of its scores on held-out text."""
    found: dict[str, Any] = {
        "data": {
            "source": config.data.source,
            "format": data.format,
            "fingerprint": fingerprint(data.train),
            "trees": len(data.train),
        }
    }
    pairs = after.tables.get("pairs")
    if pairs is not None:
        scores = np.concatenate([pairs.columns["chosen"], pairs.columns["rejected"]])
        normalisation = {"mean": float(scores.mean()), "sd": float(scores.std(ddof=1)), "n": len(scores)}
        found |= {"accuracy": asdict(pairs.interval("accuracy")), "normalisation": normalisation}
    return found


def _others(task: Task, before: Measurement, after: Measurement) -> list[Comparison]:
    """Every known metric that was measured, but the main one."""
    names = dict.fromkeys(name for table in after.tables.values() for name in table.columns if known(name))
    return [
        compare(n, before.table_of(n), after.table_of(n)) for n in names if n != task.metric and _both(n, before, after)
    ]


def _both(name: str, before: Measurement, after: Measurement) -> bool:
    return list(before.table_of(name).groups) == list(after.table_of(name).groups)


def _evaluation(before: Measurement, after: Measurement) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for kind, table in after.tables.items():
        for a, b in zip(before.tables[kind].rows(), table.rows(), strict=True):
            group = b.pop("group")
            a.pop("group")
            both = {"sides": names} if (names := sides(group)) else {}
            rows.append({"group": group, **both, "kind": kind, "before": a, "after": b})
    return rows
