"""`treeward merge`: one model from several by arithmetic on their weights, read and written a tensor at a time.

OUT/ is a model directory in Hugging Face layout, with
  README.md (how it was merged)  merge.json (the same for programs: hashes, weights, and angle and norms of each group)
"""

import logging
import math
import os
import shutil
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from torch import Tensor

from treeward.data.sources import hub_reachable, is_hub_id
from treeward.errors import UserError
from treeward.merging.arithmetic import (
    LEAST_MOVEMENT,
    Group,
    Grouping,
    Rule,
    balanced_rule,
    check_movement,
    combine,
    group_names,
    linear_rule,
    measured,
    merged_tensors,
    shares,
    slerp_rule,
)
from treeward.merging.checkpoints import Adapted, Checkpoint, check_belong_together, write
from treeward.models import artifact
from treeward.models.loading import model_directory
from treeward.runs.directory import RunDirectory, finite, free_path

log = logging.getLogger(__name__)

FROM_START = ("slerp", "balanced-slerp", "liti")
"""Kinds that merge task vectors, so they need the start."""
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SMALL_ANGLE = 40.0
"""Degrees between task vectors below which members are too alike for averaging to help."""
MODEL_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]
FRONT = """---
library_name: transformers
tags: [merge, treeward]
---
"""


@dataclass(frozen=True, kw_only=True)
class MergeRun:
    """treeward merge: one model from several, in weight space."""

    kind: Literal["slerp", "balanced-slerp", "linear", "liti", "weight-slerp", "ema", "warm"] = "slerp"
    """slerp: spherical interpolation of task vectors, one member after another, as in WARP; balanced-slerp: the same
    for any order of the members; linear: the weighted mean; liti: between start and member; weight-slerp: spherical
    interpolation of full weights; ema: an exponential moving average over checkpoints; warm: the mean of reward
    models."""
    start: str | None = None
    """The model that all members were trained from: a directory or hub id. slerp, balanced-slerp and liti need it;
    linear measures norms and angles from it."""
    members: tuple[str, ...] = ()
    """The models to merge, in order: directories of runs or saved models, or hub ids. A LoRA adapter in peft's layout
    is added to the start first."""
    weight: float | tuple[float, ...] | None = None
    """slerp, linear: the second of two members' share, or one weight a member; equal by default. liti: the share of the
    way from start to member (eta). ema: the share of each checkpoint after the first (the rate mu)."""
    groups: Grouping = "block"
    """What has an angle of its own: a transformer block, a tensor, or the whole model (all)."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Type of the written weights. Sums are in float64; a cast that would remove over 1 % of the change is refused."""
    out: str | None = None
    """The new directory; by default runs/merge or the next free number."""

    def __post_init__(self) -> None:
        count, single = len(self.members), self.kind == "liti"
        if count != 1 if single else count < 2:
            wanted = "exactly one: --members '[A]'" if single else "at least two: --members '[A, B]'"
            raise UserError(f"members has {count} models; {self.kind} needs {wanted}")
        if self.start is None and self.kind in FROM_START:
            raise UserError(f"start is not set; {self.kind} merges what training changed: name the members' start")
        if self.start is not None and self.kind not in (*FROM_START, "linear"):
            raise UserError(f"start is {self.start!r}, but {self.kind} does not use it; leave it out")
        if self.kind in ("liti", "ema"):
            if not (isinstance(self.weight, (int, float)) and 0 <= self.weight <= 1):
                raise UserError(
                    f"weight is {self.weight}; {self.kind} needs a number from 0 to 1, such as --weight 0.5"
                )
        elif self.kind in ("balanced-slerp", "warm"):
            if self.weight is not None:
                raise UserError(f"weight is {self.weight}, but {self.kind} weighs all members alike; leave it out")
        else:
            shares(self.weight, count)

    def rule(self) -> Rule:
        """How task vectors are merged."""
        if self.kind == "balanced-slerp":
            return balanced_rule
        weights = self.coefficients()
        return slerp_rule(weights) if "slerp" in self.kind else linear_rule(weights)

    def coefficients(self) -> list[float]:
        """The members' weights."""
        count = len(self.members)
        if self.kind == "liti":
            return [float(self.weight)]  # type: ignore[arg-type]
        if self.kind == "ema":  # the first checkpoint is the average's first value
            rate = float(self.weight)  # type: ignore[arg-type]
            return [(1 - rate) ** (count - 1), *(rate * (1 - rate) ** (count - n) for n in range(2, count + 1))]
        return shares(self.weight, count)


@dataclass(frozen=True)
class MergeResult:
    """The new model's directory, how each group was merged, what should be looked at, and the seconds it took."""

    path: Path
    groups: tuple[Group, ...]
    remarks: list[str]
    seconds: float


def merge(config: MergeRun) -> MergeResult:
    """Merge saved models.

    Raises:
        UserError: the models do not belong together, a member did not move from the start, the files cannot be read,
            the directory exists, or the precision would round the change away.
    """
    begun = time.monotonic()
    path = free_path("merge", config.out)
    start = None if config.start is None else Checkpoint(local(config.start, "start"))
    members = [opened(name, start) for name in config.members]
    like = members[0].base if isinstance(members[0], Adapted) else members[0]
    bases = [member for member in (start, *members) if isinstance(member, Checkpoint)]
    remarks = check_belong_together(bases)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with ExitStack() as at_end:
        hashing = ThreadPoolExecutor(1)
        at_end.callback(hashing.shutdown, wait=False, cancel_futures=True)
        for model in members if start is None else (start, *members):
            model.hash_in(hashing)
        if start is not None:
            remarks += check_start(start, members)
        treeward = shared_facts(config, start, members)
        groups: dict[str, Group] = {}
        tensors: Iterator[tuple[str, Tensor]]
        if start is None and config.kind != "weight-slerp":
            coefficients = config.coefficients()
            tensors = ((name, combine(name, [member[name] for member in members], coefficients)) for name in like)
        else:
            origin: Mapping[str, Tensor] = Zeros(like) if start is None else start
            of_group = group_names(like, config.groups)
            groups = measured(origin, members, of_group, config.rule())
            if start is not None:
                check_movement(groups.values(), [f"member {name!r}" for name in config.members])
            remarks += remarks_on(groups.values(), config.members, of_full_weights=start is None)
            tensors = merged_tensors(origin, members, of_group, groups)
        temporary.mkdir(parents=True)
        at_end.callback(shutil.rmtree, temporary, ignore_errors=True)
        weights = write(temporary, like, tensors, PRECISIONS[config.precision], members[0] if start is None else start)
        facts = finite(
            {
                "kind": config.kind,
                "start": None if start is None else source(start),
                "members": [source(member) for member in members],
                "weight": config.weight,
                "grouping": config.groups,
                "precision": config.precision,
                "groups": [asdict(group) for group in groups.values()],
                "remarks": remarks,
            }
        )
        artifact.write_merged(temporary, treeward, weights)
        RunDirectory(temporary).write_json("merge.json", facts)
        (temporary / "README.md").write_text(card(facts, treeward), encoding="utf-8")
        temporary.rename(path)
    return MergeResult(path, tuple(groups.values()), remarks, time.monotonic() - begun)


class Zeros(Mapping[str, Tensor]):
    """Weights of zero, from which full weights are the task vectors."""

    def __init__(self, like: Checkpoint) -> None:
        self.like = like

    def __getitem__(self, name: str) -> Tensor:
        entry = self.like.entries[name]
        return torch.zeros(entry.shape, dtype=entry.dtype) if entry.dtype.is_floating_point else self.like[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.like)

    def __len__(self) -> int:
        return len(self.like)


def local(name: str, field: str) -> Path:
    """The directory of a model: of a run, of a saved model, or of a hub id that is on this machine or can be fetched.

    Raises:
        UserError: there is none; `field` is the option that names it.
    """
    path = Path(model_directory(name)).expanduser()
    if path.is_dir():
        return path
    if not is_hub_id(name):
        raise UserError(f"{field} {name!r} is not a directory; name a run, or a directory that has config.json")
    online = hub_reachable()
    try:
        return Path(snapshot_download(name, allow_patterns=MODEL_FILES, local_files_only=not online))
    except (OSError, HfHubHTTPError):
        there = "the hub does not have it" if online else "the hub cannot be reached"
        raise UserError(
            f"{field} {name!r} is not a directory here, and {there}; name the directory of a model"
        ) from None


def opened(name: str, start: Checkpoint | None) -> Checkpoint | Adapted:
    """The weights of a member; an adapter is added to the start.

    Raises:
        UserError: the directory has no weights, or an adapter has no start to be added to.
    """
    path = local(name, "members")
    if (path / "adapter_config.json").exists() and not (path / "config.json").exists():
        if start is None:
            raise UserError(f"members has the adapter {name!r}, but start is not set: name its base model with --start")
        return Adapted(start, path)
    return Checkpoint(path)


def check_start(start: Checkpoint, members: Sequence[Checkpoint | Adapted]) -> list[str]:
    """Refuse a member that was trained from other weights than the start; remarks on those that do not say.

    Raises:
        UserError: names the member, and where its start was.
    """
    remarks = []
    for member in members:
        facts = None if isinstance(member, Adapted) else artifact.read(str(member.directory))
        trained_from = (facts or {}).get("start") or {}
        if trained_from.get("weights") is None:
            remarks.append(f"{str(member.directory)!r} does not say which weights it was trained from")
        elif trained_from["weights"] != start.hash:
            raise UserError(
                f"{str(member.directory)!r} was trained from {trained_from['path']!r}, whose weights have the hash "
                f"{trained_from['weights'][:12]}, and not from start {str(start.directory)!r} ({start.hash[:12]})"
            )
    return remarks


def remarks_on(groups: Collection[Group], members: Sequence[str], of_full_weights: bool) -> list[str]:
    """What should be looked at in the geometry; `members` are their names."""
    angles = [angle for group in groups for angle in group.angles if not math.isnan(angle)]
    if of_full_weights:
        return [
            f"full weights are {np.median(angles):.2g} degrees apart (median), so this is nearly linear interpolation; "
            "slerp with --start interpolates what training changed"
        ]
    remarks = []
    for place, member in enumerate(members):
        still = [group.name for group in groups if group.norms[place] < LEAST_MOVEMENT * group.start]
        if still:
            remarks.append(
                f"{member!r} moved by less than {LEAST_MOVEMENT:g} of the start's norm in {len(still)} of "
                f"{len(groups)} groups ({still[0]}, ...), as if they had been frozen"
            )
    small = [group.name for group in groups if any(angle < SMALL_ANGLE for angle in group.angles)]
    if small:
        remarks.append(
            f"task vectors are less than {SMALL_ANGLE:.0f} degrees apart in {len(small)} of {len(groups)} groups "
            f"({small[0]}, ...): members this alike gain little from merging"
        )
    fallbacks = [group.name for group in groups if group.fallback]
    if fallbacks:
        remarks.append(
            f"task vectors are parallel, opposite or zero in {len(fallbacks)} of {len(groups)} groups "
            f"({fallbacks[0]}, ...): these were interpolated linearly"
        )
    return remarks


def shared_facts(config: MergeRun, start: Checkpoint | None, members: Sequence[Checkpoint | Adapted]) -> dict[str, Any]:
    """The `treeward.json` of the merged model, without what was measured on a member.

    Raises:
        UserError: reward models with other heads or templates, or an ordinal head in a merge that is not a mean.
    """
    directories = [member.directory for member in members]
    each = [artifact.read(str(directory)) or {} for directory in directories]
    first = each[0]
    heads = [{k: v for k, v in (facts.get("head") or {}).items() if k != "thresholds"} for facts in each]
    for directory, facts, head in zip(directories, each, heads, strict=True):
        if head != heads[0] or facts.get("template") != first.get("template"):
            raise UserError(f"{str(directory)!r} and {str(directories[0])!r} have other heads or chat templates")
    if config.kind == "warm" and not heads[0]:
        raise UserError(f"kind is warm, but {str(directories[0])!r} is not a reward model of this program; use linear")
    shared_names = ("schema", "budgets", "head", "score_position", "tokenizer", "template")
    merged: dict[str, Any] = {name: first[name] for name in shared_names if name in first}
    if start is not None:
        merged["start"] = {"path": str(start.directory), "weights": start.hash}
    thresholds = [facts["head"]["thresholds"] for facts in each if "thresholds" in (facts.get("head") or {})]
    if thresholds:
        if "slerp" in config.kind or config.kind == "liti":
            raise UserError(f"kind is {config.kind}, but an ordinal head has thresholds beside the weights; use warm")
        weights = np.array(config.coefficients())
        merged["head"] = {**merged["head"], "thresholds": (weights @ np.array(thresholds)).tolist()}
    return merged


def source(model: Checkpoint | Adapted) -> dict[str, str]:
    """Where a model was, and the hash of its weights."""
    return {"path": str(model.directory), "weights": model.hash}


def card(facts: Mapping[str, Any], treeward: Mapping[str, Any]) -> str:
    """The model card: how to use a reward model, and how the model was merged."""
    front = artifact.card(treeward["head"]) if "head" in treeward else FRONT
    rows = [f"| member {n} | `{member['path']}` | `{member['weights'][:16]}` |"
            for n, member in enumerate(facts["members"], 1)]  # fmt: skip
    if facts["start"]:
        rows.insert(0, f"| start | `{facts['start']['path']}` | `{facts['start']['weights'][:16]}` |")
    weight = "equal weights" if facts["weight"] is None else f"weight {facts['weight']}"
    settings = f"Kind `{facts['kind']}`, {weight}, groups: {facts['grouping']}, written in {facts['precision']}"
    text = f"""{front}
# How it was merged

{settings}. `merge.json` has the norms, angles and coefficients of each group.

| | model | SHA-256 of its weights |
|---|---|---|
""" + "\n".join(rows)
    return text + "".join(f"\n\n{remark[:1].upper()}{remark[1:]}." for remark in facts["remarks"]) + "\n"
