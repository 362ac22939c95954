"""Scores of given responses: a file in, a JSONL file out, as a stream that may be stopped and taken up again."""

import gzip
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from treeward.data import sources
from treeward.data.columns import Names, has, several, value_of
from treeward.data.formats import messages_of
from treeward.data.render import token_tree
from treeward.evaluation.tables import wins
from treeward.maths.scores import Attributes, Scalar
from treeward.maths.statistics import Floats, Interval, share
from treeward.models.ensemble import Ensemble, mean, spread
from treeward.models.loading import ModelConfig
from treeward.models.reward_model import RewardModel
from treeward.runs.directory import finite
from treeward.trees.text import Tree, normalised
from treeward.trees.tokens import TokenTree

CHUNK = 256
"""Rows scored and written at a time: what a stopped run loses at most."""


@dataclass(frozen=True, kw_only=True)
class ScoreRun:
    """treeward score: the scores of given responses, one line a row."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """The reward model."""
    members: tuple[str, ...] = ()
    """Further reward models; scores are then the members' mean, and the spread is written beside."""
    data: str = ""
    """JSONL (.gz too) or any source of rows: prompt with response, responses, or chosen and rejected; or text."""
    columns: dict[str, str | list[str]] = field(default_factory=dict)
    """Which column is what, {ours: theirs}; also written as --data.columns."""
    out: str = "scores.jsonl"
    """The file to write; what a stopped run left beside it is continued."""
    against: str | None = None
    """Rows in the same order with `scores` (a list, higher is better): the accuracy against them is printed."""
    limit: int | None = None
    """Score only this many rows."""
    max_prompt: int = 512
    """Longest prompt in tokens; a longer one is cut on the left."""
    max_response: int = 512
    """Longest response in tokens; a longer one is cut on the right."""


@dataclass(frozen=True)
class Scored:
    """What was done: rows and responses in all, those of this call, seconds; accuracy by prompt where it is known."""

    rows: int
    responses: int
    fresh: int
    seconds: float
    accuracy: Interval | None


def score(config: ScoreRun) -> Scored:
    """Score every row of `config.data` into `config.out`.

    Raises:
        ValueError: a model, row or place cannot be used, `out` exists, or what stands beside it is of another run.
    """
    if not config.data:
        raise ValueError("data is not given: name the file to score with --data FILE")
    out = Path(config.out)
    if out.exists():
        raise ValueError(f"--out {config.out!r} exists; name another file")
    rows = _rows(config.data)
    loaded = [RewardModel.trained(config.model)] + [RewardModel.load(path) for path in config.members]
    partial, done = _claim(out, config)
    clock, fresh = time.monotonic(), 0
    with partial.open("a", encoding="utf-8") as file:
        waiting = islice(rows, done, config.limit)
        while chunk := list(islice(waiting, CHUNK)):
            lines = _scored(chunk, done, Ensemble(loaded), config)
            file.write("".join(json.dumps(finite(line), ensure_ascii=False) + "\n" for line in lines))
            file.flush()
            done += len(chunk)
            fresh += sum(len(line["scores"]) for line in lines)
    seconds = time.monotonic() - clock
    if not done:
        partial.unlink()
        raise ValueError(f"data {config.data!r} has no rows")
    found = _summary(partial, config, done, fresh, seconds)
    partial.rename(out)
    _claim_file(out).unlink()
    return found


def tree_of(row: Mapping[str, Any], place: str) -> Tree:
    """The tree of a row: `chosen` and `rejected`, `responses`, or `response`, after `prompt` (text or messages); or
    `text` without a prompt.

    Raises:
        ValueError: a column is missing, or is no text; the row is named.
    """
    sides = [row[name] for name in ("chosen", "rejected") if name in row]
    single = [row[name] for name in ("response", "text") if name in row][:1]
    answers = sides if len(sides) == 2 else row.get("responses", single)
    if not answers:
        raise ValueError(f"{place} has the columns {', '.join(sorted(row))}; it needs response, responses or text")
    prompt: str | list[dict[str, str]] = row.get("prompt") or ""
    try:
        if isinstance(prompt, list | tuple):
            prompt = messages_of(prompt, "prompt")
        if isinstance(answers[0], list | tuple):
            turns = [messages_of(answer, "chosen") for answer in answers]
            prompt, answers = turns[0][:-1] or prompt, [turn[-1]["content"] if turn else "" for turn in turns]
        for answer in (prompt, *answers):
            if not isinstance(answer, str | list):
                raise ValueError(f"it holds {str(answer)[:40]!r} where text is expected")
    except ValueError as problem:
        raise ValueError(f"{place}: {problem}") from None
    if any(not answer for answer in answers):
        raise ValueError(f"{place} has an empty response; there is nothing to score")
    return Tree(prompt, answers, group=place)


def _mapped(row: Mapping[str, Any], columns: Mapping[str, Names], place: str) -> Mapping[str, Any]:
    """The row with our names beside the source's."""
    for theirs in (name for names in columns.values() for name in several(names)):
        if not has(row, theirs):
            raise ValueError(f"{place}: data.columns names {theirs!r}; the row has {', '.join(sorted(row))}")
    return {**row, **{ours: value_of(row, ours, theirs) for ours, theirs in columns.items()}}


def _rows(source: str) -> Iterator[Mapping[str, Any]]:
    """Rows one by one; JSONL is read line by line, so that a file may be larger than memory."""
    path = Path(source)
    if not path.is_file() or not path.name.endswith((".jsonl", ".jsonl.gz")):
        yield from sources.rows(source)
        return
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines):
            try:
                yield json.loads(line)
            except json.JSONDecodeError as problem:
                raise ValueError(f"data {source!r}, line {number + 1} is not JSON: {problem.msg}") from None


def _scored(chunk: list[Mapping[str, Any]], first: int, ensemble: Ensemble, config: ScoreRun) -> list[dict[str, Any]]:
    model = ensemble.members[0]
    trees = [
        token_tree(
            tree_of(_mapped(row, config.columns, place), place), model.tokenizer, config.max_prompt, config.max_response
        )
        for row, place in ((row, f"{config.data}, row {first + n}") for n, row in enumerate(chunk, 1))
    ]
    if len(ensemble.members) > 1:
        scores = ensemble.scores(trees)
        return _lines(trees, config.data, first, {"scores": mean(scores), "spread": spread(scores)})
    outputs = model.outputs(trees)
    columns = {"scores": model.head.scores(outputs)}
    if not isinstance(model.head, Scalar):
        distributions = model.head.log_probs(outputs).exp()
        columns["distributions"] = distributions if isinstance(model.head, Attributes) else distributions[:, 0]
    return _lines(trees, config.data, first, columns)


def _lines(trees: list[TokenTree], source: str, first: int, columns: Mapping[str, Any]) -> list[dict[str, Any]]:
    lines, at = [], 0
    for number, tree in enumerate(trees):
        ends = slice(at, at := at + len(tree.branches))
        if not bool(columns["scores"][ends].isfinite().all()):
            raise ValueError(
                f"{source}, row {first + number + 1} gets a score that is not finite: the model's weights are broken, "
                "or its products overflow (try --model.precision fp32)"
            )
        lines.append({"row": first + number, **{name: values[ends].tolist() for name, values in columns.items()}})
    return lines


def _claim_file(out: Path) -> Path:
    return out.with_name(f".{out.name}.claim")


def _claim(out: Path, config: ScoreRun) -> tuple[Path, int]:
    """The partial file and how many of its rows are whole; begun anew where there is none."""
    partial, claim = out.with_name(f".{out.name}.partial"), _claim_file(out)
    asked = {"model": config.model.path, "members": list(config.members), "data": _stamp(config.data),
             "columns": config.columns,
             "max_prompt": config.max_prompt, "max_response": config.max_response}  # fmt: skip
    if partial.exists() and claim.exists():
        if json.loads(claim.read_text()) != asked:
            raise ValueError(f"{str(partial)!r} was left by a run of another model or file; remove it or name --out")
        text = partial.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]
        temporary = partial.with_name(f"{partial.name}.{os.getpid()}")
        temporary.write_text(whole, encoding="utf-8")
        temporary.rename(partial)
        return partial, whole.count("\n")
    try:
        claim.write_text(json.dumps(asked))
    except OSError as problem:
        raise ValueError(f"--out {str(out)!r} cannot be written ({problem.strerror}); name another place") from None
    partial.write_text("")
    return partial, 0


def _stamp(source: str) -> str:
    """The source's name and, of a file, its size and the hash of its beginning."""
    path = Path(source)
    if not path.is_file():
        return source
    with path.open("rb") as file:
        return f"{path.name} {path.stat().st_size} {hashlib.sha256(file.read(1 << 20)).hexdigest()[:16]}"


def _summary(partial: Path, config: ScoreRun, rows: int, fresh: int, seconds: float) -> Scored:
    judged = _rows(config.against) if config.against else _rows(config.data)
    right: list[float] = []
    prompts: list[str] = []
    responses = 0
    with partial.open(encoding="utf-8") as lines:
        for number, (line, given) in enumerate(zip(lines, judged, strict=False)):
            row = given if config.against else _mapped(given, config.columns, f"row {number + 1}")
            own = np.array(json.loads(line)["scores"], dtype=np.float64)
            responses += len(own)
            found = _pairwise(own, row, bool(config.against))
            right += found
            prompts += [_group(row.get("prompt"), number)] * len(found)
    accuracy = share(right, prompts) if right else None
    return Scored(rows, responses, fresh, seconds, accuracy)


def _group(prompt: Any, number: int) -> str:
    """The unit of the interval: the prompt as data splits know it; where there is none, the row."""
    if not prompt:
        return f"row {number + 1}"
    return normalised(prompt if isinstance(prompt, str) else tuple(messages_of(prompt, "prompt")))


def _pairwise(own: Floats, row: Mapping[str, Any], against: bool) -> list[float]:
    """1, 0 or 1/2 for each pair of responses that the judged row tells apart."""
    if not against:
        return list(wins(own[:1], own[1:])) if {"chosen", "rejected"} <= set(row) else []
    if "scores" not in row or len(row["scores"]) != len(own):
        raise ValueError(f"against has a row without {len(own)} 'scores': {str(dict(row))[:80]}")
    other = np.array(row["scores"], dtype=np.float64)
    better, worse = np.nonzero(other[:, None] > other[None, :])
    return list(wins(own[better], own[worse]))
