"""Rounds of on-policy DPO: pairs from the current policy, DPO on them, and again from the trained policy.

Each round is measured against the first policy, with the same scorer on the same held-out prompts, so all rounds can be
drawn on one frontier. Prompts and their parts are the same in all rounds, so no held-out prompt is ever trained on. A
stopped series continues where it stopped: finished rounds are read from disk. A broken round ends the series.

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

from treeward.checks.receipt import Verdict
from treeward.errors import UserError
from treeward.methods.dpo import DPO, DPORun
from treeward.models.loading import load_tokenizer
from treeward.runner.evaluate import EvaluateRun, evaluate
from treeward.runner.pairs import PairsMade, PairsRun, make_pairs, new_directory, prompts_of, require_same_config
from treeward.runner.progress import Interrupted
from treeward.runner.run import run
from treeward.runs.directory import RunDirectory, alone

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Round:
    """One round: its directory, its verdict against the round before and the reason, and the measurements of its policy
    against the first one (empty for a broken policy, which is not measured).
    """

    number: int
    path: Path
    verdict: str
    reason: str
    exit_code: int
    facts: Mapping[str, Any]


def rounds(config: PairsRun) -> list[Round]:
    """Make pairs and train by DPO, `config.rounds` times, each from the policy before; fewer if a round is broken.

    Raises:
        UserError: the first policy has random weights, `config.dpo` sets what the rounds set, no prompt is in the test
            part, or the directory is another run's.
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
            f"rounds is set, but no prompt is in the test part, on which rounds are measured: data.test is "
            f"{config.data.test}; raise it, or give the data a split column"
        )
    model = config.model
    finished: list[Round] = []
    with _series_directory(config) as path:
        for number in range(1, config.rounds + 1):
            log.info("\nround %d of %d", number, config.rounds)
            here = path / f"round-{number}"
            made = _pairs(
                replace(
                    config,
                    rounds=0,
                    dpo=default,
                    model=model,
                    seed=config.seed + number - 1,
                    out=str(here / "pairs"),
                )
            )
            receipt = _dpo(config, model.path, made, here / "dpo", number)
            verdict = Verdict(receipt["verdict"], receipt["reason"])
            broken = verdict.word == "broken"
            model = replace(model, path=str(here / "dpo" / "model"), tokenizer=None)
            facts = {} if broken else _against_first(config, model.path, here)
            code = verdict.exit_code(receipt["require"])
            finished.append(Round(number, here, verdict.word, verdict.reason, code, facts))
            if broken:
                break
    return finished


@contextmanager
def _series_directory(config: PairsRun) -> Iterator[Path]:
    """The directory of a new series, or of the same series that was stopped. An empty one is removed after an error."""
    with ExitStack() as stack:
        path = Path(config.out) if config.out else None
        if path is not None and (path / "config.yaml").exists():
            require_same_config(path, config)
            stack.enter_context(alone(path))
        else:
            path = stack.enter_context(new_directory(config)).path
        try:
            yield path
        except (KeyboardInterrupt, Interrupted):
            if (path / "round-1").exists():
                raise Interrupted(f"stopped; go on with the same command and --out {path}") from None
            raise
        finally:
            if not (path / "round-1").exists():
                shutil.rmtree(path)


def _pairs(config: PairsRun) -> PairsMade:
    """The pairs of a round, read from disk if they are finished."""
    directory = RunDirectory(Path(str(config.out)))
    report = directory.read_json("report.json")
    return PairsMade(directory.path, report) if report is not None else make_pairs(config)


def _dpo(config: PairsRun, model: str, made: PairsMade, out: Path, number: int) -> dict[str, Any]:
    """The receipt of a round's training, read from disk if it is finished."""
    receipt = RunDirectory(out).read_json("receipt.json")
    if receipt is not None:
        return dict(receipt)
    training = replace(
        config.dpo,
        model=replace(config.model, path=model, tokenizer=None if number > 1 else config.model.tokenizer),
        data=replace(config.dpo.data, source=str(made.pairs)),
        evaluation=replace(config.dpo.evaluation, scorer=config.dpo.evaluation.scorer or config.scorer_name),
        out=str(out),
    )
    stopped = RunDirectory.open(str(out)) if (out / "config.yaml").exists() else None
    return run(training, DPO, resume=stopped).receipt


def _against_first(config: PairsRun, model: str, here: Path) -> dict[str, Any]:
    """The policy's samples on the held-out prompts, compared with the first policy's."""
    measured = RunDirectory(here / "evaluation").read_json("intervals.json")
    if measured is not None:
        return dict(measured)
    scorer = config.dpo.evaluation.scorer or config.scorer_name
    return evaluate(
        EvaluateRun(
            model=replace(config.model, path=model, tokenizer=None),
            start=config.model.path,
            data=replace(config.dpo.data, source=str(here.parent / "round-1" / "pairs" / "pairs.jsonl")),
            evaluation=replace(config.dpo.evaluation, metric=None, scorer=scorer),
            seed=config.seed,
            out=str(here / "evaluation"),
        )
    ).figures
