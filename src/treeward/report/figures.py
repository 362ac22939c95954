"""The figures of a run's page: training curves, score against KL with intervals, calibration.

Each is small enough to be read at a phone's width. Legends stand above the axes, never on them.
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from treeward.stats.formatting import interval, label
from treeward.stats.intervals import wilson

INK, ACCENT, SOFT = "#1f2a2e", "#1b7f5c", "#9fb3ad"
VARIABLES = {INK: "var(--ink)", ACCENT: "var(--accent)", SOFT: "var(--pale)"}
"""Colours that the page's style sets, so that figures can be read in light and in dark."""
STYLE: Any = {
    "font.family": "sans-serif", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False,
    "axes.edgecolor": INK, "axes.labelcolor": INK, "text.color": INK, "xtick.color": INK, "ytick.color": INK,
    "svg.fonttype": "none", "figure.facecolor": "none", "axes.facecolor": "none", "savefig.facecolor": "none",
}  # fmt: skip
SIZE = (3.7, 2.7)
"""Inches: about 355 pixels wide, so that a phone shows the text at its full size."""
Rows = Sequence[Mapping[str, Any]]
TRAINING: Mapping[str, str] = {"accuracy": "rewards/accuracies"}
"""What a batch's metric is called that is measured on the validation part under another name."""


def legend_above(axes: Axes) -> None:
    """The legend above the axes, where it covers nothing."""
    axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=2, borderaxespad=0.2,
                columnspacing=1.2, handletextpad=0.5)  # fmt: skip


def curves(metrics: Rows, main: str) -> list[Figure]:
    """Loss by step, and the validation metric where it was measured."""
    with plt.rc_context(STYLE):
        loss, axes = plt.subplots(figsize=SIZE, layout="constrained")
        steps = [row["step"] for row in metrics]
        losses = [row["loss"] for row in metrics]
        axes.plot(steps, losses, color=SOFT, linewidth=0.8, label="each step")
        axes.plot(steps, smoothed(losses), color=ACCENT, linewidth=1.6, label="smoothed")
        axes.set(xlabel="step", ylabel="training loss")
        legend_above(axes)
        second, axes = plt.subplots(figsize=SIZE, layout="constrained")
        key = f"validation/{main}"
        points = [(row["step"], row[key]) for row in metrics if row.get(key) is not None]
        if points:
            _validation(axes, metrics, main, points)
        else:
            axes.plot(steps, [row["grad_norm"] for row in metrics], color=ACCENT, linewidth=1.0)
            axes.set(xlabel="step", ylabel="gradient norm")
        return [loss, second]


def _validation(axes: Axes, metrics: Rows, main: str, points: Sequence[tuple[float, float]]) -> None:
    """The metric on the validation part, and where the batches measure it too, theirs."""
    batches = [row[TRAINING[main]] for row in metrics if main in TRAINING and TRAINING[main] in row]
    if len(batches) == len(metrics):
        axes.plot([row["step"] for row in metrics], smoothed(batches), color=SOFT, linewidth=1.2, label="training")
    axes.plot(*zip(*points, strict=True), color=ACCENT, marker="o", markersize=3.5, linewidth=1.4, label="validation")
    axes.set(xlabel="step", ylabel=label(main))
    legend_above(axes)


def frontier(
    points: Sequence[tuple[str, Mapping[str, Any], Mapping[str, Any]]], path: Sequence[tuple[float, float]]
) -> Figure:
    """Score against KL: one (name, kl, score) a model, each with value, low and high; `path` is the way there."""
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


def reliability(points: Sequence[Mapping[str, Any]]) -> Figure:
    """Accuracy against stated confidence, one point a bin of equal mass, with intervals."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(3.7, 3.1), layout="constrained")
        axes.plot([0.5, 1], [0.5, 1], color=SOFT, linewidth=1.0, linestyle="--", label="exactly right")
        for place, point in enumerate(points):
            facts = {"value": point["accuracy"], **_accuracy_bounds(point)}
            named = None if place else "a tenth of the pairs"
            axes.errorbar([point["confidence"]], [point["accuracy"]], yerr=_reach(facts), fmt="o", color=ACCENT,
                          capsize=2, markersize=4, linewidth=1.0, label=named)  # fmt: skip
        axes.set(xlabel="stated confidence", ylabel="accuracy", xlim=(0.48, 1.02))
        legend_above(axes)
        return figure


def _accuracy_bounds(point: Mapping[str, Any]) -> Mapping[str, Any]:
    """The interval of a point's accuracy: the receipt's, else Wilson's."""
    return point if "low" in point else vars(wilson(point["accuracy"] * point["n"], point["n"]))


def spread(graded: Mapping[str, Any]) -> list[Figure]:
    """Absolute error against the stated spread, means of bins of equal mass with intervals over groups; and, with one
    distribution a response, the PIT's counts in tenths with the band in which 95 % of even counts lie.
    """
    counts = graded.get("pit_counts")
    with plt.rc_context(STYLE):
        first, axes = plt.subplots(figsize=SIZE, layout="constrained")
        for level in graded["spread_levels"]:
            facts = {"low": level["low"], "value": level["y"], "high": level["high"]}
            axes.errorbar([level["x"]], [level["y"]], yerr=_reach(facts), fmt="o", color=ACCENT, capsize=2,
                          markersize=4, linewidth=1.0)  # fmt: skip
        rank = graded["spread_ranks_error"]
        text = "none: one side is constant" if rank["value"] is None else f"{interval(rank)}, n={rank['n']}"
        axes.set_title(f"rank correlation {text}", fontsize=8.5, color=INK, loc="left")
        axes.set(xlabel="stated spread (standard deviation), bins", ylabel="absolute error, bins")
        axes.set_ylim(bottom=0)
        if not counts:
            return [first]
        second, axes = plt.subplots(figsize=SIZE, layout="constrained")
        _evenness(axes, counts)
    return [first, second]


def smoothed(values: Sequence[float | None], keep: float = 0.9) -> list[float]:
    """Exponential moving average, corrected for its start; gaps repeat the last value."""
    out: list[float] = []
    level = weight = 0.0
    for value in values:
        if value is not None:
            level = keep * level + (1 - keep) * value
            weight = keep * weight + (1 - keep)
        out.append(level / weight if weight else float("nan"))
    return out


def svg(figure: Figure) -> str:
    """The figure as an SVG element, in the page's own colours; the figure is closed."""
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
        [kl["value"]], [score["value"]], xerr=_reach(kl), yerr=_reach(score), fmt="o", color=colour, capsize=3,
        markersize=5, linewidth=1.2, label=name, zorder=2,
    )  # fmt: skip


def _evenness(axes: Axes, counts: Sequence[int]) -> None:
    """Counts of equal bins, and where 95 % of them lie if all places are alike (a normal approximation)."""
    n, bins = sum(counts), len(counts)
    even = n / bins
    doubt = 1.96 * (even * (1 - 1 / bins)) ** 0.5
    axes.axhspan(even - doubt, even + doubt, color=SOFT, alpha=0.35, linewidth=0)
    axes.stairs(counts, [place / bins for place in range(bins + 1)], color=ACCENT, linewidth=1.3)
    axes.set_title("PIT: flat if the distributions are right", fontsize=8.5, color=INK, loc="left")
    axes.set(xlabel="place of the rating in the distribution", ylabel="responses", ylim=(0, None))


def _reach(facts: Mapping[str, Any]) -> list[list[float]]:
    low, value, high = (facts[k] if facts[k] is not None else facts["value"] for k in ("low", "value", "high"))
    return [[max(0.0, value - low)], [max(0.0, high - value)]]
