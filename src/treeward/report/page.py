"""A run, or several stages of one, as a self-contained page: verdicts, numbers with intervals, curves, samples."""

import json
import os
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from treeward.report import figures
from treeward.runs.directory import whole

LABELS = {
    "accuracy": "pair accuracy", "log_ratio_chosen": "log-ratio of the chosen response, nats",
    "log_ratio_rejected": "log-ratio of the rejected response, nats",
    "brier": "Brier score", "mae": "distance of score and rating, bins",
    "crps": "CRPS against ratings, bins", "cross_entropy": "cross-entropy of ratings, nats",
    "score": "score", "kl": "KL to the start, nats", "kl_token": "KL to the start, nats a token",
    "entropy": "conditional entropy, nats a token", "length": "length, tokens", "ended": "ends by itself",
    "start_nll": "NLL under the start, nats a token", "self_bleu": "self-BLEU-4", "repetition": "repeated 4-grams",
    "token_entropy": "pooled token entropy, nats", "distinct_1": "distinct-1", "distinct_2": "distinct-2",
    "distinct_3": "distinct-3", "perplexity": "perplexity under the start",
}  # fmt: skip
SHOWN_SAMPLES = 6


def write_page(run: Path, stages: Sequence[Path] | None = None, title: str | None = None) -> Path:
    """Write `run/report.html` from the run directories `stages` (the run itself, if none are named).

    Raises:
        ValueError: a stage has no receipt yet.
    """
    facts = [stage_facts(stage) for stage in stages or [run]]
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters |= {"number": number, "labelled": labelled}
    template = environment.from_string((resources.files("treeward.report") / "page.html").read_text(encoding="utf-8"))
    text = template.render(title=title or run.name, stages=facts)
    temporary = run / f".report.{os.getpid()}"
    with whole(temporary):
        temporary.write_text(text, encoding="utf-8")
        temporary.rename(run / "report.html")
    return run / "report.html"


def stage_facts(run: Path) -> dict[str, Any]:
    """What the page shows of one run directory."""
    if not (run / "receipt.json").exists():
        raise ValueError(f"{str(run)!r} has no receipt.json: the run has not ended")
    receipt = json.loads((run / "receipt.json").read_text(encoding="utf-8"))
    metrics = _lines(run / "metrics.jsonl")
    samples = _lines(run / "samples.jsonl")
    return {
        "name": run.name,
        "receipt": receipt,
        "rows": _rows(receipt),
        "curves": figures.curves(metrics, receipt["metric"]) if metrics else "",
        "frontier": _frontier(receipt, metrics),
        "reliability": figures.reliability(receipt["calibration"]["reliability"]) if "calibration" in receipt else "",
        "spread": figures.spread(receipt["graded"]) if "spread_levels" in receipt.get("graded", {}) else "",
        "samples": _telling(samples),
        "sampled": len(samples),
        "failed": [check for check in receipt["checks"] if check["passed"] is False],
    }


def number(value: float | None) -> str:
    """Four significant digits; a dash for what is not known."""
    return "–" if value is None else f"{value:.4g}"


def labelled(name: str, command: str = "") -> str:
    """A metric's name in words; a judge's is its own."""
    if name == "nll":
        return "NLL a pair" if command == "reward" else "NLL a token"
    return LABELS.get(name, name.replace("judge:", "judge ", 1))


def _rows(receipt: dict[str, Any]) -> list[dict[str, Any]]:
    main = {key: receipt[key] for key in ("higher_is_better", "before", "after", "difference")}
    every = {receipt["metric"]: main, **receipt["metrics"]}
    return [
        {"label": labelled(name, receipt["command"]), "main": name == receipt["metric"], **facts}
        for name, facts in every.items()
    ]


def _frontier(receipt: dict[str, Any], metrics: list[dict[str, Any]]) -> str:
    every = {receipt["metric"]: receipt, **receipt["metrics"]}
    if "kl" not in every or "score" not in every:
        return ""
    points = [
        (name, every["kl"][side], every["score"][side]) for name, side in (("start", "before"), ("trained", "after"))
    ]
    path = [
        (row["validation/kl"], row["validation/score"]) for row in metrics if row.get("validation/score") is not None
    ]
    return figures.frontier(points, path)


def _telling(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Samples evenly over the order of change, so that both ends are seen: largest fall, largest rise, then inwards."""
    if not samples:
        return []
    if samples[0].get("score_after") is not None:
        samples = sorted(samples, key=lambda row: float(row["score_after"] - row["score_before"]))
    count = min(SHOWN_SAMPLES, len(samples))
    places = [round(i * (len(samples) - 1) / max(1, count - 1)) for i in range(count)]
    inwards = [places[-1 - i // 2] if i % 2 else places[i // 2] for i in range(count)]
    return [samples[place] for place in inwards]


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
