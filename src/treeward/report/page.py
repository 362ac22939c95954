"""The page of a run, or of several runs as stages: what was run, verdict, metrics with intervals, curves, samples.

Everything is read from the files of the run directories; the page is one self-contained HTML file.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from treeward.errors import UserError
from treeward.report import figures
from treeward.report.frontier import BROKEN, Runs, every, short
from treeward.report.html import write_html
from treeward.stats.formatting import number

SHOWN_SAMPLES = 6
EMBEDDED = ("world", "arithmetic")
"""Names of models that have random weights unless a configuration says otherwise."""
DEFAULT_LOSSES = {"scalar": "bradley-terry", "attributes": "graded"}
"""The loss of a reward run without one in its configuration, by its head; half-ties for other heads."""
ACCEPTED = "accepted"
"""The detail of a check that failed and that the user accepted begins with this word."""


def write_page(run: Path, stages: Sequence[Path] | None = None, title: str | None = None) -> Path:
    """Write `run/report.html` from the run directories `stages`, by default the run itself.

    Raises:
        UserError: a stage has no receipt.
    """
    facts = [stage_facts(stage) for stage in stages or [run]]
    together = _together(run, stages or [])
    return write_html("page.html", run / "report.html", title=title or run.name, stages=facts, together=together)


def _together(run: Path, stages: Sequence[Path]) -> dict[str, Any] | None:
    """The frontier of the stages that have a score and a KL and are not broken, if several can be compared."""
    receipts = {stage: _receipt(stage) for stage in stages}
    sound = [stage for stage, receipt in receipts.items() if receipt["verdict"] != BROKEN]
    scored = [stage for stage in sound if {"score", "kl"} <= every(receipts[stage]).keys()]
    if len(scored) < 2:
        return None
    try:
        runs = Runs.read(scored)
    except UserError:
        return None
    points = [row.point for row in runs.rows()]
    curve = runs.receipts[0].get("best_of_n", {}).get("curve", [])
    picture = figures.draw(points, curve, short(str(runs.receipts[0]["scorer"])), run / "frontier.png")
    return {
        "picture": picture,
        "vars": vars,
        "points": points,
        "scorer": runs.receipts[0]["scorer"],
        "best_of_n": len(curve) > 1,
    }


def stage_facts(run: Path) -> dict[str, Any]:
    """What the page shows of one run directory.

    Raises:
        UserError: the run has no receipt.
    """
    if not (run / "receipt.json").exists():
        raise UserError(f"{str(run)!r} has no receipt.json: the run has not ended")
    receipt = _receipt(run)
    metrics = _lines(run / "metrics.jsonl")
    samples = _lines(run / "samples.jsonl")
    rows = _metric_rows(receipt)
    checks = [{**check, "slug": check.get("slug", "")} for check in receipt["checks"]]
    accepted = [c["id"] for c in checks if c["passed"] is None and c["detail"].startswith(ACCEPTED)]
    return {
        "name": run.name,
        "receipt": receipt,
        "about": about(run, receipt, metrics),
        "main": rows[0],
        "why": why(receipt["reason"]),
        "rows": rows,
        "curves": [figures.svg(figure) for figure in figures.curves(metrics, receipt["metric"])] if metrics else [],
        "frontier": "" if "warp" in receipt else _frontier(receipt, metrics),
        "front": _front(receipt),
        "reliability": _reliability(receipt),
        "spread": _spread(receipt),
        "samples": _spread_over_changes(samples),
        "sampled": len(samples),
        "by_step": _by_step(_lines(run / "samples-by-step.jsonl")),
        "checks": checks,
        "failed": [check for check in checks if check["passed"] is False],
        "accepted": list(dict.fromkeys(accepted)),
        "skipped": sum(check["passed"] is None for check in checks) - len(accepted),
    }


def why(reason: str) -> str:
    """A verdict's reason without the numbers of the main metric, which stand above it on the page."""
    rest = re.sub(r"^\S+ \S+ -> .*?, n=\d+[,;:]? ?", "", reason)
    return re.sub(
        r"^by (.*) alone$", r"scored by \1 only: no judge that training never used has scored these samples", rest
    )


def about(run: Path, receipt: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """What was run: command, model, data, loss, learning rate, steps, batch, scorers, machine and date, a line each.

    Lines that the directory has no value for are left out.
    """
    config = yaml.safe_load(_text(run / "config.yaml")) or {}
    environment = json.loads(_text(run / "environment.json") or "{}")
    model, data = config.get("model", {}), config.get("data", {})
    evaluation = config.get("evaluation", {})
    steps = metrics[-1]["step"] if metrics else None
    lines = {
        "command": f"treeward {receipt['command']}, seed {config['seed']}" if "seed" in config else "",
        "model": _joined(
            model.get("path"),
            "random weights" if _random(model) else "",
            f"LoRA of rank {model['lora']['r']}" if model.get("lora") else "",
            "only the head trains" if model.get("train") == "head" else "",
        ),
        "data": _joined(
            data.get("source"), f"{number(receipt['data']['used'])} of {number(receipt['data']['rows'])} rows used"
        ),
        "held out": _verdict_groups(receipt["data"].get("verdict")),
        "loss": _joined(_loss(config), _divergence(config), _head(config)),
        **_rollouts(config),
        "learning rate": _learning_rate(config),
        "steps": _joined(number(steps) if steps is not None else "", _epochs(config)),
        "batch": f"{config['batch_size']} prompts a step" if "batch_size" in config else "",
        "samples scored by": _joined(receipt["scorer"], *evaluation.get("judges", ())) if receipt["scorer"] else "",
        "machine": _joined(environment.get("device"), environment.get("precision"), _layout(environment)),
        "date": _joined(
            environment.get("started", "").replace("T", " ").replace("+00:00", " UTC"),
            f"{receipt['seconds'] / 60:.1f} minutes" if "seconds" in receipt else "",
        ),
    }
    return {name: line for name, line in lines.items() if line}


def _rollouts(config: Mapping[str, Any]) -> dict[str, str]:
    """What a run that trained on its own samples says of them."""
    if "baseline" not in config:
        return {}
    kl = {name: value for name, value in config["kl"].items() if name != "rate" or config["kl"].get("target")}
    return {
        "reward": _joined(*(config.get("reward") or ["gold"])),
        "baseline": _kind(config["baseline"]),
        "KL": _kind(kl),
        "samples": f"{config['samples']} a prompt, at most {config['max_new_tokens']} tokens",
    }


def _learning_rate(config: Mapping[str, Any]) -> str:
    if "lr" not in config:
        return ""
    warmup = f"{config['warmup']:.0%} warm-up" if config.get("warmup") else ""
    return _joined(f"{config['lr']:g}", config.get("schedule"), warmup)


def _epochs(config: Mapping[str, Any]) -> str:
    epochs = config.get("epochs")
    return f"{epochs:g} epoch{'' if epochs == 1 else 's'}" if epochs and not config.get("steps") else ""


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


def _joined(*parts: Any) -> str:
    return ", ".join(str(part) for part in parts if part)


def _verdict_groups(part: Mapping[str, Any] | None) -> str:
    """The held-out groups that gave the verdict; empty for a receipt without them."""
    if not part:
        return ""
    others = f"{number(part['chosen_on'])} others chose the checkpoint" if part.get("chosen_on") else ""
    return _joined(f"{number(part['groups'])} groups (prompts) in the {part['part']} part", others)


def _random(model: Mapping[str, Any]) -> bool:
    return model.get("init") == "random" or (model.get("path") in EMBEDDED and model.get("init") is None)


def _kind(section: Mapping[str, Any] | None) -> str:
    """The kind of a loss, head or divergence with its numbers other than 0: "sigmoid, beta 0.1"."""
    numbers = {name: v for name, v in (section or {}).items() if isinstance(v, int | float) and v is not True and v}
    shown = [f"{name} {v:g}" for name, v in numbers.items()]
    return _joined((section or {}).get("kind"), *shown)


def _loss(config: Mapping[str, Any]) -> str:
    if config.get("command") == "sft":
        return "cross-entropy of the response tokens"
    if config.get("command") == "reward" and config.get("loss") is None:
        return DEFAULT_LOSSES.get(config["head"]["kind"], "half-ties")
    return _kind(config.get("loss") or config.get("estimator"))


def _divergence(config: Mapping[str, Any]) -> str:
    kind = _kind(config.get("divergence"))
    return f"divergence {kind}" if kind and kind != "reverse-kl" else ""


def _head(config: Mapping[str, Any]) -> str:
    kind = _kind(config.get("head"))
    return f"head {kind}" if kind else ""


def _layout(environment: Mapping[str, Any]) -> str:
    return f"layout {environment['layout']}" if "layout" in environment else ""


def _metric_rows(receipt: dict[str, Any]) -> list[dict[str, Any]]:
    """Every metric of a receipt, the main one first."""
    main = {key: receipt[key] for key in ("higher_is_better", "before", "after", "difference")}
    metrics = {receipt["metric"]: main, **receipt["metrics"]}
    nll = "nll_pair" if receipt["command"] == "reward" else "nll_token"
    return [
        {"key": nll if name == "nll" else name, "main": name == receipt["metric"], **facts}
        for name, facts in metrics.items()
    ]


def _reliability(receipt: Mapping[str, Any]) -> str:
    """The reliability diagram of a reward model; empty for other runs."""
    if "calibration" not in receipt:
        return ""
    return figures.svg(figures.reliability(receipt["calibration"]["reliability"]))


def _spread(receipt: Mapping[str, Any]) -> list[str]:
    """The figures of a distribution over ratings; none for other runs."""
    if "spread_levels" not in receipt.get("graded", {}):
        return []
    return [figures.svg(figure) for figure in figures.spread(receipt["graded"])]


def _frontier(receipt: dict[str, Any], metrics: list[dict[str, Any]]) -> str:
    """Score against KL, before and after; empty where one of them was not measured."""
    measured = {receipt["metric"]: receipt, **receipt["metrics"]}
    if "kl" not in measured or "score" not in measured:
        return ""
    sides = (("start", "before"), ("trained", "after"))
    points = [(name, measured["kl"][side], measured["score"][side]) for name, side in sides]
    path = [
        (row["validation/kl"], row["validation/score"]) for row in metrics if row.get("validation/score") is not None
    ]
    return figures.svg(figures.frontier(points, path))


def _front(receipt: Mapping[str, Any]) -> str:
    """The policies between start and merge of `treeward warp`; empty for other runs."""
    if "warp" not in receipt:
        return ""
    facts, curve = receipt["warp"], receipt.get("best_of_n", {}).get("curve", [])
    return figures.svg(figures.front(facts["front"], facts["members"], facts["chosen"], curve))


def _spread_over_changes(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Some samples, evenly spaced in the order of their change in score: largest fall, largest rise, then inwards."""
    if not samples:
        return []
    if samples[0].get("score_after") is not None:
        samples = sorted(samples, key=lambda row: float(row["score_after"] - row["score_before"]))
    count = min(SHOWN_SAMPLES, len(samples))
    places = [round(i * (len(samples) - 1) / max(1, count - 1)) for i in range(count)]
    inwards = [places[-1 - i // 2] if i % 2 else places[i // 2] for i in range(count)]
    return [samples[place] for place in inwards]


def _receipt(run: Path) -> dict[str, Any]:
    return dict(json.loads(_text(run / "receipt.json") or "{}"))


def _by_step(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The samples of each step for the slider; none if there is only one step."""
    steps = list(dict.fromkeys(row["step"] for row in rows))
    return [{"step": n, "rows": [row for row in rows if row["step"] == n]} for n in steps] if len(steps) > 1 else []


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in _text(path).splitlines()]
