"""Scores of given responses, for `treeward score`: a file in, a JSONL file out.

Rows are streamed. A run that was stopped is continued by the same command: it writes to `.NAME.partial` beside `NAME`,
and `.NAME.claim` records the model and data, so that another run does not continue it.
"""

import hashlib
import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from treeward.data import formats, sources
from treeward.data.columns import Names, has, several, value_of
from treeward.data.render import token_tree
from treeward.errors import UserError
from treeward.losses.heads import Attributes, Scalar
from treeward.models.ensemble import Ensemble, mean, spread
from treeward.models.loading import ModelConfig
from treeward.models.reward_model import RewardModel
from treeward.runner.process import prepare_process
from treeward.runs.directory import finite
from treeward.stats.intervals import Floats, Interval, share
from treeward.stats.tables import wins
from treeward.trees.text import Tree, normalised
from treeward.trees.tokens import TokenTree

log = logging.getLogger(__name__)

CHUNK = 256
"""Rows scored and written at a time: the most that a stopped run has to repeat."""


@dataclass(frozen=True, kw_only=True)
class ScoreData:
    """The rows to score, and how they are read and cut."""

    source: str = ""
    """A JSONL file (also .gz) or another source of rows: prompt with response, responses, or chosen and rejected."""
    columns: dict[str, str | list[str]] = field(default_factory=dict)
    """New names for columns: {our name: name in the data}, such as {response: answer}."""
    limit: int | None = None
    """Score only this many rows."""
    max_prompt: int = 512
    """Length limit of a prompt in tokens, by default that of training; a longer one is cut on the left."""
    max_response: int = 512
    """Length limit of a response in tokens, by default that of training; a longer one is cut on the right."""


@dataclass(frozen=True, kw_only=True)
class ScoreRun:
    """treeward score: scores of given responses, one JSON line per row."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """The reward model."""
    members: tuple[str, ...] = ()
    """Further reward models. The scores are then the mean over all models, and `spread` is written too."""
    data: ScoreData = field(default_factory=ScoreData)
    """The rows to score."""
    out: str = "scores.jsonl"
    """The file to write; it must not exist. A run that was stopped is continued."""
    against: str | None = None
    """A file of the same rows in order with `scores` (a list, higher is better), to measure the accuracy on."""


@dataclass(frozen=True)
class Scored:
    """The result: rows and responses in all, responses scored in this call (`fresh`), seconds; the accuracy by prompt
    where the data has the better response.
    """

    rows: int
    responses: int
    fresh: int
    seconds: float
    accuracy: Interval | None


def score(config: ScoreRun) -> Scored:
    """Score every row of `config.data` into `config.out`.

    Raises:
        UserError: a model, a row or `out` cannot be used, `out` exists, or another run was stopped while writing it.
    """
    if not config.data.source:
        raise UserError("data.source is not given: name the file to score")
    out = Path(config.out)
    if out.exists():
        raise UserError(f"out {config.out!r} exists; name another file")
    rows = sources.open_source(config.data.source)
    loaded = [RewardModel.trained(config.model)] + [RewardModel.load(path) for path in config.members]
    prepare_process(loaded[0])
    for path, model in zip(config.members, loaded[1:], strict=True):
        for name, trained in vars(model.budgets).items() if model.budgets else ():
            if trained != getattr(config.data, name):
                value = getattr(config.data, name)
                log.warning("data.%s is %d; member %r was trained with %d", name, value, path, trained)
    partial, done = _claim(out, config)
    clock, fresh = time.monotonic(), 0
    try:
        with rows.located(), partial.open("a", encoding="utf-8") as file:
            remaining = islice(rows, done, config.data.limit)
            while chunk := list(islice(remaining, CHUNK)):
                lines = _scored(chunk, done, Ensemble(loaded), config)
                file.write("".join(json.dumps(finite(line), ensure_ascii=False) + "\n" for line in lines))
                file.flush()
                done += len(chunk)
                fresh += sum(len(line["scores"]) for line in lines)
    except UserError:
        if not done:
            partial.unlink()
            _claim_file(out).unlink()
        raise
    seconds = time.monotonic() - clock
    if not done:
        partial.unlink()
        raise UserError(f"data.source {config.data.source!r} has no rows")
    result = _summary(partial, config, done, fresh, seconds)
    partial.rename(out)
    _claim_file(out).unlink()
    return result


def tree_of(row: Mapping[str, Any], number: int) -> Tree:
    """The tree of a row: `chosen` and `rejected`, `responses` or `response` after `prompt` (text or messages), or
    `text` without a prompt. Each row is a group of its own, since prompts may be empty. `number` is counted from 0.

    Raises:
        BadRow: a column is missing, a value is not text, or a response is empty.
    """
    pair = [(name, row[name]) for name in ("chosen", "rejected") if name in row]
    listed = [("responses", item) for item in row["responses"]] if isinstance(row.get("responses"), list) else []
    single = [("response", row["response"])] if "response" in row else []
    text = [("text", row["text"])] if "text" in row and not row.get("prompt") else []
    columns = pair if len(pair) == 2 else listed or single or text
    if not columns:
        raise sources.BadRow(
            number,
            f"it has the columns {', '.join(sorted(row))}; it needs response, responses, chosen and rejected, or text: "
            "rename with data.columns, such as {response: NAME}",
        )
    try:
        answers = [formats.as_text_or_messages(answer, name) for name, answer in columns]
        prompt = formats.optional(formats.as_text_or_messages)(row.get("prompt"), "prompt") or ""
    except UserError as problem:
        raise sources.BadRow(number, str(problem)) from None
    if isinstance(answers[0], list) and answers[0][:-1]:
        prompt = answers[0][:-1]
    responses = [
        answer if isinstance(answer, str) else "".join(message["content"] for message in answer[-1:])
        for answer in answers
    ]
    if any(not response for response in responses):
        raise sources.BadRow(number, "it has an empty response; there is nothing to score")
    return Tree(prompt, responses, group=f"row {number + 1}")


def _mapped(row: Mapping[str, Any], columns: Mapping[str, Names]) -> Mapping[str, Any]:
    """The row with our column names added to those of the source.

    Raises:
        UserError: the row lacks a column that `columns` names.
    """
    for theirs in (name for names in columns.values() for name in several(names)):
        if not has(row, theirs):
            raise UserError(f"data.columns names {theirs!r}; the data has {', '.join(sorted(row))}")
    return {**row, **{ours: value_of(row, ours, theirs) for ours, theirs in columns.items()}}


def _scored(
    chunk: Sequence[Mapping[str, Any]], first: int, ensemble: Ensemble, config: ScoreRun
) -> list[dict[str, Any]]:
    model = ensemble.members[0]
    trees = [
        token_tree(
            tree_of(_mapped(row, config.data.columns), first + n),
            model.tokenizer,
            config.data.max_prompt,
            config.data.max_response,
        )
        for n, row in enumerate(chunk)
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
            raise sources.BadRow(
                first + number,
                "its score is not finite: the model's weights are broken, or its products overflow (try "
                "model.precision fp32)",
            )
        lines.append({"row": first + number, **{name: values[ends].tolist() for name, values in columns.items()}})
    return lines


def _claim_file(out: Path) -> Path:
    return out.with_name(f".{out.name}.claim")


def _claim(out: Path, config: ScoreRun) -> tuple[Path, int]:
    """The partial file and how many of its rows are complete; a new one if no run was stopped.

    Raises:
        UserError: a run with other inputs was stopped while writing the same file, or the place cannot be written.
    """
    partial, claim = out.with_name(f".{out.name}.partial"), _claim_file(out)
    inputs = {
        "model": config.model.path,
        "members": list(config.members),
        "data": _fingerprint(config.data.source),
        "columns": config.data.columns,
        "max_prompt": config.data.max_prompt,
        "max_response": config.data.max_response,
    }
    if partial.exists() and claim.exists():
        if json.loads(claim.read_text()) != inputs:
            raise UserError(
                f"{str(partial)!r} was left by a run of another model or file; remove it or name another out"
            )
        text = partial.read_text(encoding="utf-8")
        whole_lines = text[: text.rfind("\n") + 1]
        temporary = partial.with_name(f"{partial.name}.{os.getpid()}")
        temporary.write_text(whole_lines, encoding="utf-8")
        temporary.rename(partial)
        return partial, whole_lines.count("\n")
    try:
        claim.write_text(json.dumps(inputs))
    except OSError as problem:
        raise UserError(f"out {str(out)!r} cannot be written ({problem.strerror}); name another place") from None
    partial.write_text("")
    return partial, 0


def _fingerprint(source: str) -> str:
    """The source's name; of a file also its size and the hash of its first MiB."""
    path = Path(source)
    if not path.is_file():
        return source
    with path.open("rb") as file:
        return f"{path.name} {path.stat().st_size} {hashlib.sha256(file.read(1 << 20)).hexdigest()[:16]}"


def _summary(partial: Path, config: ScoreRun, rows: int, fresh: int, seconds: float) -> Scored:
    """The result, with the accuracy of the written scores against `config.against` or against chosen and rejected."""
    source, option = (config.against, "against") if config.against else (config.data.source, "data.source")
    labelled = sources.open_source(source, option=option)
    outcomes: list[float] = []
    prompts: list[str] = []
    responses = 0
    with labelled.located(), partial.open(encoding="utf-8") as lines:
        for number, (line, raw) in enumerate(zip(lines, labelled, strict=False)):
            scores = np.array(json.loads(line)["scores"], dtype=np.float64)
            responses += len(scores)
            row = raw if config.against else _mapped(raw, config.data.columns)
            try:
                row_outcomes = _pairwise(scores, row, bool(config.against))
            except UserError as problem:
                raise sources.BadRow(number, str(problem)) from None
            outcomes += row_outcomes
            prompts += [_group(row.get("prompt"), number)] * len(row_outcomes)
    accuracy = share(outcomes, prompts) if outcomes else None
    return Scored(rows, responses, fresh, seconds, accuracy)


def _group(prompt: Any, number: int) -> str:
    """The unit of the interval: the prompt, normalised as for data splits; without a prompt the row."""
    if not prompt:
        return f"row {number + 1}"
    return normalised(prompt if isinstance(prompt, str) else tuple(formats.as_messages(prompt, "prompt")))


def _pairwise(scores: Floats, row: Mapping[str, Any], against: bool) -> list[float]:
    """1, 0 or 1/2 (a tie) for each pair of responses of which the row says which is better."""
    if not against:
        return list(wins(scores[:1], scores[1:])) if {"chosen", "rejected"} <= set(row) else []
    labels = formats.list_of(formats.as_number)(row.get("scores"), "scores")
    if len(labels) != len(scores) or None in labels:
        raise UserError(f"column 'scores' has {len(labels)} values; there are {len(scores)} responses")
    label_array = np.array(labels, dtype=np.float64)
    better, worse = np.nonzero(label_array[:, None] > label_array[None, :])
    return list(wins(scores[better], scores[worse]))
