"""Pages fit a phone and a dark screen, and no legend covers a point; as far as that can be tested without a browser."""

import itertools
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from test_frontier_page import a_run
from test_page import DIFFERENCE, FACTS, SIDE, run_directory

from treeward.cli.main import run
from treeward.report import figures, inspection
from treeward.report.frontier import write_frontier
from treeward.report.page import write_page
from treeward.stats.frontier import Point
from treeward.stats.intervals import Interval

PHONE = 362
"""Width in CSS pixels that a phone of 390 leaves to the page."""
METRICS = [{"step": n, "loss": 1 / n, "grad_norm": 1.0, "rewards/accuracies": 0.5, "validation/accuracy": n / 9}
           for n in range(1, 9)]  # fmt: skip
POINTS = [{"confidence": 0.5 + n / 20, "accuracy": 0.5 + n / 25, "n": 40} for n in range(10)]
GRADED = {
    "spearman": SIDE, "spread_ranks_error": SIDE, "pit_counts": [4, 4, 5, 3, 4] * 2,
    "spread_levels": [{"x": n, "y": 0.5, "low": 0.4, "high": 0.7, "n": 20} for n in (1.0, 2.0)],
}  # fmt: skip


class Outline(HTMLParser):
    """Every tag with its attributes and those of the tags around it."""

    VOID = ("meta", "br", "path", "use", "rect", "image")

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[tuple[str, dict[str, Any]]] = []
        self.elements: list[tuple[str, dict[str, Any], list[tuple[str, dict[str, Any]]]]] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.elements.append((tag, dict(attrs), list(self.stack)))
        if tag not in self.VOID:
            self.stack.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        while self.stack and self.stack.pop()[0] != tag:
            pass


def every_page(tmp_path: Path) -> dict[str, str]:
    """A page of each kind with all its parts."""
    everything = {
        "metric": "score", "metrics": {"kl": FACTS, "accuracy": FACTS}, "graded": GRADED,
        "calibration": {"ece": SIDE, "reliability": POINTS},
        "length": {"longer_wins": SIDE, "margin_against_length_difference": SIDE, "length_matched_accuracy": SIDE},
        "subsets": {"easy": SIDE}, "win_rate": {"score": {**SIDE, "ties": 1}},
        "best_of_n": {"curve": [{"n": 1, "kl_bound": 0.0, "score": SIDE}],
                      "at_equal_kl": {"kl": 1.0, "score": 0.5, "above": DIFFERENCE, "n": 64}},
        "diversity": {"budget": 9, "n": 3, **dict.fromkeys(
            ("token_entropy", "distinct_1", "distinct_2", "distinct_3", "perplexity"), FACTS)},
        "aa": {"score": {**DIFFERENCE, "covers_zero": True}},
    }  # fmt: skip
    pages = {"run": write_page(run_directory(tmp_path / "run", **everything)).read_text()}
    runs = [a_run(tmp_path / name, 1.0, kl) for name, kl in (("a", 0.5), ("b", 0.7))]
    pages["frontier"] = write_frontier(runs, tmp_path / "frontier.html").read_text()
    rated = {"chosen_rating": 3, "rejected_rating": 1}
    rows = [{"prompt": f"why {n}", "chosen": "yes it is" * n, "rejected": "no", **rated} for n in range(1, 30)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run(["inspect", str(tmp_path / "rows.jsonl"), "--out", str(tmp_path / "looked")]) == 0
    pages["inspection"] = (tmp_path / "looked" / "inspect.html").read_text()
    return pages


def test_nothing_runs_off_a_phones_screen_and_figures_can_be_read_there(tmp_path: Path) -> None:
    for name, page in every_page(tmp_path).items():
        outline = Outline()
        outline.feed(page)
        assert '<meta name="viewport" content="width=device-width' in page
        style = page[page.index("<style>") : page.index("</style>")]
        for rule in (r"figure svg \{[^}]*max-width: 100%", r"\.wide \{[^}]*overflow-x: auto",
                     r"overflow-wrap: anywhere", r"max-width: 640px", r"prefers-color-scheme: dark"):  # fmt: skip
            assert re.search(rule, style), (name, rule)
        for tag, attributes, around in outline.elements:
            classes = attributes.get("class", "")
            if tag == "table":
                inside = any("wide" in more.get("class", "").split() for _, more in around)
                assert inside or "stack" in classes.split(), (name, attributes)
            if tag == "svg":
                assert around[-1][0] == "figure", name
                pixels = float(attributes["width"].removesuffix("pt")) * 4 / 3
                shrunk = min(1.0, PHONE / pixels)
                body = page[page.index(f'viewBox="{attributes["viewbox"]}"') :]
                sizes = [
                    float(size) for size in re.findall(r"font(?:-size)?: ([\d.]+)px", body[: body.index("</svg>")])
                ]
                assert sizes, "text is text, not paths"
                assert min(sizes) * 4 / 3 * shrunk >= 9, (name, attributes)


def test_figures_take_the_pages_colours(tmp_path: Path) -> None:
    for name, page in every_page(tmp_path).items():
        body = page[page.index("</style>") :]
        assert "var(--ink)" in body, name
        for colour in (figures.INK, figures.ACCENT, figures.SOFT):
            assert colour not in body, name


def drawn() -> dict[str, Figure]:
    bars = {"edges": [0, 1, 2, 3], "counts": [3, 2, 1]}
    sides = dict.fromkeys(("prompt", "chosen", "rejected", "response", "whole"), bars)
    near = [(0.02 * n, -0.1 + n / 3) for n in range(4)]
    models = [("start", {**SIDE, "value": 0.5}, SIDE), ("trained", SIDE, SIDE)]
    points = [Point(f"run {n}", Interval(n, n - 1, n + 1, 9), Interval(n, n - 1, n + 1, 9), f"f{n}") for n in range(9)]
    return {
        **{f"curve {n}": figure for n, figure in enumerate(figures.curves(METRICS, "accuracy"))},
        "frontier": figures.frontier(models, near),
        "reliability": figures.reliability(POINTS),
        **{f"spread {n}": figure for n, figure in enumerate(figures.spread(GRADED))},
        **{f"lengths {n}": figure for n, figure in enumerate(inspection.lengths(sides, "words"))},
        "differences": inspection.histogram(bars, "chosen minus rejected length, tokens", "pairs"),
        "several runs": figures.with_legend(points, [], "gold"),
    }


def test_no_legend_lies_on_the_axes_and_no_word_leaves_the_figure() -> None:
    seen = 0
    for name, figure in drawn().items():
        figure.canvas.draw()
        page = figure.bbox
        for axes in figure.axes:
            for words in filter(lambda text: text.get_text(), (axes.xaxis.label, axes.yaxis.label, axes.title)):
                told = words.get_window_extent()
                assert told.x0 >= -1, f"{name}: {words.get_text()!r} leaves the figure"
                assert told.x1 <= page.x1 + 1, f"{name}: {words.get_text()!r} leaves the figure"
                assert told.y1 <= page.y1 + 1, f"{name}: {words.get_text()!r} leaves the figure"
            legend = axes.get_legend()
            if legend is None:
                continue
            seen += 1
            box, inside = legend.get_window_extent(), axes.get_window_extent()
            wide = min(box.x1, inside.x1) - max(box.x0, inside.x0)
            high = min(box.y1, inside.y1) - max(box.y0, inside.y0)
            assert wide <= 1 or high <= 1, f"{name}: the legend covers {wide:.0f} x {high:.0f} pixels of the axes"
            assert box.x1 <= page.x1 + 1, f"{name}: the legend leaves the figure"
            assert box.y1 <= page.y1 + 1, f"{name}: the legend leaves the figure"
    assert seen >= 6


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(scheme: str) -> None:
    """Contrast of at least 4.5 to 1 (WCAG 2.1, 1.4.3) for text, also in verdicts."""
    style = (Path(figures.__file__).parent / "style.css").read_text()
    block = style.split("@media (prefers-color-scheme: dark)")[scheme == "dark"].split("}")[0]
    colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", block))
    pairs = [*itertools.product(("ink", "soft", "accent", "bad"), ("paper", "panel")),
             *itertools.product(("on",), ("good", "bad", "idle"))]  # fmt: skip
    for front, ground in pairs:
        a, b = sorted((luminance(colours[front]), luminance(colours[ground])))
        assert (b + 0.05) / (a + 0.05) >= 4.5, (scheme, front, ground)


def luminance(colour: str) -> float:
    parts = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
