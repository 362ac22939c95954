"""The frontier as a figure: score against KL with error bars, one colour a family, and best-of-n of the start."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from treeward.maths.frontier import Point
from treeward.report.figures import INK, STYLE, svg

COLOURS = ("#1b7f5c", "#c8641b", "#3a5fb0", "#a0307c", "#8a6d1d", "#2e8fa6", "#7a4fbf", "#b3392f", "#5d6d6a", "#6a8f1f")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
NAMED = 14
"""With more points than this, names would lie on each other: the legend and the table hold them."""


def draw(points: Sequence[Point], best_of_n: Sequence[Mapping[str, Any]], scorer: str, png: Path) -> str:
    """Write the figure as PNG, and return it as an SVG element. The first point is the start."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7.2, 4.4), layout="constrained")
        if len(best_of_n) > 1:
            _best_of_n(axes, best_of_n)
        families = list(dict.fromkeys(point.family for point in points[1:]))
        _point(axes, points[0], INK, "o", points[0].label)
        for number, family in enumerate(families):
            colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
            for place, point in enumerate(p for p in points[1:] if p.family == family):
                _point(axes, point, colour, marker, family if place == 0 else None)
        if len(points) <= NAMED:
            _names(axes, points)
        axes.margins(x=0.08, y=0.12)
        axes.set(xlabel="KL(policy, start), nats a response", ylabel=f"score ({scorer})" if scorer else "score")
        axes.set_title("bars: 95 % intervals", fontsize=8, loc="right", color=INK)
        axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
        figure.savefig(png, dpi=160, facecolor="white")
        return svg(figure)


def _best_of_n(axes: Axes, curve: Sequence[Mapping[str, Any]]) -> None:
    x = [point["kl_bound"] for point in curve]
    low, middle, high = ([_known(point["score"], name) for point in curve] for name in ("low", "value", "high"))
    axes.plot(x, middle, color=INK, linewidth=1.2, linestyle="--", marker=".", markersize=4,
              label=f"best of n of the start, n = 1..{curve[-1]['n']}")  # fmt: skip
    axes.fill_between(x, low, high, color=INK, alpha=0.08, linewidth=0)


def _point(axes: Axes, point: Point, colour: str, marker: str, label: str | None) -> None:
    axes.errorbar(
        [point.kl.value], [point.score.value],
        xerr=[[point.kl.value - point.kl.low], [point.kl.high - point.kl.value]],
        yerr=[[point.score.value - point.score.low], [point.score.high - point.score.value]],
        fmt=marker, color=colour, capsize=2.5, markersize=5, linewidth=1.1, label=label, zorder=2,
    )  # fmt: skip


def _names(axes: Axes, points: Sequence[Point]) -> None:
    """Each run's name above or below its point, in turn along the KL, so that neighbours do not meet."""
    for turn, point in enumerate(sorted(points[1:], key=lambda p: p.kl.value)):
        above = turn % 2 == 0
        axes.annotate(
            point.label, (point.kl.value, point.score.high if above else point.score.low),
            xytext=(0, 4 if above else -4), textcoords="offset points", ha="center",
            va="bottom" if above else "top", fontsize=7.5, color=INK,
        )  # fmt: skip


def _known(interval: Mapping[str, Any], name: str) -> float:
    return float(interval["value"] if interval[name] is None else interval[name])
