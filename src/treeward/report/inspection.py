"""An inspection as PNG histograms and a self-contained page, from inspect.json and histograms.json alone."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from treeward.errors import UserError
from treeward.report.figures import ACCENT, INK, SIZE, SOFT, STYLE, legend_above, svg
from treeward.report.html import write_html
from treeward.report.inspection_tables import remarks, sections, unit

Bars = Mapping[str, Any]


def write_inspection(path: Path) -> Path:
    """Write the histograms and `inspect.html` into the directory that holds the figures.

    Raises:
        UserError: there are no figures at that place.
    """
    if not (path / "inspect.json").exists():
        raise UserError(f"{str(path)!r} holds no inspect.json")
    facts = json.loads((path / "inspect.json").read_text(encoding="utf-8"))
    bars = json.loads((path / "histograms.json").read_text(encoding="utf-8"))
    return write_html(
        "inspection.html", path / "inspect.html", title=Path(facts["source"]).name, facts=facts,
        sections=sections(facts), remarks=remarks(facts), figures=_figures(path, facts, bars),
    )  # fmt: skip


def _figures(path: Path, facts: Mapping[str, Any], bars: Bars) -> dict[str, list[str]]:
    """The figures as PNG beside the page, and as SVG under the title of the table that they belong to."""
    tables = {section.title: section for section in sections(facts)}
    shown: dict[str, list[str]] = {}
    with plt.rc_context({**STYLE, "svg.hashsalt": "treeward"}):
        for place, tokens in enumerate(facts["tokens"]):
            together, *apart = lengths(bars[tokens["tokenizer"]], _unit(tokens))
            _save(together, path / f"lengths{f'-{place + 1}' if place else ''}.png")
            plt.close(together)
            shown[f"lengths in {unit(tokens)}"] = [svg(figure) for figure in apart]
        if bars["rating_gap"]:
            figure = one(bars["rating_gap"], "chosen minus rejected rating", "pairs")
            shown["ratings"] = [_written(figure, path / "rating_gaps.png")]
        first = bars[facts["tokens"][0]["tokenizer"]]
        title = "what length and words give away"
        if first.get("difference") and title in tables:
            figure = one(first["difference"], f"chosen minus rejected length, {_unit(facts)}", "pairs")
            shown[title] = [_written(figure, path / "length_differences.png")]
    return shown


def _unit(tokens: Mapping[str, Any]) -> str:
    """What lengths are counted in; the title above the figure names the tokenizer."""
    return "words" if tokens["vocabulary"] is None else "tokens"


def lengths(bars: Bars, counted_in: str) -> list[Figure]:
    """Histograms of prompts, responses and whole paths: first one figure of all, then one each, which fit a phone."""
    panels = {
        "prompts": {"prompt": ACCENT},
        "responses": {"chosen": ACCENT, "rejected": INK} if bars.get("chosen") else {"response": ACCENT},
        "whole paths": {"whole": ACCENT},
    }
    kept = {title: sides for title, sides in panels.items() if all(bars.get(side) for side in sides)}
    together, axes = plt.subplots(1, len(kept), figsize=(3.3 * len(kept), 2.7), layout="constrained", squeeze=False)
    figures = [together]
    for above, (title, sides) in zip(axes[0], kept.items(), strict=True):
        alone, below = plt.subplots(figsize=SIZE, layout="constrained")
        figures.append(alone)
        for axis in (above, below):
            _panel(axis, title, sides, bars, counted_in)
    return figures


def _panel(axis: Axes, title: str, sides: Mapping[str, str], bars: Bars, counted_in: str) -> None:
    """The two sides of a pair over each other, anything else filled."""
    for side, colour in sides.items():
        if len(sides) == 1:
            _filled(axis, bars[side])
        else:
            axis.stairs(bars[side]["counts"], bars[side]["edges"], color=colour, linewidth=1.3, label=side)
    if len(sides) > 1:
        legend_above(axis)
    axis.set(xlabel=f"{counted_in}\n(the outermost 1 % are in the end bars)", ylabel=title)
    axis.set_ylim(bottom=0)


def one(bars: Bars, label: str, counted: str) -> Figure:
    """One histogram; a line stands at zero where there are negative values."""
    figure, axis = plt.subplots(figsize=SIZE, layout="constrained")
    _filled(axis, bars)
    if bars["edges"][0] < 0:
        axis.axvline(0, color=INK, linewidth=0.8)
    axis.set(xlabel=label, ylabel=counted)
    return figure


def _filled(axis: Axes, bars: Bars) -> None:
    axis.stairs(bars["counts"], bars["edges"], fill=True, color=SOFT)
    axis.stairs(bars["counts"], bars["edges"], color=ACCENT, linewidth=1.0)


def _written(figure: Figure, path: Path) -> str:
    _save(figure, path)
    return svg(figure)


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=150, facecolor="white")
