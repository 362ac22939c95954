"""`treeward warp`: weight-averaged rewarded policies (Rame et al. 2024, arXiv:2406.16768).

    start = sft
    for each iteration
        each member:  train a copy of start, with an exponential moving average of itself as the KL's reference
        merged = slerp of the members' task vectors, start + ...
        start  = (1 - eta) start + eta merged
    the front: (1 - share) sft + share merged, for each share of --front

A member is an ordinary run of a training method, in a process of its own. The members of an iteration differ in their
seed: the order of prompts and the noise of samples. A share of the front is chosen on the validation prompts; verdict
and figures are of the test prompts. A stopped series goes on where it stopped.

OUT/
  iteration-1/member-1/  (a run)  iteration-1/member-1.log  iteration-1/merged/  iteration-1/next/ (the next start)
  front.jsonl (every share and member, by sample)  and the files of a run: receipt.json, model/, report.html, ...
"""

import logging
import math
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields, make_dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import yaml
from rich.table import Table
from torch import Tensor

from treeward.checks.check import Check, below
from treeward.checks.guards import Movement
from treeward.errors import UserError
from treeward.merging.arithmetic import Grouping, lerp
from treeward.methods import METHODS, find
from treeward.methods.method import RunConfig
from treeward.methods.reinforce import ReinforceRun
from treeward.models import weights
from treeward.models.policy import Policy
from treeward.models.reference import EMA, Frozen
from treeward.report.frontier import every
from treeward.runner.launch import Launch, LocalProcess, RayCluster, Running
from treeward.runner.merge import MergeRun, merge
from treeward.runner.process import environment, peak_gb
from treeward.runner.progress import Interrupted, follow, redrawn
from treeward.runner.run import Finished, Trained, conclude, measure_start, set_up
from treeward.runner.settings import dump, read_yaml
from treeward.runs.directory import RunDirectory, alone, created, finite
from treeward.stats.formatting import interval
from treeward.stats.tables import Measurement, compare

log = logging.getLogger(__name__)

MAY_CHANGE = ("out", "parallel", "cluster", "front", "choose")
"""Fields that may differ when a stopped series goes on: the members do not depend on them."""
TRIES = 2
"""How often a member whose process dies is started."""
POLL_SECONDS = 0.2
AT_THE_END = 10**9
"""`evaluate_every` of members: the last weights are kept, as in the paper, and not the best on the validation part."""
SHARE = r"\d*\.?\d+"
CHOICES = re.compile(rf"^(knee|kl<=(?P<kl>{SHARE})|(?P<share>{SHARE}))$")


@dataclass(frozen=True, kw_only=True)
class WarpConfig:
    """What WARP adds to a training method."""

    method: str = "reinforce"
    """The method that trains a member: reinforce, dpo, or FILE.py:NAME."""
    iterations: int = 2
    """I: how often members are trained and merged."""
    members: int = 2
    """M: policies trained from one start in each iteration."""
    merge: Literal["slerp", "balanced-slerp", "linear"] = "slerp"
    """How the members' task vectors are merged, with equal weights."""
    groups: Grouping = "block"
    """What has an angle of its own: a transformer block, a tensor, or the whole model (all)."""
    eta: float = 0.5
    """The share of the way from an iteration's start to its merge at which the next iteration starts."""
    front: tuple[float, ...] = (0.0, 0.1, 0.3, 0.5, 0.8, 1.0)
    """Shares of the way from the first start to the last merge that are measured at the end."""
    choose: str = "knee"
    """Which of these becomes the model, by validation prompts: knee (where score per KL falls off), kl<=8 (the best
    score within 8 nats), or a share such as 0.5."""
    parallel: int = 1
    """Members that train at a time, each in its own process."""
    threads: int | None = None
    """CPU threads of each member; by default those of this process, shared by `parallel`. Results depend on them."""
    cluster: str | None = None
    """A Ray cluster that trains the members: auto, or an address. Its nodes must see the run directory and the data."""
    reference: EMA | Frozen = field(default_factory=EMA)
    """The reference of the KL while a member trains."""

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[misc]
        for name in ("iterations", "members", "parallel", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} is {value}; it must be at least 1")
        for name, values in (("eta", (self.eta,)), ("front", self.front)):
            outside = [value for value in values if not 0 <= value <= 1]
            if outside or not values:
                raise UserError(f"{name} is {getattr(self, name)}; it takes shares from 0 to 1")
        match = CHOICES.match(self.choose)
        if not match:
            raise UserError(f"choose is {self.choose!r}; it may be knee, kl<=8 (any number), or a share such as 0.5")
        if match["share"] and float(match["share"]) not in self.front:
            raise UserError(f"choose is {self.choose}, but front is {list(self.front)}; add this share to front")
        if match["kl"] and 0.0 not in self.front:
            raise UserError(f"choose is {self.choose!r}, but front may have no policy that near; add 0 to front")
        options: Any = self
        if not options.data.validation:
            raise UserError("data.validation is 0, but the share of the front is chosen on that part; raise it")
        if options.evaluation.scorer is None and not hasattr(self, "reward"):
            raise UserError("evaluation.scorer is not set; name the scorer that the front is measured by")


@dataclass(frozen=True, kw_only=True)
class WarpRun(WarpConfig, ReinforceRun):
    """treeward warp: weight-averaged rewarded policies around REINFORCE."""


def config_of(method: str) -> type[Any]:
    """The configuration of WARP around a method.

    Raises:
        UserError: there is no such method, or it trains no policy against a reference.
    """
    if method == "reinforce":
        return WarpRun
    base = find(method).Config
    if "reference" not in {each.name for each in fields(base)}:
        raise UserError(
            f"method is {method!r}, which has no reference model; WARP averages policies: name reinforce or dpo"
        )
    return make_dataclass("WarpRun", [], bases=(WarpConfig, base), frozen=True, kw_only=True)


# Training the members


@dataclass(frozen=True)
class Member:
    """One member of an iteration: the directory of its run, and its configuration."""

    path: Path
    method: str
    config: RunConfig

    @property
    def receipt(self) -> dict[str, Any] | None:
        """The receipt of its run; None before its end."""
        return RunDirectory(self.path).read_json("receipt.json")  # type: ignore[no-any-return]

    def command(self) -> list[str]:
        """The command that trains it, or goes on where its process stopped."""
        verb = [self.method] if self.method in METHODS else ["train", "--method", self.method]
        if (self.path / "config.yaml").exists():
            return ["resume", str(self.path), "--allow-code"]
        shutil.rmtree(self.path, ignore_errors=True)
        recipe = self.path.with_suffix(".yaml")
        recipe.write_text(yaml.safe_dump({"command": self.method, **dump(self.config)}, sort_keys=False))
        return [*verb, str(recipe), "--allow-code"]

    @property
    def last_step(self) -> dict[str, float]:
        """The metrics of the last step that was taken; empty before the first."""
        rows = RunDirectory(self.path).lines("metrics.jsonl")
        return rows[-1] if rows else {}

    def line(self) -> str:
        """How far it is: step, score and KL."""
        step = self.last_step
        if not step:
            return f"{self.path.name} begins"
        figures = ", ".join(f"{name} {step[name]:.3g}" for name in ("score", "loss", "kl") if name in step)
        return f"{self.path.name} step {step['step']}, {figures}"


class MemberFailed(UserError):
    """A member is broken, or its process died more than once; `exit_code` is that of the series."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def train_members(
    members: Sequence[Member],
    parallel: int,
    threads: int | None,
    launch: Launch,
    ended: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Train the members that have no receipt yet, `parallel` at a time. One whose process dies is started again once.

    A terminal shows a table of them below those of the iterations that have `ended` (from `iteration_facts`).

    Raises:
        UserError: a member's configuration, data or checks are refused.
        MemberFailed: a member is broken, or died twice.
        Interrupted: Ctrl-C; every member that runs has saved its state.
    """
    waiting = [member for member in members if member.receipt is None]
    running: dict[Path, tuple[Member, Running]] = {}
    starts: dict[Path, int] = {}
    if threads is None and parallel > 1:
        threads = max(1, torch.get_num_threads() // parallel)

    def line() -> str:
        return "; ".join(member.line() for member, _ in running.values())

    try:
        with redrawn(lambda: members_table(ended, members), line) as show:
            while waiting or running:
                while waiting and len(running) < parallel:
                    member = waiting.pop(0)
                    starts[member.path] = starts.get(member.path, 0) + 1
                    running[member.path] = member, launch(member.command(), output_of(member), threads)
                show()
                time.sleep(POLL_SECONDS)
                for path, (member, process) in list(running.items()):
                    code = process.poll()
                    if code is None:
                        continue
                    del running[path]
                    if member.receipt is None:
                        refuse_or_retry(member, code, starts[path])
                        waiting.insert(0, member)
    except BaseException:
        for _, process in running.values():
            process.interrupt()
        for _, process in running.values():
            while process.poll() is None:
                time.sleep(POLL_SECONDS)
        raise
    broken = [member for member in members if (member.receipt or {}).get("verdict") == "broken"]
    if broken:
        reason = (broken[0].receipt or {})["reason"]
        raise MemberFailed(f"{broken[0].path} is broken, so nothing was merged: {reason}", 4)


def members_table(ended: Sequence[Mapping[str, Any]], members: Sequence[Member]) -> Table:
    """Members, scores, KL and angles: the iterations that have ended as they were measured, the members that train."""
    members_by_row = Table("iteration", "member", "step", "score", "KL, nats", "angle, degrees", box=None)
    for number, facts in enumerate(ended, 1):
        angle = f"{facts['angles']['median']:.0f}" if facts["angles"] else "–"
        for place, member in enumerate(facts["members"], 1):
            members_by_row.add_row(
                str(number), str(place), "end", interval(member["after"]), interval(member["kl"]), angle
            )
    for place, member in enumerate(members, 1):
        step = member.last_step
        cells = [f"{step[name]:.3g}" if name in step else "–" for name in ("score", "kl")]
        at = "end" if member.receipt is not None else f"{step['step']}" if step else "–"
        members_by_row.add_row(str(len(ended) + 1), str(place), at, *cells, "–")
    members_by_row.caption = (
        "While a member trains: of its last step's samples, KL to its moving reference. At its end: of the test "
        "prompts, KL to its iteration's start."
    )
    return members_by_row


def output_of(member: Member) -> Path:
    """The file that has what a member prints."""
    return member.path.with_suffix(".log")


def refuse_or_retry(member: Member, code: int, starts: int) -> None:
    """After a process that left no receipt: return if it should be started again.

    Raises:
        UserError: it refused its input, which starting again would not change.
        MemberFailed: it has died too often.
    """
    lines = output_of(member).read_text(encoding="utf-8", errors="replace").strip().splitlines() or [""]
    said = [line.removeprefix("treeward: ") for line in lines if line.startswith("treeward: ")] or lines
    if code == 2:
        raise UserError(f"{member.path.name} cannot be trained: {' '.join(said[-2:])}")
    if starts >= TRIES:
        raise MemberFailed(
            f"{member.path} died {starts} times, at last with exit code {code} ({lines[-1]:.200}); its output is in "
            f"{output_of(member)}; go on with: treeward resume {member.path.parent.parent}",
            1,
        )
    log.warning("%s died with exit code %d and is started again", member.path, code)


# The series


def warp(config: Any, launch: Launch | None = None) -> Finished:
    """Train, merge and interpolate, `config.iterations` times; then measure the front and choose its model.

    Args:
        config: A `WarpRun`, or what `config_of` gives for another method.
        launch: Starts the members' processes; by default on this machine, or on `config.cluster`.

    Raises:
        UserError: the start has random weights, no data is there to choose on, a member or the merge is refused, or the
            directory is another run's.
        MemberFailed: a member is broken, or its process died twice.
        Interrupted: Ctrl-C; the same command goes on.
    """
    if config.model.random:
        raise UserError(f"model.path is {config.model.path!r} with random weights; WARP starts from a trained policy")
    if launch is None:
        launch = LocalProcess if config.cluster is None else RayCluster(config.cluster)
    with series_directory(config) as directory:
        start, members, merged = config.model.path, [], Path()
        iterations: list[dict[str, Any]] = []
        try:
            if not any(directory.path.glob("iteration-1/member-*/receipt.json")):
                require_validation(config)
            for iteration in range(1, config.iterations + 1):
                here = directory.path / f"iteration-{iteration}"
                here.mkdir(exist_ok=True)
                members = members_of(config, start, iteration, here)
                log.info("\niteration %d of %d: %d members", iteration, config.iterations, config.members)
                train_members(members, config.parallel, config.threads, launch, iterations)
                merged = merged_members(config, start, members, here / "merged")
                iterations.append(iteration_facts(members, merged))
                log.info("%s", summary(iterations[-1]))
                if iteration < config.iterations:
                    start = str(interpolated(start, merged, config.eta, here / "next"))
            return measure_front(config, directory, members, merged, iterations)
        except KeyboardInterrupt:
            raise Interrupted(f"stopped; go on with: treeward resume {directory.path}") from None


@contextmanager
def series_directory(config: Any) -> Iterator[RunDirectory]:
    """The directory of a new series, or of the same one that was stopped. It is removed if no member was begun."""
    values = {"command": "warp", **dump(config)}
    path = Path(config.out) if config.out else None
    with ExitStack() as stack:
        if path is not None and (path / "config.yaml").exists():
            if (path / "receipt.json").exists():
                raise UserError(f"--out {str(path)!r} has ended: it has a receipt.json; name another directory")
            require_same(path, values)
            directory = RunDirectory(path)
            stack.enter_context(alone(path))
        else:
            directory = created(config.name or "warp", config.out)
            stack.enter_context(alone(directory.path))
        directory.write("config.yaml", yaml.safe_dump(values, sort_keys=False))
        try:
            yield directory
        finally:
            if not any(directory.path.glob("iteration-*/member-*/config.yaml")):
                shutil.rmtree(directory.path, ignore_errors=True)


def require_same(path: Path, values: Mapping[str, Any]) -> None:
    """Refuse to go on in the directory of a series with another configuration.

    Raises:
        UserError: a field differs; it is named.
    """
    there = read_yaml(path / "config.yaml", f"{str(path / 'config.yaml')!r}")
    here = yaml.safe_load(yaml.safe_dump(dict(values)))
    different = [name for name in here if here[name] != there.get(name) and name not in MAY_CHANGE]
    if different:
        name = different[0]
        raise UserError(
            f"--out {str(path)!r} has a run with another configuration: {name} is {there.get(name)!r} there and "
            f"{here[name]!r} here; name another directory"
        )


def require_validation(config: Any) -> None:
    """Refuse data without a validation part before anything is trained.

    Raises:
        UserError: the source names the parts of its rows, and none is validation; or it has too few rows.
    """
    method = find(config.method)(training_of(config, model=replace(config.model, device="cpu")))
    parts = method.prepare(method.model.tokenizer).apart(chooses=True, seed=config.data.seed).parts
    if not parts["validation"]:
        counts = ", ".join(f"{len(trees)} {part}" for part, trees in parts.items())
        raise UserError(
            f"data.source {config.data.source!r} has no validation part ({counts}), but the share of the front is "
            "chosen on it; split all rows again with --data.splits ignore, or bring more rows"
        )


def members_of(config: Any, start: str, iteration: int, here: Path) -> list[Member]:
    """The members of an iteration. The first one of all has the seed of the series."""
    return [
        Member(
            here / f"member-{number}",
            config.method,
            training_of(
                config,
                model=replace(config.model, path=start, tokenizer=config.model.tokenizer if iteration == 1 else None),
                seed=config.seed + (iteration - 1) * config.members + number - 1,
                evaluate_every=config.evaluate_every or AT_THE_END,
                require="any",
                name=None,
                out=str(here / f"member-{number}"),
            ),
        )
        for number in range(1, config.members + 1)
    ]


def training_of(config: Any, **changes: Any) -> RunConfig:
    """The part of the configuration that is the training method's, with changes."""
    cls = find(config.method).Config
    return cls(**{each.name: getattr(config, each.name) for each in fields(cls)} | changes)


def merged_members(config: Any, start: str, members: Sequence[Member], path: Path) -> Path:
    """The merge of an iteration, from disk if it is there."""
    if not path.exists():
        paths = tuple(str(member.path) for member in members)
        shared: dict[str, Any] = {"start": start, "members": paths, "groups": config.groups, "out": str(path)}
        single = len(members) == 1
        merge(MergeRun(kind="liti", weight=1.0, **shared) if single else MergeRun(kind=config.merge, **shared))
    return path


def interpolated(start: str, merged: Path, eta: float, path: Path) -> Path:
    """The next iteration's start, from disk if it is there."""
    if not path.exists():
        merge(MergeRun(kind="liti", start=start, members=(str(merged),), weight=eta, out=str(path)))
    return path


def iteration_facts(members: Sequence[Member], merged: Path) -> dict[str, Any]:
    """Scores, KL to the iteration's start and movement of the members, and the angles between their task vectors."""
    record = RunDirectory(merged).read_json("merge.json")
    angles = [angle for group in record["groups"] for angle in group["angles"] if angle is not None]
    receipts = [member.receipt or {} for member in members]
    return {
        "members": [
            {
                "path": str(member.path),
                "seed": member.config.seed,
                "verdict": receipt["verdict"],
                "before": every(receipt)["score"]["before"],
                "after": every(receipt)["score"]["after"],
                "kl": every(receipt)["kl"]["after"],
                "moved": receipt["movement"]["relative_update"],
            }
            for member, receipt in zip(members, receipts, strict=True)
        ],
        "angles": {"median": float(np.median(angles)), "least": min(angles), "most": max(angles)} if angles else None,
        "remarks": record["remarks"],
    }


def summary(facts: Mapping[str, Any]) -> str:
    """What an iteration gave, a line a member."""
    lines = [
        f"member {number}: score {interval(member['after'])} from {member['before']['value']:.3g}, "
        f"KL to the iteration's start {interval(member['kl'])}, n={member['after']['n']}; moved {member['moved']:.2%}"
        for number, member in enumerate(facts["members"], 1)
    ]
    angles = facts["angles"]
    if angles:
        lines.append(
            f"merged: task vectors {angles['median']:.1f} degrees apart (median of the groups; {angles['least']:.1f} "
            f"to {angles['most']:.1f})"
        )
    return "\n".join([*lines, *(f"remark: {remark}" for remark in facts["remarks"])])


# The front


@dataclass(frozen=True)
class Candidate:
    """A policy of the front: a share of the way to the last merge (`share`), or a member of the last iteration."""

    name: str
    share: float | None
    parts: Mapping[str, Measurement]
    """By part: test, and validation where the choice needs it."""

    def facts(self) -> dict[str, Any]:
        """Name, share, and score and KL of each part with intervals."""
        figures = {
            part: {name: finite(vars(measured.table_of(name).interval(name))) for name in ("score", "kl")}
            for part, measured in self.parts.items()
        }
        return {"name": self.name, "share": self.share, **figures}

    def rows(self) -> Iterator[dict[str, Any]]:
        """Score, KL and length in tokens of each sample."""
        for part, measured in self.parts.items():
            for row in measured.table_of("score").rows():
                shared = {"name": self.name, "share": self.share, "part": part}
                yield shared | {name: row[name] for name in ("group", "score", "kl", "length") if name in row}


def measure_front(
    config: Any, directory: RunDirectory, members: Sequence[Member], merged: Path, iterations: list[dict[str, Any]]
) -> Finished:
    """Measure the policies between the first start and the last merge, choose one, and conclude the run with it."""
    setup = set_up(training_of(config, evaluate_every=1), find(config.method))
    method = setup.method
    before = measure_start(setup)
    directory.write_json("environment.json", environment(method.model.packed))
    start, end = weights.snapshot(method.model.packed), loaded(config, merged)
    fixed = re.fullmatch(SHARE, config.choose)

    def interpolate(share: float) -> None:
        weights.restore(method.model.packed, lerp(start, towards=end, weight=share))

    def measured(name: str, share: float | None) -> Candidate:
        on = {"test": setup.data.held_out}
        if share in config.front and not fixed:
            on["validation"] = setup.data.parts["validation"]
        return Candidate(name, share, {part: method.measure(trees) for part, trees in on.items()})

    front, singles = [], []
    shares = sorted({*config.front, 1.0})
    for share in follow(shares, len(shares), "measuring the front"):
        interpolate(share)
        front.append(measured(f"{share:g}", share))
    last_movement = Movement.since(method.model, start)
    for member in follow(members, len(members), "measuring members"):
        weights.restore(method.model.packed, loaded(config, member.path / "model"))
        singles.append(measured(member.path.name, None))
    chosen = choose(config.choose, [each for each in front if each.share in config.front])
    interpolate(float(chosen.share or 0))
    setup.checks.append(
        interpolation_check(start, end, weights.snapshot(method.model.packed), float(chosen.share or 0))
    )
    directory.write_lines("front.jsonl", (row for each in (*front, *singles) for row in each.rows()))
    runs = [RunDirectory(Path(member["path"])) for facts in iterations for member in facts["members"]]
    receipts = [run.read_json("receipt.json") for run in runs]
    taken = [run.lines("metrics.jsonl")[-1]["step"] for run in runs]
    planned = [n if "stopped" in receipt else setup.steps for n, receipt in zip(taken, receipts, strict=True)]
    trained = Trained(
        taken=sum(taken),
        planned=sum(planned),
        last_movement=last_movement,
        kept_movement=Movement.since(method.model, start),
        broken=None,
        stopped=None,
        seconds=sum(receipt["seconds"] for receipt in receipts),
        step_seconds=sum(receipt["step_seconds"] for receipt in receipts),
        tokens=round(sum(receipt["tokens_per_second"] * receipt["seconds"] for receipt in receipts)),
    )
    facts = {
        "command": "warp",
        "peak_gb": max(peak_gb(), *(receipt["peak_gb"] for receipt in receipts)),
        "rollout_seconds": {
            name: sum(receipt["rollout_seconds"][name] for receipt in receipts)
            for name in receipts[0].get("rollout_seconds", {})
        },
        "warp": {
            "iterations": iterations,
            "front": [each.facts() for each in front],
            "members": [each.facts() for each in singles],
            "choose": config.choose,
            "chosen": chosen.share,
            "remarks": remarks_on(front[-1], singles),
        },
    }
    return conclude(setup, directory, before, trained, facts)


def loaded(config: Any, path: Path) -> dict[str, Tensor]:
    """The parameters of a saved policy, by name."""
    return weights.snapshot(Policy.trained(replace(config.model, path=str(path), tokenizer=None)).packed)


def choose(rule: str, front: Sequence[Candidate]) -> Candidate:
    """The candidate that the rule takes, by the means of the validation prompts.

    `knee` is the point furthest above the line from the first to the last point of the front, with score and KL both
    scaled to their range.

    The configuration has made sure that the share, or for a KL the start, is on the front.
    """
    match = CHOICES.match(rule)
    assert match is not None, "the configuration was checked"
    if match["share"]:
        return next(each for each in front if each.share == float(match["share"]))
    validation = [each.parts["validation"] for each in front]
    kl, score = (np.array([each.table_of(name).mean(name) for each in validation]) for name in ("kl", "score"))
    if match["kl"]:
        within = np.flatnonzero(kl <= float(match["kl"]))
        return front[int(within[score[within].argmax()])]
    if not np.ptp(kl) or not np.ptp(score):
        return front[int(score.argmax())]
    order = np.argsort(kl)
    across, up = (kl - kl.min()) / np.ptp(kl), (score - score.min()) / np.ptp(score)
    first, last = order[0], order[-1]
    line = up[first] + (across - across[first]) / (across[last] - across[first]) * (up[last] - up[first])
    return front[int((up - line).argmax())]


def interpolation_check(
    start: Mapping[str, Tensor], end: Mapping[str, Tensor], policy: Mapping[str, Tensor], share: float
) -> Check:
    """F39: the policy's weights are this share of the way from start to merge."""

    def distance(to: Mapping[str, Tensor]) -> float:
        return math.sqrt(sum(float((to[name].double() - start[name]).square().sum()) for name in start))

    whole = distance(end)
    part = distance(policy) / whole if whole else math.nan
    return below("interpolated-as-asked", abs(part - share), 1e-3, detail=f"{part:.4f} of the way, asked {share:g}")


def remarks_on(merged: Candidate, members: Sequence[Candidate]) -> list[str]:
    """How the merge scores against the best of its members, and whether outside them, on the test prompts.

    The merge of a single member is that member, so there is nothing to say.
    """
    if len(members) == 1:
        return []
    scores = {each.name: each.parts["test"].table_of("score").mean("score") for each in (merged, *members)}
    best = max(members, key=lambda each: scores[each.name])
    worst = min(members, key=lambda each: scores[each.name])
    gain = compare("score", *(each.parts["test"].table_of("score") for each in (best, merged))).difference
    change = f"{gain.value:+.3g} [{gain.low:+.3g}, {gain.high:+.3g}]"
    remarks = [f"the merge scores {change} against its best member, {best.name}"]
    if scores[merged.name] > scores[best.name] or scores[merged.name] < scores[worst.name]:
        remarks.append(
            f"the merge scores {scores[merged.name]:.3g}, outside its members ({scores[worst.name]:.3g} to "
            f"{scores[best.name]:.3g})"
        )
    return remarks
