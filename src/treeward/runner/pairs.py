"""Preferences from a policy's own samples: K samples a prompt, scored, the better against the worse.

Samples are drawn and scored a chunk of prompts at a time and written as they come; a stopped run goes on with the next
chunk: what a prompt's samples are drawn with depends on the seed and on the prompt alone. Pairs are then a function of
the samples on disk, so how they are selected may change before the run has ended.

OUT/
  config.yaml  samples.jsonl (all samples with ids and scores)  pairs.jsonl (the preference data)  report.json
  checks.json (what the first chunk was checked for; it stands in the report too)
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from treeward.checks import identities
from treeward.checks.check import Check, require
from treeward.checks.data import selection_check
from treeward.checks.guards import first_cut, first_rollout
from treeward.data import world
from treeward.data.prepare import DataConfig
from treeward.data.prompts import Opened, Prompt, drawn, openings
from treeward.data.render import vocabulary_hash
from treeward.data.selection import AnySelection, BestWorst, Picks, Ranking, clear
from treeward.errors import UserError
from treeward.evaluation.pairs import Yield
from treeward.models.loading import ModelConfig
from treeward.models.policy import Policy
from treeward.models.sampler import DecodeSampler, Noise, check_sampling
from treeward.models.weights import fingerprint
from treeward.rewards import scorers
from treeward.runner.options import DPORun
from treeward.runner.progress import Interrupted, follow
from treeward.runner.stopped import CHUNK, begun, kept, same_run, write_rows, written
from treeward.runs.directory import RunDirectory, alone, finite, free_path
from treeward.trees.rollout import Rollout
from treeward.trees.tokens import Tokenizer, TokenTree, decode

LATER = ("select", "min_gap", "most")
"""Fields that the samples do not depend on."""


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
    """Use only this many prompts, drawn by their names and data.seed; all by default."""
    samples: int = 8
    """K, samples a prompt."""
    max_new_tokens: int = 64
    """Longest sample, end token included."""
    temperature: float = 1.0
    """Sampling temperature; 1 samples the policy itself."""
    scorer: str | None = None
    """What judges: `gold` (the embedded world, and its default), a reward model, a classifier, `file.py:function`, or a
    rule."""
    select: AnySelection = field(default_factory=BestWorst)
    """Which samples of a prompt become a preference."""
    min_gap: float = 0.0
    """Least difference of the scores of a pair, in the scorer's units."""
    most: int | None = None
    """At most this many pairs a prompt, the first of the selection."""
    seed: int = 0
    """Seeds the samples."""
    skip_check: tuple[str, ...] = ()
    """Ids of checks whose failure is accepted, such as [I17]."""
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
            raise UserError(f"prompt_tokens is {self.prompt_tokens}; it is a number from 1, or [fewest, most]")
        if self.samples < 2:
            raise UserError(f"samples is {self.samples}; a comparison needs at least 2")
        for name, least in (("prompts", 1), ("most", 1), ("min_gap", 0), ("rounds", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"{name} is {value}; it must be at least {least}")
        check_sampling(self.max_new_tokens, self.temperature)
        if self.scorer is None and world.source(self.data.source) is None:
            raise UserError(f"scorer is not set: name what judges the answers to {self.data.source!r} with --scorer")
        if not self.rounds and self.dpo != DPORun():
            raise UserError("dpo is set, but rounds is 0, so nothing is trained: set rounds, or leave dpo away")

    @property
    def judge(self) -> str:
        """The scorer's name."""
        return self.scorer or "gold"

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
        UserError: the policy, prompts, scorer or place cannot be used, or nothing is left to compare.
        ChecksFailed: in the first chunk the samples are not the policy's (I09), no two samples of a prompt differ in
            score, or prompts of the data are hardly ever answered to an end; nothing is written.
        Interrupted: Ctrl-C; whole chunks are kept.
    """
    with ExitStack() as held:
        run = _left(config)
        if run is None:
            free_path(config.name or "pairs", config.out)
        else:
            held.enter_context(alone(run.path))
        policy = policy or Policy.trained(config.model, config.seed)
        scorer = scorers.find(config.judge)
        opened = prompts_of(config, policy.tokenizer)
        generator = fingerprint(policy.packed)[:16]
        done = 0 if run is None else kept(run, opened.prompts, generator)
        sampler = DecodeSampler.of(policy, config.max_new_tokens, config.temperature)
        starts = range(done, len(opened.prompts), CHUNK)
        checks: list[Check] = []
        try:
            for done in follow(starts, len(starts), "chunks of prompts"):
                prompts = opened.prompts[done : done + CHUNK]
                bare = [TokenTree(prompt.ids, (), prompt.group) for prompt in prompts]
                rollout = sampler(bare, config.samples, Noise(config.seed))
                checks = checks or require(identities.sampled_rollout(policy, rollout))
                rows = list(sampled(prompts, policy, rollout, scorer))
                if run is None:
                    checks += _check(rows, opened, config)
                    run = held.enter_context(begun(config))
                    run.write_json("checks.json", {"checks": [check.facts() for check in checks]})
                for row in rows:
                    run.append("samples.jsonl", row | {"generator": generator})
        except KeyboardInterrupt:
            if run is None:
                raise
            said = f"stopped after {done} of {len(opened.prompts)} prompts"
            raise Interrupted(f"{said}; go on with the same command and --out {run.path}") from None
        assert run is not None, "there are prompts, so a chunk was begun"
        run.write("config.yaml", written(config))
        found = Yield(config.samples, opened.dropped)
        preferences = selected(run.each("samples.jsonl"), config, found, vocabulary_hash(policy.tokenizer))
        if not write_rows(run.path / "pairs.jsonl", preferences):
            raise UserError(
                f"no pair is left of {found.prompts} prompts: in {found.silent} no two scores differ, in "
                f"{found.passed_over} by less than min_gap {config.min_gap}; the samples are kept: lower min_gap or "
                f"change select, with --out {run.path}"
            )
        about = {"prompts_cut": opened.cut, "scorer": scorer.name, "generator": generator, "seed": config.seed}
        report = finite(found.report() | about | dict(run.read_json("checks.json") or {}))
        run.write_json("report.json", report)
        return Made(run.path, report)


def prompts_of(config: PairsRun, tokenizer: Tokenizer) -> Opened:
    """The prompts that are sampled from.

    Raises:
        UserError: the source cannot be read, or nothing is left.
    """
    opened = openings(config.data, tokenizer, config.range)
    return replace(opened, prompts=drawn(opened.prompts, config.prompts, config.data.seed))


def sampled(
    prompts: Sequence[Prompt], policy: Policy, rollout: Rollout, scorer: scorers.Scorer
) -> Iterator[dict[str, Any]]:
    """One row a prompt: its K samples with ids, text, score, and whether each ended."""
    scores = iter(scorer(rollout.trees, policy.tokenizer).tolist())
    ends = set(policy.end_ids)
    for prompt, tree in zip(prompts, rollout.trees, strict=True):
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
        found.see(row["scores"], row["ended"])
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
        found.echoes += bool(opening) and text.strip().startswith(opening)
        if not text.strip():
            found.dropped["empty samples"] += 1
        elif text in seen:
            found.dropped["repeated samples"] += 1
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


def _check(rows: Sequence[Mapping[str, Any]], opened: Opened, config: PairsRun) -> list[Check]:
    """Checks of the first chunk: scores, parts and ends. A text that is cut into a prompt has no end, so only prompts
    that the data gave are asked for ends.
    """
    checks = [
        first_rollout([row["scores"] for row in rows], rows[0]["responses"]),
        selection_check(opened.parts, Counter(prompt.split for prompt in opened.prompts)),
    ]
    if opened.given:
        checks.append(first_cut([ended for row in rows for ended in row["ended"]], config.max_new_tokens))
    return require(checks, config.skip_check)


def _left(config: PairsRun) -> RunDirectory | None:
    """What a stopped run of the same configuration left at its place, if there is anything.

    Raises:
        UserError: what is there was left by a run of another configuration.
    """
    path = Path(config.out) if config.out else None
    if path is None or not (path / "config.yaml").exists() or (path / "report.json").exists():
        return None
    same_run(path, config, LATER)
    return RunDirectory(path)
