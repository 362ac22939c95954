"""An inspection as PNG histograms and a self-contained page, from inspect.json and histograms.json alone."""

import json
import os
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from treeward.report.figures import ACCENT, INK, SOFT, STYLE, svg
from treeward.report.inspection_tables import number, remarks, sections

Bars = Mapping[str, Any]


def write_inspection(path: Path) -> Path:
    """Write the histograms and `inspect.html` into the directory that holds the figures.

    Raises:
        ValueError: there are no figures at that place.
    """
    if not (path / "inspect.json").exists():
        raise ValueError(f"{str(path)!r} holds no inspect.json")
    facts = json.loads((path / "inspect.json").read_text(encoding="utf-8"))
    bars = json.loads((path / "histograms.json").read_text(encoding="utf-8"))
    shown = _figures(path, facts, bars)
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters["count"] = number
    template = environment.from_string(
        (resources.files("treeward.report") / "inspection.html").read_text(encoding="utf-8")
    )
    page = template.render(
        title=facts["source"], facts=facts, sections=sections(facts), remarks=remarks(facts), figures=shown
    )
    temporary = path / f".inspect.{os.getpid()}"
    temporary.write_text(page, encoding="utf-8")
    temporary.rename(path / "inspect.html")
    return path / "inspect.html"


def _figures(path: Path, facts: Mapping[str, Any], bars: Bars) -> dict[str, str]:
    """Each figure as a PNG beside the page, and as SVG under the title of the table that it belongs to."""
    tables = {section.title: section for section in sections(facts)}
    found: dict[str, str] = {}
    with plt.rc_context({**STYLE, "svg.hashsalt": "treeward"}):
        for place, tokens in enumerate(facts["tokens"]):
            unit = "words" if tokens["vocabulary"] is None else f"tokens of {tokens['tokenizer']}"
            figure = lengths(bars[tokens["tokenizer"]], unit)
            found[f"lengths in {unit}"] = _written(figure, path / f"lengths{f'-{place + 1}' if place else ''}.png")
        if bars["rating_gap"]:
            found["ratings"] = _written(one(bars["rating_gap"], "chosen minus rejected rating", "pairs"),
                                        path / "rating_gaps.png")  # fmt: skip
        first = bars[facts["tokens"][0]["tokenizer"]]
        title = "what length and words give away"
        if first.get("difference") and title in tables:
            unit = "words" if facts["vocabulary"] is None else f"tokens of {facts['tokenizer']}"
            figure = one(first["difference"], f"chosen minus rejected length, {unit}", "pairs")
            found[title] = _written(figure, path / "length_differences.png")
    return found


def lengths(bars: Bars, unit: str) -> Figure:
    """Prompt, responses and whole paths side by side; the two sides of a pair over each other."""
    panels = {
        "prompt": {"prompt": ACCENT},
        "response": {"chosen": ACCENT, "rejected": INK} if bars.get("chosen") else {"response": ACCENT},
        "whole path": {"whole": ACCENT},
    }
    kept = {title: sides for title, sides in panels.items() if all(bars.get(side) for side in sides)}
    figure, axes = plt.subplots(1, len(kept), figsize=(3.1 * len(kept), 2.3), layout="constrained", squeeze=False)
    for axis, (title, sides) in zip(axes[0], kept.items(), strict=True):
        for side, colour in sides.items():
            if len(sides) == 1:
                _filled(axis, bars[side])
            else:
                axis.stairs(bars[side]["counts"], bars[side]["edges"], color=colour, linewidth=1.3, label=side)
        if len(sides) > 1:
            axis.legend(frameon=False)
        axis.set_title(title, fontsize=9, color=INK, loc="left")
        axis.set_ylim(bottom=0)
    figure.supxlabel(f"{unit}; the outermost 1 % stand in the end bars", fontsize=8, color=INK)
    return figure


def one(bars: Bars, label: str, unit: str) -> Figure:
    """One histogram; a line stands at zero where there are negative values."""
    figure, axis = plt.subplots(figsize=(4.8, 2.3), layout="constrained")
    _filled(axis, bars)
    if bars["edges"][0] < 0:
        axis.axvline(0, color=INK, linewidth=0.8)
    axis.set(xlabel=label, ylabel=unit)
    return figure


def _filled(axis: Axes, bars: Bars) -> None:
    axis.stairs(bars["counts"], bars["edges"], fill=True, color=SOFT)
    axis.stairs(bars["counts"], bars["edges"], color=ACCENT, linewidth=1.0)


def _written(figure: Figure, path: Path) -> str:
    figure.savefig(path, dpi=150, facecolor="white")
    return svg(figure)
