"""A training run: prepare, check, measure, train, measure again, and write the receipt.

Nothing is written before every check has passed. Resuming is the same road from the beginning, with the state put back
before the first step, so that nothing but the optimiser steps already taken is skipped.
"""

import logging
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml
from safetensors import SafetensorError

from treeward.checks import identities
from treeward.checks.check import Check, below, require
from treeward.checks.closing import Movement
from treeward.checks.data import data_checks, enough_groups, vocabulary_checks
from treeward.checks.rates import rate_check
from treeward.data.prepare import Prepared, prepare, unheld
from treeward.data.shapes import Purpose
from treeward.errors import UserError
from treeward.models.weights import snapshot
from treeward.rewards.texts import BadScore
from treeward.runner.environment import environment
from treeward.runner.finish import Moved, Prologue, Updates, conclude, not_finite
from treeward.runner.options import AnyRun, verb_of
from treeward.runner.progress import Interrupted, follow, interruptible
from treeward.runner.settings import dump
from treeward.runner.tasks import Task, task_of, with_again
from treeward.runs.directory import DiskFull, RunDirectory, alone, created, free_path, is_full, whole
from treeward.stats.tables import JUDGE, Measurement, metric
from treeward.training.loop import Step, accumulate
from treeward.training.state import TrainState, load_trainable, save_trainable
from treeward.trees.tokens import Tokenizer, TokenTree
from treeward.trees.verify import verify

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Finished:
    """Where the run is, its receipt, and the exit code that its verdict earns."""

    path: Path
    receipt: dict[str, Any]
    exit_code: int


def train(config: AnyRun, resume: RunDirectory | None = None) -> Finished:
    """Run a training command to its receipt.

    Raises:
        ChecksFailed: a check before the first step failed; no run directory is left.
        UserError: the configuration, model or data cannot be used, or another process works on this run; before the
            first step no run directory is left.
        DiskFull: a file of the run could not be written; the last checkpoint is kept.
        Interrupted: Ctrl-C; the state is saved.
    """
    if resume is None:
        free_path(config.name or verb_of(config), config.out)
    begun = prologue(config)
    before = with_again(begun.task, begun.task.measure(begun.data.held_out), begun.data.held_out)
    before.table_of(begun.task.metric)
    before.check_finite()
    begun.checks += require([*_all_measured(begun.task, before, begun.data.held_out), *_sampled(begun.task, before)])
    run = resume or created(config.name or verb_of(config), config.out)
    with _room(run, resume is not None), alone(run.path):
        if resume is None:
            run.write("config.yaml", yaml.safe_dump({"command": verb_of(config), **dump(config)}, sort_keys=False))
        return _run(config, begun, before, run, resume is not None)


@contextmanager
def _room(run: RunDirectory, resumed: bool) -> Iterator[None]:
    """Turn a write that failed for want of space into one line on what is kept and how to go on.

    A new run that took no step yet leaves no directory.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as problem:  # torch's archives raise RuntimeError
        if not is_full(problem):
            raise
        said = f"no space left on the disk of {str(run.path)!r}: free some, then "
        if (run.path / "receipt.json").exists():
            raise DiskFull(f"{said}`treeward report {run.path}` for the page; the receipt is written") from problem
        if not resumed and not run.lines("metrics.jsonl"):
            shutil.rmtree(run.path)
            raise DiskFull(f"{said}start the run again, or name another place with --out") from problem
        done = _done(run)
        kept = f"after step {done} of its last checkpoint" if done else "from the start, since it has no checkpoint"
        raise DiskFull(f"{said}`treeward resume {run.path}`, which goes on {kept}") from problem


def _run(config: AnyRun, begun: Prologue, before: Measurement, run: RunDirectory, resumed: bool) -> Finished:
    """Train and conclude in the run's directory, in which no other process works."""
    run.write_json("environment.json", environment(begun.task.model.packed))
    start = snapshot(begun.task.model.packed)
    clock = time.monotonic()
    broken: Check | None = None
    done = _done(run)
    trained: Movement | None = None
    try:
        taken = _loop(config, begun.task, begun.data, run, resumed)
        trained = Movement.since(begun.task.model, start)
        _keep_best(begun.task, run)
    except (FloatingPointError, BadScore) as problem:
        taken = max([done, *(row["step"] for row in run.lines("metrics.jsonl"))])
        broken = not_finite(problem)
        log.error("stopped: %s", problem)
    except ValueError:
        if not resumed and not run.lines("metrics.jsonl"):
            shutil.rmtree(run.path)
        raise
    updates = Updates(done, taken, config.total(len(begun.data.train)))
    kept = Movement.since(begun.task.model, start)
    moved = Moved(trained or kept, kept)
    receipt, code = conclude(config, begun, run, before, moved, updates, broken, time.monotonic() - clock)
    return Finished(run.path, receipt, code)


def prologue(config: AnyRun) -> Prologue:
    """Load, prepare and check everything; what `--dry-run` does.

    Raises:
        ChecksFailed: a check failed that was not accepted.
    """
    task = task_of(config)
    tokenizer_checks = vocabulary_checks(config.model, task.model.tokenizer, task.model.packed.model)
    require(tokenizer_checks, [id for id in config.skip_check if id == "F09" and tokenizer_checks])
    data = data_of(config, task.model.tokenizer, task.purpose, task.attributes)
    if data.best_accuracy is not None:
        log.info("best reachable accuracy on these pairs: %.3f (known: the labels' noise is)", data.best_accuracy)
    if not data.held_out:
        raise UserError(f"nothing is held out, and so there is no verdict: {unheld(data.account, config.data)}")
    embedding: Any = task.model.packed.model.get_input_embeddings()  # type: ignore[operator]
    checks = data_checks(data, task.model.tokenizer, embedding.num_embeddings, task.purpose)
    require([check for check in checks if check.id == "F09"])
    checks.append(enough_groups(data, task.verdict_groups(data.held_out)))
    found, missing = _model_checks(config, task, data)
    return Prologue(task, data, require([*tokenizer_checks, *checks, *found], config.skip_check), missing)


def data_of(config: AnyRun, tokenizer: Tokenizer, purpose: Purpose, attributes: Sequence[str] = ()) -> Prepared:
    """The data of a run; what is held out for the verdict has no group on which a checkpoint is chosen.

    `attributes` are the names of a model's ratings, in the order of its head.

    Raises:
        UserError: the data cannot be read, or nothing is left to train on.
    """
    data = prepare(config.data, tokenizer, purpose, attributes)
    log.info("columns: %s", data.account.layout)
    log.info("data: %s", data.account)
    if not data.train:
        raise UserError(f"data.source {config.data.source!r} leaves nothing to train on: {data.account}")
    steps, every = _schedule(config, data)
    data = data.apart(chooses=every < steps, seed=config.data.seed)
    log.info("trees: %s", ", ".join(f"{len(trees)} {part}" for part, trees in data.parts.items()))
    if data.verdict_on != "test" and data.held_out:
        log.info("%s", verdict_line(data.verdict_facts()))
    return data


def verdict_line(facts: Mapping[str, Any]) -> str:
    """Which groups give the verdict where the data has no test part; `facts` are those of `Prepared.verdict_facts`."""
    if facts["part"] == "validation":
        return f"no test part: all {facts['groups']} validation groups give the verdict, and nothing is chosen on them"
    return (
        f"no test part: {facts['groups']} validation groups give the verdict, the other {facts['chosen_on']} choose "
        "the checkpoint"
    )


def _schedule(config: AnyRun, data: Prepared) -> tuple[int, int]:
    """Steps in all, and steps between two measurements on the validation part."""
    order = config.order(len(data.train))
    return config.total(len(data.train)), config.evaluate_every or order.steps_per_epoch


def estimate(config: AnyRun, begun: Prologue) -> str:
    """Memory and time of the run to come: one step's forest is timed forward and backward, and rolled back."""
    model = begun.task.model.packed
    batch = begun.data.train[: config.batch_size]
    objective = begun.task.objective(batch)
    clock = time.monotonic()
    accumulate(model, batch, objective, config.token_budget or begun.task.model.token_budget)
    seconds = time.monotonic() - clock
    model.zero_grad(set_to_none=True)
    steps = config.total(len(begun.data.train))
    states = 8 * sum(p.numel() for p in model.parameters() if p.requires_grad)
    memory = (psutil.Process().memory_info().rss + states) / 1e9
    return f"about {seconds:.2g} s a step, {steps} steps: {steps * seconds / 60:.1f} min; about {memory:.1f} GB"


def _model_checks(config: AnyRun, task: Task, data: Prepared) -> tuple[list[Check], list[str]]:
    model = task.model
    everything = [tree for part in data.parts.values() for tree in part]
    found = verify(model.packed, everything, config.token_budget or model.token_budget)
    log.info("layout: %s, largest deviation from plain calls %.2g, gradients %.2g", found.backend,
             found.value_deviation, found.gradient_deviation)  # fmt: skip
    own = require(task.suits(data.train))
    probe = identities.probe(data.train)
    objective = task.objective(probe)
    total = config.total(len(data.train))
    state = TrainState(model.packed, config.order(len(data.train)), total, config)
    reach, missing = identities.reached(model.packed, objective, probe, state.parameters)
    parameters = sum(p.numel() for p in model.packed.parameters())
    return [
        identities.layout(found),
        *identities.passes(model.packed, probe),
        identities.accumulation(model.packed, objective, probe),
        reach,
        *own,
        *task.identities(probe),
        rate_check(verb_of(config), config.lr, total, parameters, config.model.random),
    ], missing


def _all_measured(task: Task, measured: Measurement, trees: Sequence[TokenTree]) -> list[Check]:
    """F49: texts and pairs have one row a held-out tree; reward models also leave ties out, which are no pairs."""
    table = measured.tables.get("texts" if task.purpose == "sft" else "pairs")
    if task.start is None or task.purpose not in ("sft", "pairs") or table is None:
        return []
    rows = len(table.groups)
    name, detail = "held-out examples without a row of their own", f"{rows} rows for {len(trees)} examples"
    return [below("F49", name, abs(rows - len(trees)), 0, ["F49"], detail=detail)]


def _sampled(task: Task, measured: Measurement) -> list[Check]:
    """I09, where the start was sampled from."""
    table = measured.tables.get("samples")
    return [] if table is None else identities.sampled_table(table, task.model.packed.precision)


def _loop(config: AnyRun, task: Task, data: Prepared, run: RunDirectory, resumed: bool) -> int:
    """Take the steps; log, measure, keep the best, save. Returns the number of updates taken."""
    total, every = _schedule(config, data)
    done = _done(run)
    resume = run.checkpoint(done) if done else None
    run.write_lines("metrics.jsonl", [row for row in run.lines("metrics.jsonl") if row["step"] <= done])
    if resumed:
        log.info("resuming from step %d of %d%s", done, total, "" if done else ": no checkpoint was saved")
    step: Step | None = None
    figures: dict[str, float] = {}
    with interruptible() as pressed:
        for step in follow(task.steps(data.train, resume), total, verb_of(config), done, figures):
            row: dict[str, Any] = {"step": step.index, **step.metrics}
            figures["loss"] = step.metrics["loss"]
            try:
                if data.parts["validation"] and (step.index % every == 0 or step.index == total):
                    row |= _validate(task, data.parts["validation"], step, run)
                    figures[f"validation {task.metric}"] = row[f"validation/{task.metric}"]
            finally:
                run.append("metrics.jsonl", row)
            if step.index % config.save_every == 0 or pressed:
                _save(step, run)
            if pressed:
                raise Interrupted(f"stopped after step {step.index} of {total}; go on with: treeward resume {run.path}")
    if step and run.best.exists():
        log.info("kept the weights of step %s, best by validation %s", step.state.notes["best_step"], task.metric)
    return step.index if step else done


def _keep_best(task: Task, run: RunDirectory) -> None:
    """Put the best measured weights back, where checkpoints were compared."""
    if run.best.exists():
        load_trainable(task.model.packed, run.best)


def _done(run: RunDirectory) -> int:
    """The steps that the last checkpoint stands for; 0 without one."""
    checkpoints = run.checkpoints()
    return int(checkpoints[-1].name.removeprefix("step-")) if checkpoints else 0


def _validate(task: Task, trees: Sequence[TokenTree], step: Step, run: RunDirectory) -> dict[str, float]:
    """Measure on the validation part; keep the weights if they are the best so far by the named metric."""
    measured = task.measure(trees)
    known = metric(task.metric)
    value = measured.table_of(known.name).mean(known.name)
    sign = 1 if known.higher_is_better else -1
    best = step.state.notes.get("best")
    if best is None or sign * value > sign * best:
        step.state.notes |= {"best": value, "best_step": step.index}
        temporary = run.best.with_name(".best.safetensors")
        temporary.parent.mkdir(exist_ok=True)
        with whole(temporary):
            save_trainable(task.model.packed, temporary)
            temporary.rename(run.best)
    found = {known.name: value}
    if "samples" in measured.tables:
        samples = measured.tables["samples"]
        shown = ("score", "kl", "entropy", "start_nll", "length")
        found |= {n: samples.mean(n) for n in samples.columns if n in shown or n.startswith(JUDGE)}
    return {f"validation/{name}": value for name, value in found.items()}


def _save(step: Step, run: RunDirectory) -> None:
    """Save the state, then drop older checkpoints."""
    step.state.save(run.checkpoint(step.index))
    for old in run.checkpoints()[:-1]:
        for file in old.iterdir():
            file.unlink()
        old.rmdir()
