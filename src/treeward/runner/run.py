"""A training run, from configuration to receipt: prepare, check, measure, train, measure again, write the receipt.

`run` is the whole sequence for every method. Nothing is written before every check has passed. Resuming repeats the
set-up and restores the last checkpoint before the first step.
"""

import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import yaml
from safetensors import SafetensorError

from treeward.checks import guards, identities
from treeward.checks.check import Check, below, require, result
from treeward.checks.data import data_checks, enough_groups, vocabulary_checks
from treeward.checks.guards import Movement
from treeward.checks.identities import rate_check
from treeward.checks.receipt import data_facts, receipt, to_half
from treeward.data.prepare import unheld
from treeward.data.splits import shuffled
from treeward.data.store import Prepared
from treeward.errors import UserError
from treeward.evaluation import versus
from treeward.evaluation.rewards import score_spread
from treeward.losses.divergences import ChiSquaredMixed
from treeward.methods.method import Method, RunConfig
from treeward.models import weights
from treeward.models.artifact import annotate, start_of
from treeward.models.policy import Policy
from treeward.models.reference import EMAReference, ReferenceModel
from treeward.models.reward_model import RewardModel
from treeward.report.page import write_page
from treeward.rewards.scorers import BadScore
from treeward.runner.budgets import trained_with
from treeward.runner.process import environment, peak_gb, prepare_process
from treeward.runner.progress import Interrupted, Reporter, TerminalReporter, interruptible
from treeward.runner.settings import dump
from treeward.runs.directory import DiskFull, RunDirectory, alone, created, finite, free_path, is_full, whole
from treeward.runtime import Runtime
from treeward.stats.intervals import Difference, against_half
from treeward.stats.tables import JUDGE, Measurement, metric
from treeward.training.batches import Batches
from treeward.training.checkpoints import MustMatch, load_trainable, save_trainable
from treeward.training.loop import Loop, Stateful, Step, TrainingConfig
from treeward.trees.rollout import Rollout
from treeward.trees.text import split_group
from treeward.trees.tokens import TokenTree
from treeward.trees.verify import verify

log = logging.getLogger(__name__)

ROLLOUTS = "rollouts.jsonl"
"""Every sample that was trained on, with its step and score."""
SAMPLES_BY_STEP = "samples-by-step.jsonl"
FIXED = 4
"""Prompts of the validation part whose samples are kept at each measurement."""
LABELS_SAMPLE = 1_000
"""Training trees whose accuracy is measured if the held-out accuracy is clearly below one half."""


@dataclass(frozen=True)
class Finished:
    """Where the run is, its receipt, and the exit code of its verdict."""

    path: Path
    receipt: dict[str, Any]
    exit_code: int


@dataclass
class Setup:
    """Everything that a run has before its first step, all checks passed; `probe` are trees that checks ran on."""

    config: RunConfig
    method: Method
    data: Prepared
    batches: Batches[TokenTree]
    loop: Loop
    checks: list[Check]
    gradient_missing: list[str]
    probe: list[TokenTree]

    @property
    def validate_every(self) -> int:
        """Steps between two measurements on the validation part."""
        return self.config.evaluate_every or self.batches.per_epoch * self.config.steps_per_batch

    @property
    def steps(self) -> int:
        """Planned optimizer steps."""
        return len(self.batches) * self.config.steps_per_batch


@dataclass(frozen=True)
class Trained:
    """What the training part did: steps taken and planned; how far the weights moved, at the last step and of the step
    that is kept (the best by validation); what broke it, or why it stopped early; the seconds, those of optimizer
    steps among them, and packed tokens since it began or resumed; and checks of what only training sees.
    """

    taken: int
    planned: int
    last_movement: Movement
    kept_movement: Movement
    broken: Check | None
    stopped: str | None
    seconds: float
    step_seconds: float
    tokens: int
    checks: Sequence[Check] = ()


def run(
    config: RunConfig,
    method: Callable[[Any], Method],
    *,
    resume: RunDirectory | None = None,
    reporter: Reporter | None = None,
    runtime: Runtime | None = None,
) -> Finished:
    """Run a training method to its receipt.

    Args:
        config: The configuration, of the method's `Config` class.
        method: The method's class, or any function from the configuration to a method (to pass a sampler or scorer).
        resume: The directory of a stopped run with the same configuration.
        reporter: Is told about each step; by default the terminal.
        runtime: This process among several; by default from `torch.distributed`.

    Raises:
        ChecksFailed: a check before the first step failed; no run directory is left.
        UserError: the configuration, model or data cannot be used, or another process works on this run; no run
            directory is left if no step was taken.
        DiskFull: a file of the run could not be written; the last checkpoint is kept.
        Interrupted: Ctrl-C; the state is saved.
    """
    if resume is None and config.out is not None:
        free_path("", config.out)  # refuse an existing directory before the model is loaded
    setup = set_up(config, method, runtime=runtime)
    before = measure_start(setup)
    setup.checks += require(setup.method.precompute(setup.batches.used_trees()))
    directory = resume or created(config.name or setup.method.name, config.out)
    with _errors_of(directory, resumed=resume is not None), alone(directory.path):
        if resume is None:
            command = {"command": setup.method.name, **dump(config)}
            directory.write("config.yaml", yaml.safe_dump(command, sort_keys=False))
        directory.write_json("environment.json", environment(setup.method.model.packed))
        trained = train(setup, directory, resume is not None, reporter or TerminalReporter())
        return conclude(setup, directory, before, trained)


# Before the first step


def set_up(config: RunConfig, method: Callable[[Any], Method], *, runtime: Runtime | None = None) -> Setup:
    """Load, prepare and check everything; what `--dry-run` does.

    Raises:
        ChecksFailed: a check failed that was not accepted.
    """
    built = method(config)
    model = built.model
    prepare_process(model)
    tokenizer_checks = vocabulary_checks(config.model, model.tokenizer, model.packed.model)
    require(tokenizer_checks, config.skip_check, more_to_come=True)
    data = data_of(config, built.prepare(model.tokenizer))
    if data.best_accuracy is not None:
        log.info("best reachable accuracy on these pairs: %.3f (known from the label noise)", data.best_accuracy)
    if not data.held_out:
        raise UserError(f"nothing is held out, so there is no verdict: {unheld(data.account, config.data)}")
    embedding: Any = model.packed.model.get_input_embeddings()  # type: ignore[operator]
    checks = data_checks(data, model.tokenizer, embedding.num_embeddings, built.purpose)
    require([check for check in checks if check.id == "F09"])
    checks.append(enough_groups(data, built.verdict_groups(data.held_out)))
    batches = config.batches(data.train)
    loop = Loop.from_config(model, built.objective, config, len(batches) * config.steps_per_batch, runtime)
    model_checks, missing, probe = _model_checks(config, built, data, loop)
    accepted = require([*tokenizer_checks, *checks, *model_checks], config.skip_check)
    return Setup(config, built, data, batches, loop, accepted, missing, probe)


def data_of(config: RunConfig, data: Prepared) -> Prepared:
    """The prepared data of a run, parted so that no checkpoint is selected on the groups that give the verdict.

    Raises:
        UserError: nothing is left to train on.
    """
    log.info("columns: %s", data.account.layout)
    log.info("data: %s", data.account)
    if not data.train:
        raise UserError(f"data.source {config.data.source!r} leaves nothing to train on: {data.account}")
    batches = config.batches(data.train)
    per_epoch, steps = (count * config.steps_per_batch for count in (batches.per_epoch, len(batches)))
    selects = (config.evaluate_every or per_epoch) < steps
    data = data.apart(chooses=selects, seed=config.data.seed)
    log.info("trees: %s", ", ".join(f"{len(trees)} {part}" for part, trees in data.parts.items()))
    if data.verdict_on != "test" and data.held_out:
        log.info("%s", verdict_line(data.verdict_facts()))
    return data


def verdict_line(facts: Mapping[str, Any]) -> str:
    """Which groups give the verdict of data without a test part; `facts` come from `Prepared.verdict_facts`."""
    if facts["part"] == "validation":
        return f"no test part: all {facts['groups']} validation groups give the verdict, and select no checkpoint"
    return (
        f"no test part: {facts['groups']} validation groups give the verdict, the other "
        f"{facts['chosen_on']} select the checkpoint"
    )


def _model_checks(
    config: RunConfig, method: Method, data: Prepared, loop: Loop
) -> tuple[list[Check], list[str], list[TokenTree]]:
    """The checks that run the model, on the objective and the optimizer that train; tensors without gradient; and the
    trees that the checks ran on.
    """
    packed = method.model.packed
    examples, example_checks = method.examples(data.train)
    held_out = [tree for part in ("validation", "test") for tree in data.parts[part] if tree.branches]
    verification = verify(packed, [*examples, *held_out], loop.token_budget)
    log.info(
        "layout: %s, largest deviation from plain calls %.2g, gradients %.2g",
        verification.backend,
        verification.value_deviation,
        verification.gradient_deviation,
    )
    if isinstance(method.model, Policy) and not config.model.random:
        texts = zip(data.texts["train"], data.parts["train"], strict=True)
        identities.warn_missing_start_token(
            method.model, [ids.prompt for text, ids in texts if isinstance(text.prompt, str)]
        )
    data_fit = require(method.check_data(data.train))
    probe = identities.probe(examples)
    gradients, missing = identities.reached(packed, method.objective, probe, loop.parameters)
    parameters = sum(p.numel() for p in packed.parameters())
    steps = len(config.batches(data.train)) * config.steps_per_batch
    checks = [
        identities.layout(verification),
        *identities.passes(packed, probe),
        identities.accumulation(packed, method.objective, probe),
        gradients,
        *data_fit,
        *example_checks,
        *method.identities(probe),
        *identities.weights_reach_gradient(loop, probe),
        rate_check(method.usual_lr, config.lr, steps, parameters, config.model.random),
    ]
    return checks, missing, probe


def measure_start(setup: Setup) -> Measurement:
    """The start model on the held-out part, with the checks that only this measurement allows.

    Raises:
        ChecksFailed: held-out examples are missing, or the samples are not the model's.
        FloatingPointError: a value is not finite.
    """
    method, trees = setup.method, setup.data.held_out
    before = method.measure(trees)
    again = method.measure_again(trees)
    if again is not None:
        before = replace(before, tables={**before.tables, versus.AGAIN: again})
    before.table_of(method.metric)
    before.check_finite()
    setup.checks += require([*_all_measured(method, before, trees), *_sampled(method, before, "before")])
    return before


def _all_measured(method: Method, measured: Measurement, trees: Sequence[TokenTree]) -> list[Check]:
    """F49: texts and pairs have one row for each held-out tree. Reward models leave out ties."""
    table = measured.tables.get("texts" if method.purpose == "sft" else "pairs")
    if method.start is None or method.purpose not in ("sft", "pairs") or table is None:
        return []
    rows = len(table.groups)
    return [below("every-example-measured", abs(rows - len(trees)), 0, detail=f"{rows} rows for {len(trees)} examples")]


def _sampled(method: Method, measured: Measurement, stage: Any) -> list[Check]:
    """I09, where the model was sampled from."""
    table = measured.tables.get("samples")
    return [] if table is None else identities.sampled_table(table, method.model.packed.precision, stage)


def estimate(setup: Setup) -> str:
    """Memory and time of the run to come: one step's forward and backward pass is timed; no update is made."""
    packed = setup.method.model.packed
    clock = time.monotonic()
    setup.loop.backward(setup.method.batch(setup.data.train[: setup.config.batch_size], 0))
    seconds = time.monotonic() - clock
    setup.loop.discard()
    steps = setup.steps
    states = 8 * sum(p.numel() for p in packed.parameters() if p.requires_grad)
    memory = (psutil.Process().memory_info().rss + states) / 1e9
    return f"about {seconds:.2g} s a step, {steps} steps: {steps * seconds / 60:.1f} min; about {memory:.1f} GB"


# Training


class Best:
    """The best validation value so far, and its step; saved with the loop."""

    def __init__(self) -> None:
        self.value: float | None = None
        self.step = 0

    def state_dict(self) -> dict[str, Any]:
        """Both."""
        return {"value": self.value, "step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put both back."""
        self.value, self.step = state["value"], state["step"]


class Clock:
    """The time since it was made, and what of it was spent on named things: in all, and the last time each."""

    def __init__(self) -> None:
        self.begun = time.monotonic()
        self.spent: dict[str, float] = {}
        self.last: dict[str, float] = {}

    @property
    def seconds(self) -> float:
        """Since it was made."""
        return time.monotonic() - self.begun

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Count what is inside."""
        begun = time.monotonic()
        yield
        self.last[name] = time.monotonic() - begun
        self.spent[name] = self.spent.get(name, 0.0) + self.last[name]


def train(setup: Setup, directory: RunDirectory, resumed: bool, reporter: Reporter) -> Trained:
    """Take the steps: log, validate, keep the best, save checkpoints. The best weights are put back at the end.

    A loss, gradient or score that is not finite ends training with a failed check; the run still gets its receipt.
    """
    method, loop, batches = setup.method, setup.loop, setup.batches
    start, best, clock = weights.snapshot(method.model.packed), Best(), Clock()
    states: dict[str, Stateful] = {"batches": batches, "best": best, "run": MustMatch(_identity(setup))}
    total, done, per_batch = setup.steps, _last_checkpoint(directory), setup.config.steps_per_batch
    if done:
        loop.load(directory.checkpoint(done), **states)
    if resumed:
        log.info("resuming from step %d of %d%s", done, total, "" if done else ": no checkpoint was saved")
    rows = _begin_files(setup, directory, done)
    broken, stopped, last_movement, tokens = None, None, None, 0
    figures: dict[str, float] = {}
    try:
        with interruptible() as pressed:
            again = ((trees, n) for trees in batches for n in range(1, per_batch + 1)) if done < total else ()
            for trees, pass_number in reporter.progress(again, total, method.name, done, figures):
                if pass_number == 1:
                    with clock.of("batches"):
                        batch = _batch(method, trees, loop.index + 1, directory)
                tokens += sum(map(len, batch.trees if isinstance(batch, Rollout) else batch))
                with clock.of("steps"):
                    step = loop.step(batch)
                if isinstance(batch, Rollout):
                    figures["samples/s"] = batch.branches / (clock.last["batches"] + per_batch * clock.last["steps"])
                rows.append(_logged(setup, step, best, directory, figures))
                reporter.step(step.index, rows[-1])
                broken, stopped = _reason_to_end(method, rows)
                if broken or stopped:
                    break
                whole_batch = pass_number == per_batch  # a checkpoint has no half-used rollout
                if whole_batch and (step.index % setup.config.save_every < per_batch or pressed):
                    _save(loop, directory, states)
                if whole_batch and pressed:
                    raise Interrupted(
                        f"stopped after step {step.index} of {total}; go on with: treeward resume {directory.path}"
                    )
        last_movement = Movement.since(method.model, start)
        if directory.best.exists():
            load_trainable(method.model.packed, directory.best)
            log.info("kept the weights of step %s, the best by validation %s", best.step, method.metric)
        elif stopped and not method.may_keep(rows[-1]):
            weights.restore(method.model.packed, start)
            log.info("kept the weights of the start: no later ones may be kept")
    except (FloatingPointError, BadScore) as problem:
        broken = not_finite(problem)
        log.error("stopped: %s", problem)
        if isinstance(problem, BadScore) and problem.rollout is not None:
            _keep_unscored(directory, problem.rollout)
    kept_movement = Movement.since(method.model, start)
    planned, moved = loop.index if stopped else total, last_movement or kept_movement
    reference = getattr(method.objective, "reference", None)
    follows = (
        [guards.reference_follows(reference, start, moved, loop.index)] if isinstance(reference, EMAReference) else []
    )
    times = clock.seconds, clock.spent.get("steps", 0.0)
    return Trained(loop.index, planned, moved, kept_movement, broken, stopped, *times, tokens, follows)


def _logged(setup: Setup, step: Step, best: Best, directory: RunDirectory, figures: dict[str, float]) -> dict[str, Any]:
    """The row of a step in metrics.jsonl, with the validation metrics where they are due; `figures` are updated."""
    method, parts = setup.method, setup.data.parts
    row: dict[str, Any] = {"step": step.index, **step.numbers()}
    figures |= {name: row[name] for name in method.shown if name in row}
    try:
        if parts["validation"] and (step.index % setup.validate_every == 0 or step.index == setup.steps):
            row |= _validate(method, parts["validation"], step.index, best, directory)
            figures[f"validation {method.metric}"] = row[f"validation/{method.metric}"]
    finally:
        directory.append("metrics.jsonl", row)
    return row


def _reason_to_end(method: Method, steps: Sequence[Mapping[str, Any]]) -> tuple[Check | None, str | None]:
    """A failed check of the last steps, or why training should end early without one."""
    broken = next((check for check in method.step_checks(steps) if check.passed is False), None)
    stopped = method.stop_reason(steps)
    if broken or stopped:
        log.error("stopped: %s", broken or stopped)
    return broken, stopped


def _identity(setup: Setup) -> dict[str, str]:
    """What a resumed run must share with its checkpoint: the start, the reference, and the settings that decide steps.

    How long it runs is compared in steps, and how a batch is cut into forests may change.
    """
    run_fields = {field.name for field in fields(RunConfig)} - {field.name for field in fields(TrainingConfig)}
    excluded = run_fields | {"steps", "epochs", "token_budget"}
    settings = {
        field.name: repr(getattr(setup.config, field.name))
        for field in fields(setup.config)
        if field.name not in excluded
    }
    hashes = {"the start's hash": weights.fingerprint(setup.method.model.packed)}
    reference: ReferenceModel | None = getattr(setup.method.objective, "reference", None)
    if reference is not None:
        hashes["the reference's hash"] = str(reference.hash)
    return settings | hashes


def _last_checkpoint(directory: RunDirectory) -> int:
    """The step of the last checkpoint; 0 without one."""
    checkpoints = directory.checkpoints()
    return int(checkpoints[-1].name.removeprefix("step-")) if checkpoints else 0


def _validate(
    method: Method, trees: Sequence[TokenTree], index: int, best: Best, directory: RunDirectory
) -> dict[str, float]:
    """Measure on the validation part; keep the weights if they are the best so far by the method's metric."""
    measured = method.measure(trees)
    main = metric(method.metric)
    value = measured.table_of(main.name).mean(main.name)
    sign = 1 if main.higher_is_better else -1
    values = {main.name: value}
    _append_fixed(directory, index, measured.samples)
    if "samples" in measured.tables:
        samples = measured.tables["samples"]
        shown = ("score", "kl", "entropy", "start_nll", "length")
        values |= {n: samples.mean(n) for n in samples.columns if n in shown or n.startswith(JUDGE)}
    if (best.value is None or sign * value > sign * best.value) and method.may_keep(values):
        best.value, best.step = value, index
        temporary = directory.best.with_name(".best.safetensors")
        temporary.parent.mkdir(exist_ok=True)
        with whole(temporary):
            save_trainable(method.model.packed, temporary)
            temporary.rename(directory.best)
    return {f"validation/{name}": value for name, value in values.items()}


def _batch(
    method: Method, trees: Sequence[TokenTree], step: int, directory: RunDirectory
) -> Sequence[TokenTree] | Rollout:
    """What the step trains on; samples are written to rollouts.jsonl first."""
    batch = method.batch(trees, step)
    if isinstance(batch, Rollout):
        directory.append(ROLLOUTS, *({"step": step, **row} for row in batch.rows()))
    return batch


def _begin_files(setup: Setup, directory: RunDirectory, done: int) -> list[dict[str, Any]]:
    """Cut the files that grow to the steps of the checkpoint, or begin samples-by-step.jsonl with samples of the start.

    Returns the rows of metrics.jsonl.
    """
    for name in ("metrics.jsonl", ROLLOUTS, SAMPLES_BY_STEP):
        directory.keep_until(name, done or -1)
    by_group = {tree.group: tree for tree in setup.data.parts["validation"]}
    if not done and by_group and setup.method.samples is not None:
        _append_fixed(directory, 0, setup.method.samples.measure(list(by_group.values())[:FIXED])[1])
    return directory.lines("metrics.jsonl")


def _keep_unscored(directory: RunDirectory, rollout: Rollout) -> None:
    """Write the samples that could not be scored to failed-rollout.jsonl."""
    directory.write_lines("failed-rollout.jsonl", rollout.rows())
    log.error("the samples that could not be scored are in %s", directory.path / "failed-rollout.jsonl")


def _append_fixed(directory: RunDirectory, index: int, samples: Sequence[Mapping[str, Any]]) -> None:
    """Add the first sample of the first prompts to samples-by-step.jsonl."""
    first = [sample for sample in samples if sample["sample"] == 0][:FIXED]
    for sample in first:
        facts = {name: sample.get(name) for name in ("prompt", "response", "score", "kl")}
        directory.append(SAMPLES_BY_STEP, {"step": index, **facts})


def _save(loop: Loop, directory: RunDirectory, states: Mapping[str, Any]) -> None:
    """Save a checkpoint, then delete older ones."""
    loop.save(directory.checkpoint(loop.index), **states)
    for old in directory.checkpoints()[:-1]:
        shutil.rmtree(old)


# After the last step


def conclude(
    setup: Setup,
    directory: RunDirectory,
    before: Measurement,
    trained: Trained,
    facts_of_command: Mapping[str, Any] | None = None,
) -> Finished:
    """Save the model, measure it, decide the verdict, and write evaluation, samples, receipt and report.

    `facts_of_command` go into the receipt.
    """
    config, method, data = setup.config, setup.method, setup.data
    method.model.budgets = trained_with(config.data)
    with whole(directory.path / "model", directory.path / "adapter"):
        method.model.save(directory.path / "model", directory.path / "adapter")
    after, broken = _measure_end(method, data, before, trained.broken)
    checks = [*setup.checks, *([broken] if broken else []), *_closing_checks(setup, directory, trained, after)]
    half = to_half(after) if method.metric == "accuracy" else None
    if half is not None and guards.clearly_below_half(half):
        checks += _labels(method, data, config.data.seed, half)
    rule = method.trivial_rule(after)
    outcome = receipt(
        before,
        after,
        checks,
        metric=method.metric,
        rule=rule,
        scorer=(method.scorer_name or config.evaluation.scorer) if "samples" in after.tables else None,
        reward=method.reward_name,
        require=config.require,
        random_start=config.model.random,
    )
    extra: dict[str, Any] = {
        "command": method.name,
        "seconds": trained.seconds,
        "step_seconds": trained.step_seconds,
        "peak_gb": peak_gb(),
        "tokens_per_second": trained.tokens / trained.seconds,
    }
    if trained.stopped is not None:
        extra["stopped"] = trained.stopped
    if data.best_accuracy is not None:
        extra["best_reachable_accuracy"] = data.best_accuracy
    if rule is not None:
        extra["longer_wins"] = rule.facts()["before"]
    extra |= method.facts(after, data.held_out)
    extra |= facts_of_command or {}
    annotate(directory.path / "model", {"start": start_of(config.model)})
    if isinstance(method.model, RewardModel):
        annotate(directory.path / "model", finite(_reward_model_facts(setup, after)))
    outcome = replace(
        outcome,
        movement=trained.kept_movement,
        gradient_missing=setup.gradient_missing,
        data=data_facts(data),
        extra=extra | dict(outcome.extra),
    )
    facts = outcome.facts()
    directory.write_lines("evaluation.jsonl", _evaluation_rows(before, after))
    directory.write_lines("samples.jsonl", versus.side_by_side(before, after))
    directory.write_json("receipt.json", facts)
    write_page(directory.path)
    return Finished(directory.path, facts, method.exit_code(facts["verdict"], outcome.exit_code))


def _measure_end(
    method: Method, data: Prepared, before: Measurement, broken: Check | None
) -> tuple[Measurement, Check | None]:
    """The trained model on the held-out part. If it cannot be measured, the start's values again and a failed check."""
    try:
        after = method.measure(data.held_out)
        after.check_finite()
    except (FloatingPointError, BadScore) as problem:
        copied = "the values after training are copies of those before"
        if broken is None:
            return before, not_finite(problem, copied)
        parts = dict.fromkeys([broken.detail, str(problem), copied])
        return before, replace(broken, detail="; ".join(parts))
    return after, broken


def not_finite(problem: FloatingPointError | BadScore, remark: str = "") -> Check:
    """The failed check for a sample without a finite score, or for losses, gradients and logits that are not finite."""
    slug = "finite-scores" if isinstance(problem, BadScore) else "finite-losses"
    return result(slug, passed=False, detail=f"{problem}; {remark}" if remark else str(problem))


def _closing_checks(setup: Setup, directory: RunDirectory, trained: Trained, after: Measurement) -> list[Check]:
    method, config = setup.method, setup.config
    held_out = [tree for tree in setup.data.held_out if tree.branches]
    checks = [
        *guards.movement_checks(trained.last_movement, config.lr > 0),
        *trained.checks,
        guards.updates_check(trained.taken, trained.planned),
        guards.reload_check(method.model, directory.path, identities.probe(held_out) or setup.probe),
    ]
    checks += [guards.reference_unchanged(model) for model in _frozen_models(method)]
    chi_po = isinstance(getattr(config, "divergence", None), ChiSquaredMixed)
    checks += guards.clip_checks(directory.lines("metrics.jsonl"), chi_po)
    if "samples" in after.tables:
        checks += _sampled(method, after, "after")
        checks.append(guards.k1_check(after.tables["samples"], config.evaluation.temperature))
    if "pairs" in after.tables and method.start is None:
        spread = score_spread(after.tables["pairs"])
        checks.append(result("scores-vary", passed=spread > 0, value=spread, limit=0.0))
    return checks


def _frozen_models(method: Method) -> list[ReferenceModel]:
    """The start model, and a reference of its own that cannot change."""
    models = [] if method.start is None else [method.start]
    reference: ReferenceModel | None = getattr(method.objective, "reference", None)
    if reference is not None and reference is not method.start and reference.hash is not None:
        models.append(reference)
    return models


def _labels(method: Method, data: Prepared, seed: int, held_out: Difference) -> list[Check]:
    """F05, from the accuracy on a sample of the training part."""
    trees = shuffled(((tree.group, tree) for tree in data.train), seed, "labels check")
    table = method.pair_accuracy(trees[:LABELS_SAMPLE])
    if table is None:
        return []
    return [guards.labels_check(held_out, against_half(table.columns["accuracy"], table.groups))]


def _reward_model_facts(setup: Setup, after: Measurement) -> dict[str, Any]:
    """What a reward model's treeward.json says of its data, its accuracy, and the scale of its held-out scores."""
    facts: dict[str, Any] = {
        "data": {
            "source": setup.config.data.source,
            "format": setup.data.format,
            "fingerprint": setup.batches.fingerprint,
            "trees": len(setup.data.train),
        }
    }
    pairs = after.tables.get("pairs")
    if pairs is not None:
        scores = np.concatenate([pairs.columns["chosen"], pairs.columns["rejected"]])
        facts["accuracy"] = asdict(pairs.interval("accuracy"))
        facts["normalisation"] = {"mean": float(scores.mean()), "sd": float(scores.std(ddof=1)), "n": len(scores)}
    return facts


def _evaluation_rows(before: Measurement, after: Measurement) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for kind, table in after.tables.items():
        for a, b in zip(before.tables[kind].rows(), table.rows(), strict=True):
            group = b.pop("group")
            a.pop("group")
            both = {"sides": names} if (names := split_group(group)) else {}
            rows.append({"group": group, **both, "kind": kind, "before": a, "after": b})
    return rows


@contextmanager
def _errors_of(directory: RunDirectory, resumed: bool) -> Iterator[None]:
    """What errors leave behind: a new run without a step leaves no directory after a `UserError` or a full disk, and a
    full disk becomes one line that says what is kept and how to go on. Any other error leaves everything.
    """

    def remove_if_new() -> bool:
        if resumed or directory.lines("metrics.jsonl"):
            return False
        shutil.rmtree(directory.path, ignore_errors=True)
        return True

    try:
        yield
    except (OSError, SafetensorError, RuntimeError, UserError) as problem:  # torch's archives raise RuntimeError
        if not is_full(problem):
            if isinstance(problem, UserError):
                remove_if_new()
            raise
        path = directory.path
        place = f"no space left on the disk of {str(path)!r}: free some, then "
        if (path / "receipt.json").exists():
            raise DiskFull(f"{place}`treeward report {path}` for the page; the receipt is written") from problem
        if remove_if_new():
            raise DiskFull(f"{place}start the run again, or name another place with --out") from problem
        done = _last_checkpoint(directory)
        resumes = f"after step {done} of its last checkpoint" if done else "from the start, since it has no checkpoint"
        raise DiskFull(f"{place}`treeward resume {path}`, which goes on {resumes}") from problem
