"""`treeward pairs`: preferences from a policy's own samples. K samples a prompt are scored; the better becomes chosen.

Samples are drawn, scored and written a chunk of prompts at a time. A stopped run continues with the next chunk: the
noise of a sample depends on the seed and the prompt alone. Pairs are then computed from the samples on disk, so how
they are selected may still change when a stopped run continues.

OUT/
  config.yaml  samples.jsonl (all samples with ids and scores)  pairs.jsonl (the preference data)  report.json
  checks.json (the checks of the first chunk, which report.json repeats)
"""

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from treeward.checks import identities
from treeward.checks.check import Check, require
from treeward.checks.data import selection_check
from treeward.checks.guards import first_cut, first_rollout
from treeward.data import embedded
from treeward.data.prepare import DataConfig
from treeward.data.prompts import Opened, Prompt, drawn, openings, prompt_range
from treeward.data.render import vocabulary_hash
from treeward.data.selection import AnySelection, BestWorst, Picks, Ranking, clear
from treeward.errors import UserError
from treeward.evaluation.pairs import PairStatistics
from treeward.methods.dpo import DPORun
from treeward.models.loading import ModelConfig
from treeward.models.policy import Policy
from treeward.models.sampler import DecodeSampler, Noise, Sampler, check_sampling
from treeward.models.weights import fingerprint
from treeward.rewards import scorers
from treeward.runner.process import prepare_process
from treeward.runner.progress import Interrupted, Reporter, TerminalReporter
from treeward.runner.settings import dump, read_yaml
from treeward.runs.directory import RunDirectory, alone, created, finite, free_path
from treeward.trees.rollout import Rollout
from treeward.trees.tokens import Tokenizer, TokenTree, decode

CHUNK = 16
"""Prompts that are sampled, scored and written at a time: what a stopped run loses at most."""
MAY_CHANGE = ("select", "min_gap", "most")
"""Fields that may differ when a stopped run continues: the samples do not depend on them."""


@dataclass(frozen=True, kw_only=True)
class PairsRun:
    """treeward pairs: preferences from a policy's own samples, chosen by a scorer."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """The policy that is sampled."""
    data: DataConfig = field(default_factory=DataConfig)
    """The source of prompts, with their splits. Texts without prompts give their first tokens as prompts."""
    prompt_tokens: int | tuple[int, int] = 8
    """First tokens of a text that become its prompt, if the data has no prompts; [2, 8] draws from a range."""
    prompts: int | None = None
    """Use only this many prompts, drawn by a hash of their names and data.seed; all by default."""
    samples: int = 8
    """K, samples for each prompt."""
    max_new_tokens: int = 64
    """Longest sample in tokens, end token included."""
    temperature: float = 1.0
    """Sampling temperature; 1 samples the policy itself."""
    scorer: str | None = None
    """Scores the samples: `gold` (the embedded world, and its default), a reward model, a classifier,
    `file.py:function`, or a rule."""
    select: AnySelection = field(default_factory=BestWorst)
    """Which samples of a prompt become a preference."""
    min_gap: float = 0.0
    """Least difference of a pair's scores, in the scorer's units."""
    most: int | None = None
    """At most this many pairs a prompt, the first of the selection."""
    seed: int = 0
    """Seeds the samples."""
    skip_check: tuple[str, ...] = ()
    """Slugs or ids of checks whose failure is accepted, such as [first-samples-end]; see `treeward explain`."""
    name: str | None = None
    """The directory's name under runs/; by default the recipe's or `pairs`."""
    out: str | None = None
    """The directory itself. If a stopped run with the same configuration is there, it is continued."""
    rounds: int = 0
    """Train by DPO on the pairs and sample again from the trained policy, this many times; 0 makes pairs only."""
    dpo: DPORun = field(default_factory=DPORun)
    """The training of each round; its model and data are set by the round."""

    def __post_init__(self) -> None:
        prompt_range(self.prompt_tokens)
        if self.samples < 2:
            raise UserError(f"samples is {self.samples}; a comparison needs at least 2")
        for name, least in (("prompts", 1), ("most", 1), ("min_gap", 0), ("rounds", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"{name} is {value}; it must be at least {least}")
        check_sampling(self.max_new_tokens, self.temperature)
        if self.scorer is None and embedded.model_of(self.data.source) != "world":
            raise UserError(f"scorer is not set: name a scorer for responses to {self.data.source!r} with --scorer")
        if not self.rounds and self.dpo != DPORun():
            raise UserError("dpo is set, but rounds is 0, so nothing is trained: set rounds, or leave dpo out")

    @property
    def scorer_name(self) -> str:
        """The scorer's name; on the embedded world `gold` by default."""
        return self.scorer or "gold"


@dataclass(frozen=True)
class PairsMade:
    """Where the data is, and its report."""

    path: Path
    report: dict[str, Any]

    @property
    def pairs(self) -> Path:
        """The preference data, which every training command reads."""
        return self.path / "pairs.jsonl"


def make_pairs(
    config: PairsRun,
    policy: Policy | None = None,
    *,
    sampler: Sampler | None = None,
    scorer: scorers.Scorer | None = None,
    reporter: Reporter | None = None,
) -> PairsMade:
    """Sample, score, select and report.

    Args:
        config: The configuration.
        policy: The policy; by default it is loaded from the configuration.
        sampler: Replaces the policy's own decoding.
        scorer: Replaces the scorer that the configuration names.
        reporter: Is told about the progress; by default the terminal.

    Raises:
        UserError: the policy, prompts, scorer or place cannot be used, or no pair is left.
        ChecksFailed: in the first chunk the samples are not the policy's (I09), no two samples of a prompt differ in
            score, or responses to the data's prompts hardly ever end; nothing is written.
        Interrupted: Ctrl-C; whole chunks are kept.
    """
    with ExitStack() as stack:
        run = _stopped_run(config)
        if run is None:
            free_path(config.name or "pairs", config.out)
        else:
            stack.enter_context(alone(run.path))
        policy = policy or Policy.trained(config.model, config.seed)
        prepare_process(policy)
        scorer = scorer or scorers.find(config.scorer_name)
        opened = prompts_of(config, policy.tokenizer)
        identities.warn_missing_start_token(
            policy, [prompt.ids for prompt in opened.prompts if isinstance(prompt.text, str)]
        )
        generator = fingerprint(policy.packed.model)[:16]
        done = 0 if run is None else kept_rows(run, opened.prompts, generator)
        sampler = sampler or DecodeSampler.of(policy, config.max_new_tokens, config.temperature)
        starts = range(done, len(opened.prompts), CHUNK)
        checks: list[Check] = []
        try:
            for done in (reporter or TerminalReporter()).progress(starts, len(starts), "chunks of prompts"):
                prompts = opened.prompts[done : done + CHUNK]
                bare = [TokenTree(prompt.ids, (), prompt.group, row=prompt.row) for prompt in prompts]
                rollout = sampler(bare, config.samples, Noise(config.seed))
                checks = checks or require(identities.sampled_rollout(policy, rollout))
                rows = list(sample_rows(prompts, policy, rollout, scorer))
                if run is None:
                    checks += _first_chunk_checks(rows, opened, config)
                    run = stack.enter_context(new_directory(config))
                    run.write_json("checks.json", {"checks": [check.facts() for check in checks]})
                for row in rows:
                    run.append("samples.jsonl", row | {"generator": generator})
        except KeyboardInterrupt:
            if run is None:
                raise
            stopped = f"stopped after {done} of {len(opened.prompts)} prompts"
            raise Interrupted(f"{stopped}; go on with the same command and --out {run.path}") from None
        assert run is not None, "there are prompts, so a chunk was begun"
        run.write("config.yaml", as_yaml(config))
        statistics = PairStatistics(config.samples, opened.dropped)
        preferences = select(run.each("samples.jsonl"), config, statistics, vocabulary_hash(policy.tokenizer))
        if not write_rows(run.path / "pairs.jsonl", preferences):
            raise UserError(
                f"no pair is left of {statistics.prompts} prompts: in {statistics.no_signal} all scores are equal, in "
                f"{statistics.below_min_gap} no pair meets min_gap {config.min_gap}; the samples are kept: lower "
                f"min_gap or change select, with --out {run.path}"
            )
        facts = {"prompts_cut": opened.cut, "scorer": scorer.name, "generator": generator, "seed": config.seed}
        report = finite(statistics.report() | facts | dict(run.read_json("checks.json") or {}))
        run.write_json("report.json", report)
        return PairsMade(run.path, report)


def prompts_of(config: PairsRun, tokenizer: Tokenizer) -> Opened:
    """The prompts to sample from.

    Raises:
        UserError: the source cannot be read, or no prompt is left.
    """
    opened = openings(config.data, tokenizer, prompt_range(config.prompt_tokens))
    return replace(opened, prompts=drawn(opened.prompts, config.prompts, config.data.seed))


def sample_rows(
    prompts: Sequence[Prompt], policy: Policy, rollout: Rollout, scorer: scorers.Scorer
) -> Iterator[dict[str, Any]]:
    """One row a prompt: its K samples with ids, text, score, and whether each ended."""
    scores = iter(scorer(rollout).tolist())
    ends = set(policy.end_ids)
    for prompt, tree in zip(prompts, rollout.trees, strict=True):
        yield {
            "prompt": prompt.text,
            "group": prompt.group,
            "split": prompt.split,
            "prompt_ids": list(prompt.ids),
            "responses": [decode(branch, policy.tokenizer) for branch in tree.branches],
            "ids": [list(branch) for branch in tree.branches],
            "ended": [branch[-1] in ends for branch in tree.branches],
            "scores": [next(scores) for _ in tree.branches],
            "row": other_columns(prompt),
        }


def other_columns(prompt: Prompt) -> dict[str, Any]:
    """The other columns of the prompt's data row, without values that JSON cannot hold: a scorer that reads them can
    then score responses to the prompts of the preferences too.
    """
    return {name: value for name, value in (prompt.row or {}).items() if _is_json(value)}


def _is_json(value: Any) -> bool:
    try:
        json.dumps(finite(value))
    except (TypeError, ValueError):
        return False
    return True


def select(
    rows: Iterable[Mapping[str, Any]], config: PairsRun, statistics: PairStatistics, vocabulary: str
) -> Iterator[dict[str, Any]]:
    """The preferences of sampled rows; `statistics` collects their figures."""
    for row in rows:
        statistics.add_samples(row["scores"], row["ended"])
        distinct = _distinct(row, statistics)
        scores = [row["scores"][n] for n in distinct]
        picks: Picks = []
        if len(distinct) > 1:
            picks = clear(config.select(scores, row["group"]), scores, config.min_gap, config.most)
        statistics.add_picks(row["group"], scores, [len(row["ids"][n]) for n in distinct], picks)
        shared = {
            "prompt": row["prompt"],
            "prompt_ids": row["prompt_ids"],
            "split": row["split"],
            "vocabulary": vocabulary,
            "generator": row["generator"],
            "row": row.get("row", {}),
        }
        for pick in picks:
            numbers = [distinct[n] for n in pick]
            is_ranking = isinstance(config.select, Ranking)
            yield shared | (_ranking_columns(row, numbers) if is_ranking else _pair_columns(row, *numbers))


def _distinct(row: Mapping[str, Any], statistics: PairStatistics) -> list[int]:
    """The samples that are neither empty nor repeated; the others are counted."""
    distinct: list[int] = []
    seen: set[str] = set()
    prompt = row["prompt"].strip() if isinstance(row["prompt"], str) else ""
    for number, text in enumerate(row["responses"]):
        statistics.echoes += bool(prompt) and text.strip().startswith(prompt)
        if not text.strip():
            statistics.dropped["empty samples"] += 1
        elif text in seen:
            statistics.dropped["repeated samples"] += 1
        else:
            seen.add(text)
            distinct.append(number)
    return distinct


def _pair_columns(row: Mapping[str, Any], chosen: int, rejected: int) -> dict[str, Any]:
    columns: dict[str, Any] = {}
    for side, number in (("chosen", chosen), ("rejected", rejected)):
        columns[side] = row["responses"][number]
        columns[f"{side}_rating"] = row["scores"][number]
        columns[f"{side}_ids"] = row["ids"][number]
        columns[f"{side}_finished"] = row["ended"][number]
    return columns


def _ranking_columns(row: Mapping[str, Any], numbers: Sequence[int]) -> dict[str, Any]:
    return {
        "responses": [row["responses"][n] for n in numbers],
        "scores": [row["scores"][n] for n in numbers],
        "responses_ids": [row["ids"][n] for n in numbers],
        "responses_finished": [row["ended"][n] for n in numbers],
    }


def _first_chunk_checks(rows: Sequence[Mapping[str, Any]], opened: Opened, config: PairsRun) -> list[Check]:
    """Scores differ, the parts of the data are sampled in proportion, and responses end. Prompts that were cut from
    texts have no natural end, so that check is skipped for them.
    """
    checks = [
        first_rollout([row["scores"] for row in rows], rows[0]["responses"]),
        selection_check(opened.parts, Counter(prompt.split for prompt in opened.prompts)),
    ]
    if opened.from_data:
        checks.append(first_cut([ended for row in rows for ended in row["ended"]], config.max_new_tokens))
    return require(checks, config.skip_check)


# Directories of stopped runs, shared with rounds


def _stopped_run(config: PairsRun) -> RunDirectory | None:
    """The directory of a stopped run of the same configuration, if there is one.

    Raises:
        UserError: the run there has another configuration.
    """
    path = Path(config.out) if config.out else None
    if path is None or not (path / "config.yaml").exists() or (path / "report.json").exists():
        return None
    require_same_config(path, config, MAY_CHANGE)
    return RunDirectory(path)


def require_same_config(path: Path, config: Any, may_change: Sequence[str] = ()) -> None:
    """Refuse the directory of a run with another configuration; the fields in `may_change` may differ.

    Raises:
        UserError: a field differs; it is named.
    """
    here = yaml.safe_load(as_yaml(config))
    there = read_yaml(path / "config.yaml", f"{str(path / 'config.yaml')!r}")
    different = [name for name, value in here.items() if there.get(name) != value and name not in may_change]
    if different:
        name = different[0]
        raise UserError(
            f"--out {str(path)!r} has a run with another configuration: {name} is {there.get(name)!r} there and "
            f"{here[name]!r} here; name another directory"
        )


def as_yaml(config: Any) -> str:
    """The configuration as YAML, without its place."""
    plain = json.loads(json.dumps({"command": "pairs", **dump(config), "out": None}))
    return str(yaml.safe_dump(plain, sort_keys=False))


@contextmanager
def new_directory(config: Any) -> Iterator[RunDirectory]:
    """A new run directory with the configuration in it, locked for this process."""
    run = created(config.name or "pairs", config.out)
    with alone(run.path):
        run.write("config.yaml", as_yaml(config))
        yield run


def kept_rows(run: RunDirectory, prompts: Sequence[Prompt], generator: str) -> int:
    """How many rows of samples stay. If the run stopped while sampling, a half-finished last chunk is removed.

    Raises:
        UserError: a row is of another prompt, or by other weights, than now.
    """
    count = 0
    for count, row in enumerate(run.each("samples.jsonl"), 1):
        prompt = prompts[count - 1] if count <= len(prompts) else None
        if prompt is None or row["prompt_ids"] != list(prompt.ids):
            raise UserError(
                f"--out {str(run.path)!r}: sample row {count} has the prompt {str(row['prompt'])[:60]!r}, but the data "
                f"now gives {str(prompt.text)[:60] if prompt else None!r}; the data has changed: name another directory"
            )
        if row["generator"] != generator:
            raise UserError(
                f"--out {str(run.path)!r}: sample row {count} is by the weights {row['generator']}, and the policy's "
                f"are {generator}; it was trained since: name another directory"
            )
    if count < len(prompts):
        count -= count % CHUNK
        write_rows(run.path / "samples.jsonl", islice(run.each("samples.jsonl"), count))
    return count


def write_rows(path: Path, rows: Iterator[Mapping[str, Any]]) -> int:
    """Write rows to a temporary name, then rename; returns their number."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    count = 0
    with temporary.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    temporary.rename(path)
    return count
