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
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from treeward.errors import UserError
from treeward.report import figures
from treeward.report.html import write_html
from treeward.stats import diversity
from treeward.stats.frontier import SEEDS, Front, Point, between, claims, over_seeds, standings
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
    settings = settings_of([row.config for row in sound[1:]])
    training = _by_setting(sound[1:], settings, dict(zip(runs.names, map(_while_training, paths), strict=True)))
    fronts = _fronts(sound[1:], settings, dict(zip(runs.names, paths, strict=True)))
    compared = [between(a, b) for a, b in combinations(fronts, 2) if a.kl.shape[0] == b.kl.shape[0]]
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
        between=_between_runs(sound[1:], settings),
        claims=claims(
            {name: {seed: [p[1:] for p in path] for seed, path in paths.items()} for name, paths in training.items()},
            _trained(sound[1:], settings),
        ),
        seeds=SEEDS,
        training=[figures.svg(figure) for figure in figures.over_seeds(training)] if training else [],
        fronts=compared,
        fronts_figure=figures.svg(figures.fronts(fronts)) if len(fronts) > 1 else "",
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
    words = [config.get("command"), (loss or config.get("baseline") or {}).get("kind")]
    if divergence.get("kind") not in (None, "reverse-kl"):
        words += [divergence["kind"], *(f"{v:g}" for v in divergence.values() if isinstance(v, int | float))]
    return " ".join(str(word) for word in words if word)


def setting_of(config: Mapping[str, Any]) -> str:
    """The family with the parameters of the loss (or of the KL, where a run trained on its own samples) and the
    learning rate: "dpo sigmoid, beta 0.1, lr 1e-05".
    """
    loss: Mapping[str, Any] = config.get("loss") or {k: v for k, v in (config.get("kl") or {}).items() if k == "beta"}
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


def settings_of(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """A name for the setting of each run: runs that differ in the seed alone share it, others do not."""
    keys = [json.dumps({k: v for k, v in c.items() if k not in RUN_FIELDS}, sort_keys=True) for c in configs]
    of_key = dict(zip(keys, configs, strict=True))
    flat = {key: _flat({k: v for k, v in config.items() if k not in RUN_FIELDS}) for key, config in of_key.items()}
    names = {}
    for key, config in of_key.items():
        name = setting_of(config)
        alike = [flat[other] for other, each in of_key.items() if setting_of(each) == name]
        differing = [
            f"{place.removesuffix('.kind')} {short(str(value))}"
            for place, value in flat[key].items()
            if len({json.dumps(each.get(place)) for each in alike}) > 1
        ]
        names[key] = ", ".join([name, *differing])
    return [names[key] for key in keys]


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys to values; a list of one text is that text."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value[0] if isinstance(value, list) and len(value) == 1 else value
    return flat


def _between_runs(rows: Sequence[Row], settings: Sequence[str]) -> list[Point]:
    """For each setting with runs of several seeds: the mean over the runs and its interval."""
    points = [replace(row.point, label=name) for row, name in zip(rows, settings, strict=True)]
    return over_seeds([point for point in points if settings.count(point.label) > 1])


def _by_setting(
    rows: Sequence[Row], settings: Sequence[str], measured: Mapping[str, list[tuple[int, float, float]]]
) -> dict[str, dict[int, list[tuple[int, float, float]]]]:
    """For each setting with several seeds, by seed, what was measured while training."""
    by_setting: dict[str, dict[int, list[tuple[int, float, float]]]] = {}
    for row, setting in zip(rows, settings, strict=True):
        if settings.count(setting) > 1 and row.point.seed is not None and measured[row.point.label]:
            by_setting.setdefault(setting, {})[row.point.seed] = measured[row.point.label]
    return by_setting


def _trained(rows: Sequence[Row], settings: Sequence[str]) -> dict[str, dict[int, float]]:
    """For each setting with several seeds, by seed, the score of the trained model."""
    trained: dict[str, dict[int, float]] = {}
    for row, setting in zip(rows, settings, strict=True):
        if settings.count(setting) > 1 and row.point.seed is not None:
            trained.setdefault(setting, {})[row.point.seed] = row.point.score.value
    return trained


def _fronts(rows: Sequence[Row], settings: Sequence[str], paths: Mapping[str, Path]) -> list[Front]:
    """The front of each setting whose runs have one (those of `treeward warp`), by seed, share and test prompt.

    A front of several seeds has the name of their setting, that of one run the run's. A setting is left out if its
    front does not begin with the start, or its runs have other shares.
    """
    of_setting: dict[str, list[Row]] = {}
    for row, setting in zip(rows, settings, strict=True):
        if (paths[row.point.label] / "front.jsonl").exists():
            of_setting.setdefault(setting, []).append(row)
    fronts = []
    for setting, alike in of_setting.items():
        runs = [front_of(paths[row.point.label]) for row in sorted(alike, key=lambda row: row.point.seed or 0)]
        begin_with_start = all(not run[0, :, 0].any() for run in runs)
        if begin_with_start and len({run.shape for run in runs}) == 1:
            kl, score = np.moveaxis(np.array(runs), -1, 0)
            fronts.append(Front(setting if len(alike) > 1 else alike[0].point.label, kl, score))
    return fronts


def front_of(path: Path, part: str = "test", columns: Sequence[str] = ("kl", "score")) -> Floats:
    """Means over the samples of each prompt for the shares of a run of `treeward warp`: (shares, prompts, columns).

    Shares are in their order, prompts in the order of their names.
    """
    rows = [json.loads(line) for line in (path / "front.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if row["part"] == part and row["share"] is not None]
    shares = sorted({row["share"] for row in rows})
    alike = [[row for row in rows if row["share"] == share] for share in shares]
    return np.array([
        np.stack([by_group([row[name] for row in each], [row["group"] for row in each]) for name in columns], axis=-1)
        for each in alike
    ])  # fmt: skip


def _while_training(path: Path) -> list[tuple[int, float, float]]:
    """Step, KL and score of each measurement on the validation part while a run trained."""
    file = path / "metrics.jsonl"
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []
    columns = ("step", "validation/kl", "validation/score")
    return [tuple(row[name] for name in columns) for row in rows if None not in map(row.get, columns)]


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
    first_ids = {row["group"]: row.get("prompt_ids", []) for row in first_rows}
    for row in rows:
        ids, others = row.get("prompt_ids", []), first_ids[row["group"]]
        if ids and others and ids != others:
            raise UserError(
                f"{str(path)!r} read the prompt {row['prompt'][:40]!r} as tokens {ids[:4]}..., {str(first)!r} as "
                f"{others[:4]}...; compare runs of one tokenizer and one data section"
            )
