"""Figures as inline SVG: training curves, and score against KL with intervals."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from treeward.maths.statistics import wilson

INK, ACCENT, SOFT = "#1f2a2e", "#1b7f5c", "#9fb3ad"
STYLE: Any = {
    "font.family": "sans-serif", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False,
    "axes.edgecolor": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK, "svg.fonttype": "none",
    "figure.facecolor": "none", "axes.facecolor": "none", "savefig.facecolor": "none",
}  # fmt: skip
Rows = Sequence[Mapping[str, Any]]
TRAINING: Mapping[str, str] = {"accuracy": "rewards/accuracies"}
"""What a batch's metric is called that is measured on the validation part under another name."""


def curves(metrics: Rows, main: str) -> str:
    """Loss by step, and the validation metric where it was measured."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 2, figsize=(7.2, 2.4), layout="constrained")
        steps = [row["step"] for row in metrics]
        losses = [row["loss"] for row in metrics]
        axes[0].plot(steps, losses, color=SOFT, linewidth=0.8)
        axes[0].plot(steps, smoothed(losses), color=ACCENT, linewidth=1.6)
        axes[0].set(xlabel="step", ylabel="training loss")
        key = f"validation/{main}"
        points = [(row["step"], row[key]) for row in metrics if row.get(key) is not None]
        if points:
            _validation(axes[1], metrics, main, points)
        else:
            axes[1].plot(steps, [row["grad_norm"] for row in metrics], color=ACCENT, linewidth=1.0)
            axes[1].set(xlabel="step", ylabel="gradient norm")
        return svg(figure)


def _validation(axes: Axes, metrics: Rows, main: str, points: Sequence[tuple[float, float]]) -> None:
    """The metric on the validation part, and where the batches measure it too, theirs."""
    own = [row[TRAINING[main]] for row in metrics if main in TRAINING and TRAINING[main] in row]
    if len(own) == len(metrics):
        axes.plot([row["step"] for row in metrics], smoothed(own), color=SOFT, linewidth=1.2, label="training")
    axes.plot(*zip(*points, strict=True), color=ACCENT, marker="o", markersize=3.5, linewidth=1.4, label="validation")
    axes.set(xlabel="step", ylabel=main)
    axes.legend(frameon=False)


def frontier(
    points: Sequence[tuple[str, Mapping[str, Any], Mapping[str, Any]]], path: Sequence[tuple[float, float]]
) -> str:
    """Score against KL: one (name, kl, score) a model, each with value, low and high; `path` is the way there."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(4.8, 3.0), layout="constrained")
        if path:
            axes.plot(*zip(*path, strict=True), color=SOFT, linewidth=1.0, marker=".", zorder=1,
                      label="on the way (validation)")  # fmt: skip
        for place, (name, kl, score) in enumerate(points):
            _cross(axes, kl, score, ACCENT if place else INK, name)
        axes.set(xlabel="KL to the start, nats a response", ylabel="score")
        axes.legend(frameon=False, loc="lower right")
        return svg(figure)


def reliability(points: Sequence[Mapping[str, Any]]) -> str:
    """Accuracy against stated confidence, one point a bin of equal mass, with Wilson's intervals."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(3.4, 3.0), layout="constrained")
        axes.plot([0.5, 1], [0.5, 1], color=SOFT, linewidth=1.0, linestyle="--")
        for point in points:
            interval = vars(wilson(point["accuracy"] * point["n"], point["n"]))
            axes.errorbar([point["confidence"]], [point["accuracy"]], yerr=_reach(interval), fmt="o", color=ACCENT,
                          capsize=2, markersize=4, linewidth=1.0)  # fmt: skip
        axes.set(xlabel="stated confidence", ylabel="accuracy", xlim=(0.48, 1.02))
        return svg(figure)


def spread(graded: Mapping[str, Any]) -> str:
    """Absolute error against the stated spread, means of bins of equal mass with intervals over groups; and, with one
    distribution a response, the PIT's counts in tenths with the band in which 95 % of even counts lie.
    """
    return svg(spread_figure(graded))


def spread_figure(graded: Mapping[str, Any]) -> Figure:
    """The figure of `spread`, its title the rank correlation with its interval."""
    counts = graded.get("pit_counts")
    with plt.rc_context(STYLE):
        figure, found = plt.subplots(1, 2 if counts else 1, figsize=(7.2 if counts else 3.6, 2.8), layout="constrained",
                                     squeeze=False)  # fmt: skip
        axes = found[0]
        for level in graded["spread_levels"]:
            interval = {"low": level["low"], "value": level["y"], "high": level["high"]}
            axes[0].errorbar([level["x"]], [level["y"]], yerr=_reach(interval), fmt="o", color=ACCENT, capsize=2,
                             markersize=4, linewidth=1.0)  # fmt: skip
        rank = graded["spread_ranks_error"]
        said = "none: one side is constant" if rank["value"] is None else \
            f"{rank['value']:.2f} [{rank['low']:.2f}, {rank['high']:.2f}], {rank['n']} prompts"  # fmt: skip
        axes[0].set_title(f"rank correlation {said}", fontsize=9, color=INK, loc="left")
        axes[0].set(xlabel="stated spread (standard deviation), bins", ylabel="absolute error, bins")
        axes[0].set_ylim(bottom=0)
        if counts:
            _evenness(axes[1], counts)
    return figure


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
    """The figure as an SVG element."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    plt.close(figure)
    text = buffer.getvalue()
    return text[text.index("<svg") :]


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
    axes.set_title("PIT: flat if the distributions are right", fontsize=9, color=INK, loc="left")
    axes.set(xlabel="where the rating falls in the stated distribution", ylabel="responses", ylim=(0, None))


def _reach(interval: Mapping[str, Any]) -> list[list[float]]:
    low, value, high = (interval[k] if interval[k] is not None else interval["value"] for k in ("low", "value", "high"))
    return [[max(0.0, value - low)], [max(0.0, high - value)]]
