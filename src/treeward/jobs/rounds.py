"""Rounds: pairs from the current policy, DPO on them, and again from what came out.

Every round is measured against the first policy under the same scorer on the same held-out prompts, so that the rounds
stand on one frontier. A stopped run goes on where it stopped: finished rounds are read from disk.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from treeward.jobs.evaluate import EvaluateRun, evaluate
from treeward.jobs.options import DPORun
from treeward.jobs.pairs import Made, PairsRun, make_pairs
from treeward.jobs.train import train
from treeward.runs.directory import RunDirectory, free_path

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Round:
    """One round: its place, its verdict against the round before, and its policy against the first one."""

    number: int
    path: Path
    verdict: str
    exit_code: int
    facts: Mapping[str, Any]


def rounds(config: PairsRun) -> list[Round]:
    """`config.rounds` times pairs and DPO, each from the policy before.

    Raises:
        ValueError: the first policy has random weights, or config.dpo sets what the rounds set themselves.
        ChecksFailed: a check before a round's first step failed.
    """
    default = DPORun()
    if config.model.random:
        raise ValueError("rounds is set, but model has random weights: rounds start from a trained policy, model.path")
    for name in ("model", "data", "out", "name"):
        if getattr(config.dpo, name) != getattr(default, name):
            raise ValueError(f"dpo.{name} is set, but the rounds set it themselves: set {name}")
    left = config.out is not None and (Path(config.out) / "round-1").exists()
    path = Path(str(config.out)) if left else free_path(config.name or "pairs", config.out)
    model, found = config.model, []
    for number in range(1, config.rounds + 1):
        log.info("\nround %d of %d", number, config.rounds)
        here = path / f"round-{number}"
        made = _pairs(replace(config, rounds=0, model=model, seed=config.seed + number - 1, out=str(here / "pairs")))
        receipt, code = _dpo(config, model.path, made, here / "dpo", number)
        model = replace(model, path=str(here / "dpo" / "model"), tokenizer=None)
        found.append(Round(number, here, receipt["verdict"], code, _against_first(config, model.path, here)))
    return found


def _pairs(config: PairsRun) -> Made:
    directory = RunDirectory(Path(str(config.out)))
    report = directory.read_json("report.json")
    return Made(directory.path, report) if report is not None else make_pairs(config)


def _dpo(config: PairsRun, model: str, made: Made, out: Path, number: int) -> tuple[dict[str, Any], int]:
    receipt = RunDirectory(out).read_json("receipt.json")
    if receipt is not None:
        return receipt, 0
    evaluation = replace(config.dpo.evaluation, scorer=config.dpo.evaluation.scorer or config.scorer)
    asked = replace(
        config.dpo, model=replace(config.model, path=model, tokenizer=None if number > 1 else config.model.tokenizer),
        data=replace(config.dpo.data, source=str(made.pairs)), evaluation=evaluation, out=str(out),
    )  # fmt: skip
    stopped = RunDirectory.open(str(out)) if (out / "config.yaml").exists() else None
    finished = train(asked, stopped)
    return finished.receipt, finished.exit_code


def _against_first(config: PairsRun, model: str, here: Path) -> dict[str, Any]:
    """The policy's samples on the held-out prompts, against the first policy."""
    known = RunDirectory(here / "evaluation").read_json("intervals.json")
    if known is not None:
        return dict(known)
    evaluation = replace(config.dpo.evaluation, metric=None, scorer=config.dpo.evaluation.scorer or config.scorer)
    data = replace(config.dpo.data, source=str(here.parent / "round-1" / "pairs" / "pairs.jsonl"))
    return evaluate(EvaluateRun(
        model=replace(config.model, path=model, tokenizer=None), start=config.model.path, data=data,
        evaluation=evaluation, seed=config.seed, out=str(here / "evaluation"),
    )).figures  # fmt: skip
