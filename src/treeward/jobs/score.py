"""Scores of given responses: a file in, a JSONL file out, as a stream that may be stopped and taken up again."""

import gzip
import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from treeward.data import sources
from treeward.data.render import token_tree
from treeward.evaluation.tables import wins
from treeward.maths.scores import Attributes, Scalar
from treeward.maths.statistics import Floats, Interval, share
from treeward.models.ensemble import Ensemble, mean, spread
from treeward.models.loading import ModelConfig
from treeward.models.reward_model import RewardModel
from treeward.runs.directory import finite
from treeward.trees.text import Message, Tree
from treeward.trees.tokens import TokenTree

log = logging.getLogger(__name__)

CHUNK = 256
"""Rows scored and written at a time: what a stopped run loses at most."""


@dataclass(frozen=True, kw_only=True)
class ScoreData:
    """Which rows are scored, and how they are read and cut."""

    source: str = ""
    """JSONL (.gz too) or any source of rows: prompt with response, responses, or chosen and rejected; or text alone."""
    columns: dict[str, str] = field(default_factory=dict)
    """Renames: {ours: theirs}, such as {response: answer}."""
    limit: int | None = None
    """Score only this many rows."""
    max_prompt: int = 512
    """Longest prompt in tokens, by default what the model was trained with; a longer one is cut on the left."""
    max_response: int = 512
    """Longest response in tokens, by default what the model was trained with; a longer one is cut on the right."""


@dataclass(frozen=True, kw_only=True)
class ScoreRun:
    """treeward score: the scores of given responses, one line a row."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """The reward model."""
    members: tuple[str, ...] = ()
    """Further reward models; scores are then the members' mean, and the spread is written beside."""
    data: ScoreData = field(default_factory=ScoreData)
    """The rows to score."""
    out: str = "scores.jsonl"
    """The file to write; what a stopped run left beside it is continued."""
    against: str | None = None
    """Rows in the same order with `scores` (a list, higher is better): the accuracy against them is printed."""


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
    if not config.data.source:
        raise ValueError("data.source is not given: name the file to score")
    out = Path(config.out)
    if out.exists():
        raise ValueError(f"out {config.out!r} exists; name another file")
    rows = _rows(config.data.source)
    loaded = [RewardModel.trained(config.model)] + [RewardModel.load(path) for path in config.members]
    for path, model in zip(config.members, loaded[1:], strict=True):
        for name, trained in vars(model.budgets).items() if model.budgets else ():
            if trained != getattr(config.data, name):
                given = getattr(config.data, name)
                log.warning("data.%s is %d; member %r was trained with %d", name, given, path, trained)
    partial, done = _claim(out, config)
    clock, fresh = time.monotonic(), 0
    try:
        with partial.open("a", encoding="utf-8") as file:
            waiting = islice(rows, done, config.data.limit)
            while chunk := list(islice(waiting, CHUNK)):
                lines = _scored(chunk, done, Ensemble(loaded), config)
                file.write("".join(json.dumps(finite(line), ensure_ascii=False) + "\n" for line in lines))
                file.flush()
                done += len(chunk)
                fresh += sum(len(line["scores"]) for line in lines)
    except ValueError:
        if not done:
            partial.unlink()
            _claim_file(out).unlink()
        raise
    seconds = time.monotonic() - clock
    if not done:
        partial.unlink()
        raise ValueError(f"data.source {config.data.source!r} has no rows")
    found = _summary(partial, config, done, fresh, seconds)
    partial.rename(out)
    _claim_file(out).unlink()
    return found


def tree_of(row: Mapping[str, Any], number: int) -> Tree:
    """The tree of a row, `number` counted from 1: `chosen` and `rejected`, `responses`, or `response`, after `prompt`
    (text or messages); or `text`, which has no prompt. The row is the group, since prompts may be empty.

    Raises:
        ValueError: a column is missing or a response is empty; the row is named.
    """
    sides = [row[name] for name in ("chosen", "rejected") if name in row]
    answers: Any = sides if len(sides) == 2 else row.get("responses")
    if answers is None:
        whole = "response" not in row and not row.get("prompt")
        answers = [row[name] for name in (("text",) if whole else ("response",)) if name in row]
    if not isinstance(answers, list) or not answers:
        raise ValueError(
            f"row {number} has the columns {', '.join(sorted(row))}; it needs response, responses, chosen and "
            "rejected, or text: rename with data.columns, such as {response: NAME}"
        )
    prompt: str | list[Message] = row.get("prompt") or ""
    if all(_is_chat(answer) for answer in answers):
        prompt, answers = answers[0][:-1] or prompt, [spoken[-1]["content"] for spoken in answers]
    if not all(isinstance(answer, str) for answer in answers):
        raise ValueError(f"row {number} has a response that is neither text nor messages: {str(answers)[:60]}")
    if not isinstance(prompt, str) and not _is_chat(prompt):
        raise ValueError(f"row {number} has a prompt that is neither text nor messages: {str(prompt)[:60]}")
    if any(not answer for answer in answers):
        raise ValueError(f"row {number} has an empty response; there is nothing to score")
    return Tree(prompt, answers, group=f"row {number}")


def _is_chat(spoken: Any) -> bool:
    """Whether a value is a list of messages, each with its role and text."""
    return isinstance(spoken, list) and bool(spoken) and all(
        isinstance(turn, dict) and isinstance(turn.get("role"), str) and isinstance(turn.get("content"), str)
        for turn in spoken
    )  # fmt: skip


def _named(row: Mapping[str, Any], config: ScoreRun) -> Mapping[str, Any]:
    """The row with the columns renamed as data.columns says."""
    missing = [theirs for theirs in config.data.columns.values() if theirs not in row]
    if missing:
        raise ValueError(f"data.columns names {missing[0]!r}; the data has {', '.join(sorted(row))}")
    return {**row, **{ours: row[theirs] for ours, theirs in config.data.columns.items()}}


def _rows(source: str) -> Iterator[Mapping[str, Any]]:
    """Rows one by one; JSONL is read line by line, so that a file may be larger than memory."""
    path = Path(source)
    if not path.is_file() or not path.name.endswith((".jsonl", ".jsonl.gz")):
        yield from sources.rows(source)
        return
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines):
            try:
                row = json.loads(line)
            except json.JSONDecodeError as problem:
                raise ValueError(f"data {source!r}, line {number + 1} is not JSON: {problem.msg}") from None
            if not isinstance(row, dict):
                raise ValueError(f"data {source!r}, line {number + 1} is no JSON object: {line.strip()[:60]}")
            yield row


def _scored(chunk: list[Mapping[str, Any]], first: int, ensemble: Ensemble, config: ScoreRun) -> list[dict[str, Any]]:
    model = ensemble.members[0]
    trees = [
        token_tree(
            tree_of(_named(row, config), first + n), model.tokenizer, config.data.max_prompt, config.data.max_response
        )
        for n, row in enumerate(chunk, 1)
    ]
    if len(ensemble.members) > 1:
        scores = ensemble.scores(trees)
        return _lines(trees, first, {"scores": mean(scores), "spread": spread(scores)})
    outputs = model.outputs(trees)
    columns = {"scores": model.head.scores(outputs)}
    if not isinstance(model.head, Scalar):
        distributions = model.head.log_probs(outputs).exp()
        columns["distributions"] = distributions if isinstance(model.head, Attributes) else distributions[:, 0]
    return _lines(trees, first, columns)


def _lines(trees: list[TokenTree], first: int, columns: Mapping[str, Any]) -> list[dict[str, Any]]:
    lines, at = [], 0
    for number, tree in enumerate(trees):
        ends = slice(at, at := at + len(tree.branches))
        if not bool(columns["scores"][ends].isfinite().all()):
            raise ValueError(
                f"row {first + number + 1} gets a score that is not finite: the model's weights are broken, or its "
                "products overflow (try model.precision fp32)"
            )
        lines.append({"row": first + number, **{name: values[ends].tolist() for name, values in columns.items()}})
    return lines


def _claim_file(out: Path) -> Path:
    return out.with_name(f".{out.name}.claim")


def _claim(out: Path, config: ScoreRun) -> tuple[Path, int]:
    """The partial file and how many of its rows are whole; begun anew where there is none."""
    partial, claim = out.with_name(f".{out.name}.partial"), _claim_file(out)
    asked = {"model": config.model.path, "members": list(config.members), "data": _stamp(config.data.source),
             "columns": config.data.columns, "max_prompt": config.data.max_prompt,
             "max_response": config.data.max_response}  # fmt: skip
    if partial.exists() and claim.exists():
        if json.loads(claim.read_text()) != asked:
            raise ValueError(
                f"{str(partial)!r} was left by a run of another model or file; remove it or name another out"
            )
        text = partial.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]
        temporary = partial.with_name(f"{partial.name}.{os.getpid()}")
        temporary.write_text(whole, encoding="utf-8")
        temporary.rename(partial)
        return partial, whole.count("\n")
    try:
        claim.write_text(json.dumps(asked))
    except OSError as problem:
        raise ValueError(f"out {str(out)!r} cannot be written ({problem.strerror}); name another place") from None
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
    source = config.against or config.data.source
    judged = (row if config.against else _named(row, config) for row in _rows(source))
    right: list[float] = []
    prompts: list[str] = []
    responses = 0
    with partial.open(encoding="utf-8") as lines:
        for number, (line, row) in enumerate(zip(lines, judged, strict=False), 1):
            scores = np.array(json.loads(line)["scores"], dtype=np.float64)
            responses += len(scores)
            outcomes = _pairwise(scores, row, number, bool(config.against))
            right += outcomes
            prompts += [json.dumps(row.get("prompt") or f"row {number}")] * len(outcomes)
    accuracy = share(right, prompts) if right else None
    return Scored(rows, responses, fresh, seconds, accuracy)


def _pairwise(scores: Floats, row: Mapping[str, Any], number: int, against: bool) -> list[float]:
    """1, 0 or 1/2 for each pair of responses that the judged row tells apart."""
    if not against:
        return list(wins(scores[:1], scores[1:])) if {"chosen", "rejected"} <= set(row) else []
    if "scores" not in row or len(row["scores"]) != len(scores):
        raise ValueError(f"against, row {number} has no {len(scores)} 'scores': {str(dict(row))[:80]}")
    other = np.array(row["scores"], dtype=np.float64)
    better, worse = np.nonzero(other[:, None] > other[None, :])
    return list(wins(scores[better], scores[worse]))
