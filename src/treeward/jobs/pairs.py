"""Preferences from a policy's own samples: K samples a prompt, scored, the better against the worse.

Samples are drawn and scored a chunk of prompts at a time and written as they come; a stopped run goes on with the next
chunk, whose generator depends on the seed and its place alone. Pairs are then a function of the samples on disk.

OUT/
  config.yaml  samples.jsonl (all samples with ids and scores)  pairs.jsonl (the preference data)  report.json
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import yaml

from treeward.data.prepare import DataConfig
from treeward.data.prompts import Prompt, drawn, openings
from treeward.data.render import decode, vocabulary_hash
from treeward.data.selection import AnySelection, BestWorst, Picks, Ranking, clear
from treeward.evaluation.pairs import Yield
from treeward.jobs.options import DPORun
from treeward.jobs.progress import follow
from treeward.jobs.settings import dump
from treeward.models.loading import ModelConfig
from treeward.models.policy import Policy
from treeward.models.sampler import DecodeSampler, Sampler
from treeward.models.weights import fingerprint
from treeward.proof.checks import require
from treeward.proof.guards import first_rollout
from treeward.rewards import scorers
from treeward.runs.directory import RunDirectory, finite, free_path
from treeward.trees.tokens import TokenTree

CHUNK = 16
"""Prompts sampled, scored and written at a time: what a stopped run loses at most."""


@dataclass(frozen=True, kw_only=True)
class PairsRun:
    """treeward pairs: preferences from a policy's own samples, judged by a scorer."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """The policy that answers."""
    data: DataConfig = field(default_factory=DataConfig)
    """Where prompts come from, with their split; texts without prompts give their first tokens."""
    prompt_tokens: int | tuple[int, int] = 8
    """First tokens of a text that make its prompt, where the data has no prompts; [2, 8] draws from a range."""
    prompts: int | None = None
    """Use only this many prompts, drawn by their names and the seed; all by default."""
    samples: int = 8
    """K, samples a prompt."""
    max_new_tokens: int = 64
    """Longest sample, end token included."""
    temperature: float = 1.0
    """Sampling temperature; 1 samples the policy itself."""
    scorer: str = "gold"
    """What judges: `gold` (the embedded world), a reward model, a classifier, `file.py:function`, or a rule."""
    select: AnySelection = field(default_factory=BestWorst)
    """Which samples of a prompt become a preference."""
    min_gap: float = 0.0
    """Least difference of the scores of a pair, in the scorer's units."""
    most: int | None = None
    """At most this many pairs a prompt, the first of the selection."""
    seed: int = 0
    """Seeds the samples."""
    name: str | None = None
    """The directory's name under runs/; by default the recipe's or `pairs`."""
    out: str | None = None
    """The directory itself; what a stopped run left there is continued."""
    rounds: int = 0
    """Train by DPO on the pairs and make new ones from what came out, this many times; 0 makes pairs alone."""
    dpo: DPORun = field(default_factory=DPORun)
    """The training of a round; its model and data are the round's."""

    def __post_init__(self) -> None:
        low, high = self.range
        if not 1 <= low <= high:
            raise ValueError(f"prompt_tokens is {self.prompt_tokens}; it is a number from 1, or [fewest, most]")
        if self.prompts is not None and self.prompts < 1:
            raise ValueError(f"prompts is {self.prompts}; it must be at least 1")
        if self.samples < 2:
            raise ValueError(f"samples is {self.samples}; a comparison needs at least 2")
        if self.min_gap < 0:
            raise ValueError(f"min_gap is {self.min_gap}; it is at least 0")
        if self.most is not None and self.most < 1:
            raise ValueError(f"most is {self.most}; it must be at least 1")

    @property
    def range(self) -> tuple[int, int]:
        """Fewest and most tokens of a prompt."""
        return self.prompt_tokens if isinstance(self.prompt_tokens, tuple) else (self.prompt_tokens,) * 2


@dataclass(frozen=True)
class Made:
    """Where the data is, and its report."""

    path: Path
    report: dict[str, Any]

    @property
    def pairs(self) -> Path:
        """The preference data, which every training command reads."""
        return self.path / "pairs.jsonl"


def make_pairs(config: PairsRun, policy: Policy | None = None) -> Made:
    """Sample, score, select and report; `policy` is loaded from the configuration unless given.

    Raises:
        ValueError: the policy, prompts, scorer or place cannot be used, or nothing is left to compare.
        ChecksFailed: in the first chunk no two samples of a prompt differ in score; nothing is written.
    """
    run = _place(config)
    policy = policy or Policy.from_config(config.model, config.seed)
    scorer = scorers.find(config.scorer)
    prompts, dropped = openings(config.data, policy.tokenizer, config.range, config.seed)
    prompts = drawn(prompts, config.prompts, config.seed)
    sampler = DecodeSampler.of(policy, config.max_new_tokens, config.temperature)
    generator = fingerprint(policy.tree)[:16]
    starts = range(_whole_chunks(run), len(prompts), CHUNK)
    for start in follow(starts, len(starts), "chunks of prompts"):
        rows = list(sampled(prompts[start : start + CHUNK], policy, sampler, scorer, config, start))
        if start == 0:
            require([first_rollout([row["scores"] for row in rows], rows[0]["responses"])])
            _begin(run, config)
        for row in rows:
            run.append("samples.jsonl", row | {"generator": generator})
    found = Yield(config.samples, dropped)
    preferences = selected(run.each("samples.jsonl"), config, found, vocabulary_hash(policy.tokenizer))
    written = _write(run.path / "pairs.jsonl", preferences)
    if not written:
        raise ValueError(f"no pair is left of {found.prompts} prompts: every score is equal or min_gap is too large")
    report = finite(found.report() | {"scorer": scorer.name, "generator": generator, "seed": config.seed})
    run.write_json("report.json", report)
    return Made(run.path, report)


def sampled(
    prompts: Sequence[Prompt], policy: Policy, sampler: Sampler, scorer: scorers.Scorer, config: PairsRun, place: int
) -> Iterator[dict[str, Any]]:
    """One row a prompt: its K samples with ids, text, score, and whether each ended."""
    bare = [TokenTree(prompt.ids, (), prompt.group) for prompt in prompts]
    trees = sampler(bare, config.samples, torch.Generator().manual_seed(config.seed * 1_000_003 + place))
    scores = iter(scorer(trees, policy.tokenizer).tolist())
    ends = set(policy.end_ids)
    for prompt, tree in zip(prompts, trees, strict=True):
        yield {
            "prompt": prompt.text, "group": prompt.group, "split": prompt.split, "prompt_ids": list(prompt.ids),
            "responses": [decode(branch, policy.tokenizer) for branch in tree.branches],
            "ids": [list(branch) for branch in tree.branches],
            "ended": [branch[-1] in ends for branch in tree.branches],
            "scores": [next(scores) for _ in tree.branches],
        }  # fmt: skip


def selected(
    rows: Iterable[Mapping[str, Any]], config: PairsRun, found: Yield, vocabulary: str
) -> Iterator[dict[str, Any]]:
    """The preferences of sampled rows; `found` gathers their figures."""
    for row in rows:
        kept = _distinct(row, found)
        scores = [row["scores"][n] for n in kept]
        picks: Picks = []
        if len(kept) > 1:
            picks = clear(config.select(scores, row["group"]), scores, config.min_gap, config.most)
        found.add(row["group"], scores, [len(row["ids"][n]) for n in kept], picks)
        shared = {"prompt": row["prompt"], "prompt_ids": row["prompt_ids"], "split": row["split"],
                  "vocabulary": vocabulary, "generator": row["generator"]}  # fmt: skip
        for pick in picks:
            numbers = [kept[n] for n in pick]
            yield shared | (_list(row, numbers) if isinstance(config.select, Ranking) else _pair(row, *numbers))


def _distinct(row: Mapping[str, Any], found: Yield) -> list[int]:
    """The samples that are neither empty nor said before; the others are counted."""
    kept: list[int] = []
    seen: set[str] = set()
    opening = row["prompt"].strip() if isinstance(row["prompt"], str) else ""
    for number, text in enumerate(row["responses"]):
        found.ended.append(float(row["ended"][number]))
        found.echoes += bool(opening) and text.strip().startswith(opening)
        if not text.strip():
            found.dropped["empty samples"] += 1
        elif text in seen:
            found.dropped["repeated samples"] += 1
        elif row["scores"][number] is None:
            found.dropped["samples whose score is not finite"] += 1
        else:
            seen.add(text)
            kept.append(number)
    return kept


def _pair(row: Mapping[str, Any], chosen: int, rejected: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for side, number in (("chosen", chosen), ("rejected", rejected)):
        found |= {side: row["responses"][number], f"{side}_rating": row["scores"][number],
                  f"{side}_ids": row["ids"][number], f"{side}_finished": row["ended"][number]}  # fmt: skip
    return found


def _list(row: Mapping[str, Any], numbers: Sequence[int]) -> dict[str, Any]:
    return {
        "responses": [row["responses"][n] for n in numbers], "scores": [row["scores"][n] for n in numbers],
        "responses_ids": [row["ids"][n] for n in numbers], "responses_finished": [row["ended"][n] for n in numbers],
    }  # fmt: skip


def _place(config: PairsRun) -> RunDirectory:
    """Where the data goes: a place that is free, or the one that a stopped run of the same configuration left.

    Raises:
        ValueError: the directory holds a finished run, or one of another configuration.
    """
    path = Path(config.out) if config.out else None
    if path is None or not (path / "config.yaml").exists() or (path / "report.json").exists():
        return RunDirectory(free_path(config.name or "pairs", config.out))
    own, left = _own(config), yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8"))
    other = [name for name, value in own.items() if left.get(name) != value]
    if other:
        raise ValueError(
            f"--out {config.out!r} was left by another run: {other[0]} is {left.get(other[0])!r} there and "
            f"{own[other[0]]!r} here; name another directory"
        )
    return RunDirectory(path)


def _begin(run: RunDirectory, config: PairsRun) -> None:
    """Make the directory, unless a stopped run made it."""
    if not run.path.exists():
        RunDirectory.create(run.path).write("config.yaml", yaml.safe_dump(_own(config), sort_keys=False))


def _own(config: PairsRun) -> dict[str, Any]:
    """The configuration as YAML keeps it, without its place."""
    found: dict[str, Any] = json.loads(json.dumps({"command": "pairs", **dump(config), "out": None}))
    return found


def _whole_chunks(run: RunDirectory) -> int:
    """How many rows of samples are there in whole chunks; a stopped run's last, half-done chunk is cut off."""
    if not run.path.exists():
        return 0
    count = sum(1 for _ in run.each("samples.jsonl"))
    count -= count % CHUNK
    _write(run.path / "samples.jsonl", islice(run.each("samples.jsonl"), count))
    return count


def _write(path: Path, rows: Iterator[Mapping[str, Any]]) -> int:
    """Write rows to a temporary name, then rename; the number of them."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    count = 0
    with temporary.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    temporary.rename(path)
    return count
