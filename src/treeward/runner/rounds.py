"""Rounds: pairs from the current policy, DPO on them, and again from what came out.

Every round is measured against the first policy under the same scorer on the same held-out prompts, so that the rounds
stand on one frontier. Prompts and their parts are the same in all rounds, so that none that is held out is trained on.
A stopped series goes on where it stopped: finished rounds are read from disk. A broken round ends it.

OUT/
  config.yaml  round-1/pairs  round-1/dpo  round-1/evaluation  round-2/...
"""

import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from treeward.checks.verdict import Verdict
from treeward.errors import UserError
from treeward.models.loading import load_tokenizer
from treeward.runner.evaluate import EvaluateRun, evaluate
from treeward.runner.options import DPORun
from treeward.runner.pairs import Made, PairsRun, make_pairs, prompts_of
from treeward.runner.progress import Interrupted
from treeward.runner.stopped import begun, same_run
from treeward.runner.train import train
from treeward.runs.directory import RunDirectory, alone

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Round:
    """One round: its place, its verdict against the round before with the reason, and its policy against the first one;
    a broken policy is not measured."""

    number: int
    path: Path
    verdict: str
    reason: str
    exit_code: int
    facts: Mapping[str, Any]


def rounds(config: PairsRun) -> list[Round]:
    """`config.rounds` times pairs and DPO, each from the policy before; fewer where a round is broken.

    Raises:
        UserError: the first policy has random weights, config.dpo sets what the rounds set themselves, no prompt is
            held out for the test, or the place is another run's.
        ChecksFailed: a check before a round's first step failed.
        Interrupted: Ctrl-C.
    """
    default = DPORun()
    if config.model.random:
        raise UserError("rounds is set, but model has random weights: rounds start from a trained policy, model.path")
    for name in ("model", "data", "out", "name"):
        if getattr(config.dpo, name) != getattr(default, name):
            raise UserError(f"dpo.{name} is set, but the rounds set it themselves: set {name}")
    if not any(prompt.split == "test" for prompt in prompts_of(config, load_tokenizer(config.model)).prompts):
        raise UserError(
            f"rounds is set, but no prompt is in the test part, on which the rounds are measured: data.test is "
            f"{config.data.test}; raise it, or give the data a split column"
        )
    model, found = config.model, []
    with _series(config) as path:
        for number in range(1, config.rounds + 1):
            log.info("\nround %d of %d", number, config.rounds)
            here = path / f"round-{number}"
            made = _pairs(replace(
                config, rounds=0, dpo=default, model=model, seed=config.seed + number - 1, out=str(here / "pairs")
            ))  # fmt: skip
            receipt = _dpo(config, model.path, made, here / "dpo", number)
            verdict = Verdict(receipt["verdict"], receipt["reason"])
            broken = verdict.word == "broken"
            model = replace(model, path=str(here / "dpo" / "model"), tokenizer=None)
            facts = {} if broken else _against_first(config, model.path, here)
            code = verdict.exit_code(receipt["require"])
            found.append(Round(number, here, verdict.word, verdict.reason, code, facts))
            if broken:
                break
    return found


@contextmanager
def _series(config: PairsRun) -> Iterator[Path]:
    """The directory of a new series, or of the same one that was stopped; of a series that comes to nothing none is
    left."""
    with ExitStack() as held:
        path = Path(config.out) if config.out else None
        if path is not None and (path / "config.yaml").exists():
            same_run(path, config)
            held.enter_context(alone(path))
        else:
            path = held.enter_context(begun(config)).path
        try:
            yield path
        except (KeyboardInterrupt, Interrupted):
            if (path / "round-1").exists():
                raise Interrupted(f"stopped; go on with the same command and --out {path}") from None
            raise
        finally:
            if not (path / "round-1").exists():
                shutil.rmtree(path)


def _pairs(config: PairsRun) -> Made:
    directory = RunDirectory(Path(str(config.out)))
    report = directory.read_json("report.json")
    return Made(directory.path, report) if report is not None else make_pairs(config)


def _dpo(config: PairsRun, model: str, made: Made, out: Path, number: int) -> dict[str, Any]:
    receipt = RunDirectory(out).read_json("receipt.json")
    if receipt is not None:
        return dict(receipt)
    evaluation = replace(config.dpo.evaluation, scorer=config.dpo.evaluation.scorer or config.judge)
    asked = replace(
        config.dpo, model=replace(config.model, path=model, tokenizer=None if number > 1 else config.model.tokenizer),
        data=replace(config.dpo.data, source=str(made.pairs)), evaluation=evaluation, out=str(out),
    )  # fmt: skip
    stopped = RunDirectory.open(str(out)) if (out / "config.yaml").exists() else None
    return train(asked, stopped).receipt


def _against_first(config: PairsRun, model: str, here: Path) -> dict[str, Any]:
    """The policy's samples on the held-out prompts, against the first policy."""
    known = RunDirectory(here / "evaluation").read_json("intervals.json")
    if known is not None:
        return dict(known)
    evaluation = replace(config.dpo.evaluation, metric=None, scorer=config.dpo.evaluation.scorer or config.judge)
    data = replace(config.dpo.data, source=str(here.parent / "round-1" / "pairs" / "pairs.jsonl"))
    return evaluate(EvaluateRun(
        model=replace(config.model, path=model, tokenizer=None), start=config.model.path, data=data,
        evaluation=evaluation, seed=config.seed, out=str(here / "evaluation"),
    )).figures  # fmt: skip
