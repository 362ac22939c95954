"""The frontier of several runs: score against KL with intervals, and a table of their figures.

Everything is read from run directories. The runs must have been measured on the same prompts, by the same scorer, with
the same sampling options. The numbers of a broken run mean nothing: it is last in the table and not on the frontier.
Pooled entropy and distinct-n depend on the number of tokens, so they are computed here from the sampled ids, at the
smallest token budget of all runs.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from treeward.errors import UserError
from treeward.report import figures
from treeward.report.html import write_html
from treeward.stats import diversity
from treeward.stats.frontier import Point, over_seeds, standings
from treeward.stats.intervals import Floats, Interval, by_group

DIVERSITY = ("token_entropy", "distinct_1", "distinct_2", "distinct_3")
START = "start"
BROKEN = "broken"
RUN_FIELDS = ("seed", "name", "out")
"""Fields in which runs of the same setting may differ."""
SAMPLING_FIELDS = ("samples", "max_new_tokens", "temperature")
"""Fields of the evaluation that must be equal in all runs of a frontier."""


@dataclass(frozen=True)
class Row:
    """One model: its point, its mean score of each prompt (prompts sorted), and its figures with intervals.

    `verdict` and `config` are empty for the start model.
    """

    point: Point
    scores: Floats
    figures: Mapping[str, Mapping[str, Any] | None]
    verdict: str
    config: Mapping[str, Any]


@dataclass(frozen=True)
class Runs:
    """Runs that can be compared: names, receipts, configurations and samples, in the same order."""

    names: Sequence[str]
    receipts: Sequence[Mapping[str, Any]]
    configs: Sequence[Mapping[str, Any]]
    samples: Sequence[Sequence[Mapping[str, Any]]]

    @classmethod
    def read(cls, paths: Sequence[Path]) -> "Runs":
        """Read run directories.

        Raises:
            UserError: a run has not ended, has no score or KL, or was measured on other prompts, by another scorer or
                with other sampling options.
        """
        if not paths:
            raise UserError("no run is named; a frontier needs at least one run directory")
        receipts = [json.loads(_file(path, "receipt.json").read_text(encoding="utf-8")) for path in paths]
        configs = [yaml.safe_load(_file(path, "config.yaml").read_text(encoding="utf-8")) for path in paths]
        samples = [
            [json.loads(line) for line in _file(path, "samples.jsonl").read_text(encoding="utf-8").splitlines()]
            for path in paths
        ]
        for path, receipt, rows in zip(paths, receipts, samples, strict=True):
            _comparable(path, receipt, rows, paths[0], receipts[0], samples[0])
        sampling = [{name: config.get("evaluation", {}).get(name) for name in SAMPLING_FIELDS} for config in configs]
        for path, options in zip(paths, sampling, strict=True):
            if options != sampling[0]:
                raise UserError(
                    f"{str(path)!r} was sampled with {_listed(options)}, {str(paths[0])!r} with "
                    f"{_listed(sampling[0])}; compare runs of one evaluation section"
                )
        starts = [config.get("model", {}).get("path") for config in configs]
        for path, start in zip(paths, starts, strict=True):
            if start != starts[0]:
                raise UserError(
                    f"{str(path)!r} began from model.path {start!r}, {str(paths[0])!r} from {starts[0]!r}; KL is "
                    "measured from the start, so compare runs of one"
                )
        return cls(_names(paths), receipts, configs, samples)

    def rows(self) -> list[Row]:
        """The start model, then every run, broken ones last."""
        measured = diversity.measure(self.pools)
        rows = []
        for place in range(len(self.names) + 1):
            receipt = self.receipts[max(0, place - 1)]
            side = "after" if place else "before"
            figures = {name: _side(facts, side) for name, facts in every(receipt).items()}
            figures |= {name: asdict(measured[name][0][place]) for name in DIVERSITY}
            figures["perplexity"] = _side(receipt["diversity"].get("perplexity"), side)
            config = self.configs[place - 1] if place else {}
            point = Point(
                self.names[place - 1] if place else START,
                _interval(figures["score"]),
                _interval(figures["kl"]),
                family_of(config) if place else START,
                config.get("seed"),
            )
            scores = _scores(self.samples[max(0, place - 1)], side)
            rows.append(Row(point, scores, figures, receipt["verdict"] if place else "", config))
        return sorted(rows, key=lambda row: row.verdict == BROKEN)

    @property
    def pools(self) -> list[diversity.Pool]:
        """The sampled ids of the start model and of every run."""
        return [_pool(self.samples[0], "before"), *(_pool(rows, "after") for rows in self.samples)]


def write_frontier(paths: Sequence[Path], out: Path) -> Path:
    """Write the page of several runs to `out` (HTML), and its figure beside it as PNG.

    Raises:
        UserError: as `Runs.read`.
    """
    runs = Runs.read(paths)
    rows = runs.rows()
    sound = [row for row in rows if row.verdict != BROKEN]
    curve = runs.receipts[0].get("best_of_n", {}).get("curve", [])
    points = [row.point for row in sound]
    out.parent.mkdir(parents=True, exist_ok=True)
    picture = figures.draw(points, curve, short(str(runs.receipts[0]["scorer"])), out.with_suffix(".png"))
    return write_html(
        "frontier.html",
        out,
        title=out.stem,
        columns=columns(rows),
        rows=rows,
        standings=standings(points, [row.scores for row in sound]),
        budget=min(pool.tokens for pool in runs.pools),
        between=_between_runs(sound[1:]),
        vars=vars,
        scorer=runs.receipts[0]["scorer"],
        picture=picture,
        best_of_n=len(curve) > 1,
        colours=figures.page_colours([point.family for point in points[1:]]),
    )


def short(scorer: str) -> str:
    """The last two parts of a scorer's path: reward/model of /data/reward/model."""
    return "/".join(Path(scorer).parts[-2:])


def columns(rows: Sequence[Row]) -> list[str]:
    """The figures in the table, in order."""
    judges = [name for name in rows[0].figures if name.startswith("judge:")]
    fixed = ["score", *judges, "kl", "kl_token", "token_entropy", "entropy", *DIVERSITY[1:], "perplexity", "self_bleu"]
    return [name for name in [*fixed, "repetition", "length", "ended"] if rows[0].figures.get(name) is not None]


def every(receipt: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics of a receipt by name, the main one first."""
    return {receipt["metric"]: receipt, **receipt["metrics"]}


def family_of(config: Mapping[str, Any]) -> str:
    """The command, loss and divergence (with its parameters) of a run; runs of a family have one colour."""
    loss: Mapping[str, Any] = config.get("loss") or {}
    divergence: Mapping[str, Any] = config.get("divergence") or {}
    words = [config.get("command"), loss.get("kind")]
    if divergence.get("kind") not in (None, "reverse-kl"):
        words += [divergence["kind"], *(f"{v:g}" for v in divergence.values() if isinstance(v, int | float))]
    return " ".join(str(word) for word in words if word)


def setting_of(config: Mapping[str, Any]) -> str:
    """The family with the parameters of the loss and the learning rate: "dpo sigmoid, beta 0.1, lr 1e-05"."""
    loss: Mapping[str, Any] = config.get("loss") or {}
    numbers = [f"{k} {v:g}" for k, v in loss.items() if isinstance(v, int | float) and not isinstance(v, bool)]
    rate = [f"lr {config['lr']:g}"] if "lr" in config else []
    return ", ".join([family_of(config), *numbers, *rate])


def _side(facts: Mapping[str, Any] | None, side: str) -> Mapping[str, Any] | None:
    return None if facts is None else facts[side]


def _interval(facts: Mapping[str, Any] | None) -> Interval:
    assert facts is not None
    low, high = (math.nan if facts[name] is None else float(facts[name]) for name in ("low", "high"))
    return Interval(float(facts["value"]), low, high, int(facts["n"]))


def _pool(rows: Sequence[Mapping[str, Any]], side: str) -> diversity.Pool:
    ordered = sorted(rows, key=lambda row: (row["group"], row["sample"]))
    return diversity.Pool([row[f"ids_{side}"] for row in ordered], [row["group"] for row in ordered])


def _scores(rows: Sequence[Mapping[str, Any]], side: str) -> Floats:
    return by_group([row[f"score_{side}"] for row in rows], [row["group"] for row in rows])


def _between_runs(rows: Sequence[Row]) -> list[Point]:
    """For each setting with runs of several seeds: the mean over the runs and its interval."""
    settings = [json.dumps({k: v for k, v in r.config.items() if k not in RUN_FIELDS}, sort_keys=True) for r in rows]
    repeated = [i for i, setting in enumerate(settings) if settings.count(setting) > 1]
    points = [replace(rows[i].point, label=settings[i]) for i in repeated]
    names = {settings[i]: setting_of(rows[i].config) for i in repeated}
    return [replace(point, label=names[point.label]) for point in over_seeds(points)]


def _names(paths: Sequence[Path]) -> list[str]:
    """The names of the directories; their whole paths if two names are equal or one is "start"."""
    names = [path.name for path in paths]
    return names if len({START, *names}) == len(names) + 1 else [str(path.absolute()) for path in paths]


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _file(path: Path, name: str) -> Path:
    if not (path / name).exists():
        raise UserError(f"{str(path)!r} has no {name}: the run has not ended; leave it out or finish it")
    return path / name


def _comparable(
    path: Path,
    receipt: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    first: Path,
    first_receipt: Mapping[str, Any],
    first_rows: Sequence[Mapping[str, Any]],
) -> None:
    """Refuse a run that cannot be compared with the first one, by their receipts and samples."""
    metrics = every(receipt)
    scored = bool(rows) and "ids_after" in rows[0] and rows[0].get("score_after") is not None
    if "score" not in metrics or "kl" not in metrics or not scored:
        raise UserError(
            f"{str(path)!r} has no score and KL: run it again with evaluation.scorer and evaluation.temperature 1"
        )
    if receipt["scorer"] != first_receipt["scorer"]:
        raise UserError(
            f"{str(path)!r} was scored by {receipt['scorer']!r}, {str(first)!r} by {first_receipt['scorer']!r}; "
            "compare runs of one evaluation.scorer"
        )
    if {(row["group"], row["prompt"]) for row in rows} != {(row["group"], row["prompt"]) for row in first_rows}:
        raise UserError(
            f"{str(path)!r} was measured on other prompts than {str(first)!r}; compare runs of one data section and "
            "one evaluation.prompts"
        )
