"""Figures: of a run's page (training curves, score against KL, calibration), and the frontier of several runs.

Each fits the width of a phone. Legends are above the axes, so that they cover no points. In a frontier every run has a
number: at its point, in the table, and in the legend while there is room.
"""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from treeward.stats.formatting import interval, label
from treeward.stats.frontier import Front, Point
from treeward.stats.intervals import clustered_mean, wilson

INK, ACCENT, SOFT = "#1f2a2e", "#1b7f5c", "#9fb3ad"
VARIABLES = {INK: "var(--ink)", ACCENT: "var(--accent)", SOFT: "var(--pale)"}
"""CSS variables of the page that replace the colours, so that figures work in light and dark mode."""
STYLE: Any = {
    "font.family": "sans-serif", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False,
    "axes.edgecolor": INK, "axes.labelcolor": INK, "text.color": INK, "xtick.color": INK, "ytick.color": INK,
    "svg.fonttype": "none", "figure.facecolor": "none", "axes.facecolor": "none", "savefig.facecolor": "none",
}  # fmt: skip
SIZE = (3.7, 2.7)
"""Inches; about 355 pixels wide, so that a phone shows the text at full size."""
Rows = Sequence[Mapping[str, Any]]
TRAINING: Mapping[str, str] = {"accuracy": "rewards/accuracies"}
"""Metrics of training batches that have another name on the validation part, by that name."""


def legend_above(axes: Axes) -> None:
    """Put the legend above the axes."""
    axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=2, borderaxespad=0.2,
                columnspacing=1.2, handletextpad=0.5)  # fmt: skip


def curves(metrics: Rows, main: str) -> list[Figure]:
    """Training loss by step, or the score and KL of the samples where the run trained on samples; and the validation
    metric by step (the gradient norm if there was no validation).
    """
    with plt.rc_context(STYLE):
        steps = [row["step"] for row in metrics]
        sampled = {"score": "score of the training samples", "kl": "KL of the training samples, nats"}
        columns = {column: text for column, text in sampled.items() if column in metrics[0]}
        first = [_by_step(steps, [row[column] for row in metrics], text)
                 for column, text in (columns or {"loss": "training loss"}).items()]  # fmt: skip
        second, axes = plt.subplots(figsize=SIZE, layout="constrained")
        key = f"validation/{main}"
        points = [(row["step"], row[key]) for row in metrics if row.get(key) is not None]
        if points:
            _validation(axes, metrics, main, points)
        else:
            axes.plot(steps, [row["grad_norm"] for row in metrics], color=ACCENT, linewidth=1.0)
            axes.set(xlabel="step", ylabel="gradient norm")
        return [*first, second]


def _by_step(steps: Sequence[int], values: Sequence[float], text: str) -> Figure:
    """A quantity at each step, and smoothed."""
    figure, axes = plt.subplots(figsize=SIZE, layout="constrained")
    axes.plot(steps, values, color=SOFT, linewidth=0.8, label="each step")
    axes.plot(steps, smoothed(values), color=ACCENT, linewidth=1.6, label="smoothed")
    axes.set(xlabel="step", ylabel=text)
    legend_above(axes)
    return figure


def _validation(axes: Axes, metrics: Rows, main: str, points: Sequence[tuple[float, float]]) -> None:
    """The metric on the validation part, and that of the training batches if they have it."""
    training = [row[TRAINING[main]] for row in metrics if main in TRAINING and TRAINING[main] in row]
    if len(training) == len(metrics):
        axes.plot([row["step"] for row in metrics], smoothed(training), color=SOFT, linewidth=1.2, label="training")
    axes.plot(*zip(*points, strict=True), color=ACCENT, marker="o", markersize=3.5, linewidth=1.4, label="validation")
    axes.set(xlabel="step", ylabel=label(main))
    legend_above(axes)


def frontier(
    points: Sequence[tuple[str, Mapping[str, Any], Mapping[str, Any]]], path: Sequence[tuple[float, float]]
) -> Figure:
    """Score against KL.

    Args:
        points: (name, kl, score) of each model; kl and score have value, low and high.
        path: (kl, score) on the validation part during training.
    """
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(3.9, 3.1), layout="constrained")
        if path:
            axes.plot(*zip(*path, strict=True), color=SOFT, linewidth=1.0, marker=".", zorder=1,
                      label="during training (validation)")  # fmt: skip
        for place, (name, kl, score) in enumerate(points):
            _cross(axes, kl, score, ACCENT if place else INK, name)
        axes.set(xlabel="KL to the start, nats a response", ylabel="score")
        legend_above(axes)
        return figure


def front(line: Rows, members: Rows, chosen: float, best_of_n: Rows) -> Figure:
    """Score against KL between a start and a merge, with the members that were merged and best-of-n of the start.

    Args:
        line: The policies on the way, the start first: `share`, and `test` with score and KL.
        members: The same for the members of the last iteration.
        chosen: The share of the policy that was taken.
        best_of_n: The curve of best-of-n of the start.
    """
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(4.1, 3.5), layout="constrained")
        kl, score = ([point["test"][name] for point in line] for name in ("kl", "score"))
        if len(best_of_n) > 1:
            _best_of_n(axes, best_of_n, 1.35 * max(facts["value"] for facts in kl))
        axes.plot([facts["value"] for facts in kl], [facts["value"] for facts in score], color=ACCENT, linewidth=1.0)
        labelled: set[str] = set()
        for point in (*line, *members):
            here = point["share"] == chosen
            kinds = {None: ("member", COLOURS[1]), 0.0: ("start", INK)}
            name, colour = kinds.get(point["share"], ("chosen" if here else "between start and merge", ACCENT))
            _cross(axes, point["test"]["kl"], point["test"]["score"], colour, "" if name in labelled else name)
            labelled.add(name)
            if here:
                axes.plot(point["test"]["kl"]["value"], point["test"]["score"]["value"], marker="o", markersize=11,
                          markerfacecolor="none", markeredgecolor=ACCENT)  # fmt: skip
        axes.set(xlabel="KL to the start, nats a response", ylabel="score")
        legend_above(axes)
        return figure


def reliability(points: Sequence[Mapping[str, Any]]) -> Figure:
    """Reliability diagram: accuracy against confidence in bins of equal size, with intervals."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(3.7, 3.1), layout="constrained")
        axes.plot([0.5, 1], [0.5, 1], color=SOFT, linewidth=1.0, linestyle="--", label="calibrated")
        for place, point in enumerate(points):
            facts = {"value": point["accuracy"], **_accuracy_bounds(point)}
            legend = None if place else "a tenth of the pairs"
            axes.errorbar([point["confidence"]], [point["accuracy"]], yerr=_error_bars(facts), fmt="o", color=ACCENT,
                          capsize=2, markersize=4, linewidth=1.0, label=legend)  # fmt: skip
        axes.set(xlabel="confidence", ylabel="accuracy", xlim=(0.48, 1.02))
        legend_above(axes)
        return figure


def _accuracy_bounds(point: Mapping[str, Any]) -> Mapping[str, Any]:
    """The interval of a point's accuracy; Wilson's if the receipt has none."""
    return point if "low" in point else vars(wilson(point["accuracy"] * point["n"], point["n"]))


def spread(graded: Mapping[str, Any]) -> list[Figure]:
    """Absolute error against predicted spread, in bins of equal size with intervals over groups.

    With one distribution per response also the histogram of the probability integral transform (PIT) in tenths, with
    the band that holds 95 % of the counts of a uniform PIT.
    """
    counts = graded.get("pit_counts")
    with plt.rc_context(STYLE):
        first, axes = plt.subplots(figsize=SIZE, layout="constrained")
        for level in graded["spread_levels"]:
            facts = {"low": level["low"], "value": level["y"], "high": level["high"]}
            axes.errorbar([level["x"]], [level["y"]], yerr=_error_bars(facts), fmt="o", color=ACCENT, capsize=2,
                          markersize=4, linewidth=1.0)  # fmt: skip
        rank = graded["spread_ranks_error"]
        text = "none: one side is constant" if rank["value"] is None else f"{interval(rank)}, n={rank['n']}"
        axes.set_title(f"rank correlation {text}", fontsize=8.5, color=INK, loc="left")
        axes.set(xlabel="predicted spread (standard deviation), bins", ylabel="absolute error, bins")
        axes.set_ylim(bottom=0)
        if not counts:
            return [first]
        second, axes = plt.subplots(figsize=SIZE, layout="constrained")
        _pit_histogram(axes, counts)
    return [first, second]


def smoothed(values: Sequence[float | None], keep: float = 0.9) -> list[float]:
    """Exponential moving average with bias correction; None leaves the average as it was."""
    out: list[float] = []
    level = weight = 0.0
    for value in values:
        if value is not None:
            level = keep * level + (1 - keep) * value
            weight = keep * weight + (1 - keep)
        out.append(level / weight if weight else float("nan"))
    return out


def svg(figure: Figure) -> str:
    """The figure as an SVG element with the page's colours. Closes the figure."""
    buffer = io.StringIO()
    with plt.rc_context(STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    plt.close(figure)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, variable)
    return text


def _cross(axes: Axes, kl: Mapping[str, Any], score: Mapping[str, Any], colour: str, name: str) -> None:
    axes.errorbar(
        [kl["value"]],
        [score["value"]],
        xerr=_error_bars(kl),
        yerr=_error_bars(score),
        fmt="o",
        color=colour,
        capsize=3,
        markersize=5,
        linewidth=1.2,
        label=name,
        zorder=2,
    )


def _pit_histogram(axes: Axes, counts: Sequence[int]) -> None:
    """Counts in equal bins, and the 95 % band of a uniform distribution (normal approximation)."""
    n, bins = sum(counts), len(counts)
    expected = n / bins
    margin = 1.96 * (expected * (1 - 1 / bins)) ** 0.5
    axes.axhspan(expected - margin, expected + margin, color=SOFT, alpha=0.35, linewidth=0)
    axes.stairs(counts, [place / bins for place in range(bins + 1)], color=ACCENT, linewidth=1.3)
    axes.set_title("PIT: flat if the distributions are right", fontsize=8.5, color=INK, loc="left")
    axes.set(xlabel="quantile of the rating in the distribution", ylabel="responses", ylim=(0, None))


def _error_bars(facts: Mapping[str, Any]) -> list[list[float]]:
    low, value, high = (facts[k] if facts[k] is not None else facts["value"] for k in ("low", "value", "high"))
    return [[max(0.0, value - low)], [max(0.0, high - value)]]


Box = tuple[float, float, float, float]
"""Left, bottom, right, top, in points."""
COLOURS = ("#1b7f5c", "#c8641b", "#3a5fb0", "#a0307c", "#8a6d1d", "#2e8fa6", "#7a4fbf", "#b3392f", "#5d6d6a", "#6a8f1f")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
NAMED = 20
"""With more runs than this the legend lists families instead of runs."""
PLACES = tuple(
    (side * far, height) for far in (6, 14, 24, 36) for height in (4, -11, 14, -21, 25, -32) for side in (1, -1)
)
"""Offsets of a number from its point in points, the best first; the one with the least overlap is taken."""
NEAR = 14
"""With a larger offset than this a line leads from the number to its point."""
LINE = {"arrowstyle": "-", "linewidth": 0.4, "color": INK, "shrinkA": 0, "shrinkB": 3}
WIDTH, HEIGHT = 5.0, 8.0
"""Size of a digit in points, in 8-point type."""


def draw(points: Sequence[Point], best_of_n: Sequence[Mapping[str, Any]], scorer: str, png: Path) -> str:
    """Write the figure with a legend as PNG; return it as an SVG element without one, which fits a phone.

    The page explains the colours of the SVG. The first point is the start model.
    """
    wide = with_legend(points, best_of_n, scorer)
    wide.savefig(png, dpi=160, facecolor="white")
    plt.close(wide)
    with plt.rc_context(STYLE):
        narrow = figure_of(points, best_of_n, "", (4.1, 3.5))
        _numbers(narrow, points[1:])
        return svg(narrow)


def with_legend(points: Sequence[Point], best_of_n: Sequence[Mapping[str, Any]], scorer: str) -> Figure:
    """The figure with a legend of the runs at the right of the axes."""
    with plt.rc_context(STYLE):
        figure = figure_of(points, best_of_n, scorer, (8.4, 4.4))
        figure.axes[0].legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
        _numbers(figure, points[1:])
        return figure


def over_seeds(training: Mapping[str, Mapping[int, Sequence[tuple[int, float, float]]]]) -> list[Figure]:
    """Score by step and score by KL while training, for each setting the mean over its seeds with its 95 % interval.

    Args:
        training: For each setting and seed the step, KL and score of each measurement on the validation part.
    """
    figures = []
    words = list(zip(*(name.split() for name in training), strict=False))
    shared = next((n for n, column in enumerate(words) if len(set(column)) > 1), 0)  # a legend has room for the rest
    with plt.rc_context(STYLE):
        for column, text in ((0, "step"), (1, "KL(policy, start), nats a response")):
            figure, axes = plt.subplots(figsize=(4.1, 3.5), layout="constrained")
            for place, (name, by_seed) in enumerate(training.items()):
                label = " ".join(name.split()[shared:])
                steps = sorted(set.intersection(*({point[0] for point in path} for path in by_seed.values())))
                rows = np.array([[point for point in path if point[0] in steps] for path in by_seed.values()])
                means = [clustered_mean(rows[:, n, 2], range(len(rows))) for n in range(len(steps))]
                x = rows[:, :, column].mean(0)
                colour = COLOURS[place % len(COLOURS)]
                axes.plot(x, [m.value for m in means], color=colour, linewidth=1.3, markersize=3,
                          marker=MARKERS[place % len(MARKERS)], label=f"{label}, n={len(rows)}")  # fmt: skip
                axes.fill_between(x, [m.low for m in means], [m.high for m in means], color=colour, alpha=0.15,
                                  linewidth=0)  # fmt: skip
            axes.set(xlabel=text, ylabel="score on the validation part")
            axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0.0, 1.0), fontsize=8, borderaxespad=0.2)
            figures.append(figure)
    return figures


def fronts(each: Sequence[Front]) -> Figure:
    """Score against KL of the policies of each front: means over seeds and prompts."""
    with plt.rc_context(STYLE):
        columns = 1 if len(each) <= 4 else 2
        figure, axes = plt.subplots(figsize=(5.6, 3.4 + 0.2 * len(each) / columns), layout="constrained")
        for place, front in enumerate(each):
            kl, score = (values.mean((0, 2)) for values in (front.kl, front.score))
            axes.plot(kl, score, color=COLOURS[place % len(COLOURS)], marker=MARKERS[place % len(MARKERS)],
                      markersize=4, linewidth=1.2, label=fill(front.name, 64 // columns))  # fmt: skip
        axes.set(xlabel="KL(policy, start), nats a response", ylabel="score")
        axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0.0, 1.0), fontsize=8, ncols=columns)
        return figure


def page_colours(families: Sequence[str]) -> dict[str, str]:
    """The colour of each family on the page, in the order of the families."""
    colours = {family: COLOURS[place % len(COLOURS)] for place, family in enumerate(dict.fromkeys(families))}
    return {family: VARIABLES.get(colour, colour) for family, colour in colours.items()}


def figure_of(
    points: Sequence[Point], best_of_n: Sequence[Mapping[str, Any]], scorer: str, size: tuple[float, float]
) -> Figure:
    """The figure without legend and numbers."""
    figure, axes = plt.subplots(figsize=size, layout="constrained")
    if len(best_of_n) > 1:
        _best_of_n(axes, best_of_n, 1.35 * float(np.nanmax([(point.kl.value, point.kl.high) for point in points])))
    families = list(dict.fromkeys(point.family for point in points[1:]))
    _point(axes, points[0], INK, "o", points[0].label)
    in_legend: set[str] = set()
    for number, point in enumerate(points[1:], 1):
        place = families.index(point.family)
        name = f"{number}  {point.label}" + (f" · {point.family}" if len(families) > 1 else "")
        label = name if len(points) <= NAMED + 1 else None if point.family in in_legend else point.family
        in_legend.add(point.family)
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
        np.interp(x, bounds, [_bound(point["score"], name) for point in curve]) for name in ("low", "value", "high")
    )
    axes.plot(x, middle, color=INK, linewidth=1.2, linestyle="--", label="best of n of the start")
    shown = bounds <= end
    axes.plot(bounds[shown], middle[: shown.sum()], color=INK, linestyle="none", marker=".", markersize=5)
    for point in curve:
        if point["kl_bound"] <= end and point["n"] > 1:
            axes.annotate(f"n={point['n']}", (point["kl_bound"], point["score"]["value"]), xytext=(-3, 4),
                          textcoords="offset points", ha="right", fontsize=8, color=INK)  # fmt: skip
    axes.fill_between(x, low, high, color=INK, alpha=0.08, linewidth=0)


def _point(axes: Axes, point: Point, colour: str, marker: str, label: str | None) -> None:
    axes.errorbar(
        [point.kl.value],
        [point.score.value],
        xerr=[[point.kl.value - point.kl.low], [point.kl.high - point.kl.value]],
        yerr=[[point.score.value - point.score.low], [point.score.high - point.score.value]],
        fmt=marker,
        color=colour,
        capsize=2.5,
        markersize=5,
        linewidth=1.1,
        label=label,
        zorder=2,
    )


def _numbers(figure: Figure, points: Sequence[Point]) -> None:
    axes = figure.axes[0]
    figure.canvas.draw()  # fixes the layout, so that points have positions on the page
    positions = axes.transData.transform([(point.kl.value, point.score.value) for point in points]) * 72 / figure.dpi
    for number, (point, offset) in enumerate(zip(points, offsets([(x, y) for x, y in positions]), strict=True), 1):
        axes.annotate(
            str(number),
            (point.kl.value, point.score.value),
            xytext=offset,
            textcoords="offset points",
            arrowprops=LINE if math.hypot(*offset) > NEAR else None,
            ha="left" if offset[0] > 0 else "right",
            fontsize=8,
            color=INK,
            zorder=3,
        )


def offsets(positions: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The offset of each point's number (1, 2, ...) from the point, so that numbers and points overlap least."""
    taken = [(x - 3, y - 3, x + 3, y + 3) for x, y in positions]
    chosen: list[tuple[float, float]] = []
    for number, (x, y) in enumerate(positions, 1):
        boxes = [text_box(x + dx, y + dy, math.copysign(WIDTH * len(str(number)), dx)) for dx, dy in PLACES]
        best = min(range(len(PLACES)), key=lambda place: sum(overlap(boxes[place], box) for box in taken))
        taken.append(boxes[best])
        chosen.append(PLACES[best])
    return chosen


def text_box(x: float, y: float, width: float) -> Box:
    """The box of a text that begins at x, or ends at x if its width is negative."""
    return min(x, x + width), y, max(x, x + width), y + HEIGHT


def overlap(a: Box, b: Box) -> float:
    """The area that two boxes share."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return max(width, 0.0) * max(height, 0.0)


def _bound(interval: Mapping[str, Any], name: str) -> float:
    """A bound of an interval; the value itself where the bound is not known."""
    return float(interval["value"] if interval[name] is None else interval[name])
