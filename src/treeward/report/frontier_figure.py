"""The frontier as a figure: score against KL with error bars, one colour a family, and best-of-n of the start.

Every run has a number, which stands at its point, in the legend while that has room, and in the table. Best-of-n is
drawn as far as the runs go and a little beyond.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from treeward.report.figures import INK, STYLE, VARIABLES, svg
from treeward.stats.frontier import Point

Box = tuple[float, float, float, float]
"""Left, bottom, right, top, in points."""
COLOURS = ("#1b7f5c", "#c8641b", "#3a5fb0", "#a0307c", "#8a6d1d", "#2e8fa6", "#7a4fbf", "#b3392f", "#5d6d6a", "#6a8f1f")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
NAMED = 20
"""With more runs than this the legend holds families alone."""
PLACES = tuple(
    (side * far, height) for far in (6, 14, 24, 36) for height in (4, -11, 14, -21, 25, -32) for side in (1, -1)
)
"""Where a number may stand beside its point, the best first; it takes the place that meets least."""
NEAR = 14
"""From further away than this a line leads to the point."""
LINE = {"arrowstyle": "-", "linewidth": 0.4, "color": INK, "shrinkA": 0, "shrinkB": 3}
WIDTH, HEIGHT = 5.0, 8.0
"""Of a digit, in points of type 8."""


def draw(points: Sequence[Point], best_of_n: Sequence[Mapping[str, Any]], scorer: str, png: Path) -> str:
    """Write the figure as PNG with its legend at the right; return it as an SVG element without one, narrow enough for
    a phone, whose colours the page explains. The first point is the start.
    """
    wide = with_legend(points, best_of_n, scorer)
    wide.savefig(png, dpi=160, facecolor="white")
    plt.close(wide)
    with plt.rc_context(STYLE):
        narrow = figure_of(points, best_of_n, "", (4.1, 3.5))
        _numbers(narrow, points[1:])
        return svg(narrow)


def with_legend(points: Sequence[Point], best_of_n: Sequence[Mapping[str, Any]], scorer: str) -> Figure:
    """The figure that stands alone: runs by name in a legend at the right of the axes."""
    with plt.rc_context(STYLE):
        figure = figure_of(points, best_of_n, scorer, (8.4, 4.4))
        figure.axes[0].legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
        _numbers(figure, points[1:])
        return figure


def page_colours(families: Sequence[str]) -> dict[str, str]:
    """The colour of each family on the page, in the order in which they come."""
    drawn = {family: COLOURS[place % len(COLOURS)] for place, family in enumerate(dict.fromkeys(families))}
    return {family: VARIABLES.get(colour, colour) for family, colour in drawn.items()}


def figure_of(
    points: Sequence[Point], best_of_n: Sequence[Mapping[str, Any]], scorer: str, size: tuple[float, float]
) -> Figure:
    """The figure without its legend and numbers."""
    figure, axes = plt.subplots(figsize=size, layout="constrained")
    if len(best_of_n) > 1:
        _best_of_n(axes, best_of_n, 1.35 * float(np.nanmax([(point.kl.value, point.kl.high) for point in points])))
    families = list(dict.fromkeys(point.family for point in points[1:]))
    _point(axes, points[0], INK, "o", points[0].label)
    seen: set[str] = set()
    for number, point in enumerate(points[1:], 1):
        place = families.index(point.family)
        named = f"{number}  {point.label}" + (f" · {point.family}" if len(families) > 1 else "")
        label = named if len(points) <= NAMED + 1 else None if point.family in seen else point.family
        seen.add(point.family)
        _point(axes, point, COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)], label)
    axes.margins(x=0.06, y=0.1)
    axes.set(xlabel="KL(policy, start), nats a response", ylabel=f"score ({scorer})" if scorer else "score")
    axes.set_title("bars: 95 % intervals by prompt", fontsize=8, loc="left", color=INK)
    return figure


def _best_of_n(axes: Axes, curve: Sequence[Mapping[str, Any]], furthest: float) -> None:
    bounds = np.array([point["kl_bound"] for point in curve])
    end = min(float(bounds[-1]), furthest if furthest > 0 else float(bounds[-1]))
    x = np.append(bounds[bounds < end], end)
    low, middle, high = (
        np.interp(x, bounds, [_known(point["score"], name) for point in curve]) for name in ("low", "value", "high")
    )
    axes.plot(x, middle, color=INK, linewidth=1.2, linestyle="--", label="best of n of the start")
    inside = bounds <= end
    axes.plot(bounds[inside], middle[: inside.sum()], color=INK, linestyle="none", marker=".", markersize=5)
    for point in curve:
        if point["kl_bound"] <= end and point["n"] > 1:
            axes.annotate(f"n={point['n']}", (point["kl_bound"], point["score"]["value"]), xytext=(-3, 4),
                          textcoords="offset points", ha="right", fontsize=8, color=INK)  # fmt: skip
    axes.fill_between(x, low, high, color=INK, alpha=0.08, linewidth=0)


def _point(axes: Axes, point: Point, colour: str, marker: str, label: str | None) -> None:
    axes.errorbar(
        [point.kl.value], [point.score.value],
        xerr=[[point.kl.value - point.kl.low], [point.kl.high - point.kl.value]],
        yerr=[[point.score.value - point.score.low], [point.score.high - point.score.value]],
        fmt=marker, color=colour, capsize=2.5, markersize=5, linewidth=1.1, label=label, zorder=2,
    )  # fmt: skip


def _numbers(figure: Figure, points: Sequence[Point]) -> None:
    axes = figure.axes[0]
    figure.canvas.draw()  # only now does every point have its place on the page
    where = axes.transData.transform([(point.kl.value, point.score.value) for point in points]) * 72 / figure.dpi
    for number, (point, place) in enumerate(zip(points, beside([(x, y) for x, y in where]), strict=True), 1):
        axes.annotate(
            str(number), (point.kl.value, point.score.value), xytext=place, textcoords="offset points",
            arrowprops=LINE if math.hypot(*place) > NEAR else None,
            ha="left" if place[0] > 0 else "right", fontsize=8, color=INK, zorder=3,
        )  # fmt: skip


def beside(where: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """For points at these places, numbered from 1: how far from each its number stands, so that they meet least."""
    taken = [(x - 3, y - 3, x + 3, y + 3) for x, y in where]
    found: list[tuple[float, float]] = []
    for number, (x, y) in enumerate(where, 1):
        boxes = [box(x + dx, y + dy, math.copysign(WIDTH * len(str(number)), dx)) for dx, dy in PLACES]
        best = min(range(len(PLACES)), key=lambda place: sum(common(boxes[place], other) for other in taken))
        taken.append(boxes[best])
        found.append(PLACES[best])
    return found


def box(x: float, y: float, width: float) -> Box:
    """The box of a text that begins here, or ends here if its width is negative."""
    return min(x, x + width), y, max(x, x + width), y + HEIGHT


def common(a: Box, b: Box) -> float:
    """The area that two boxes share."""
    wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return max(wide, 0.0) * max(high, 0.0)


def _known(interval: Mapping[str, Any], name: str) -> float:
    return float(interval["value"] if interval[name] is None else interval[name])
