"""The page of an inspection: tables, remarks on problems, and histograms, from inspect.json and histograms.json."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from treeward.errors import UserError
from treeward.report.figures import ACCENT, INK, SIZE, SOFT, STYLE, legend_above, svg
from treeward.report.html import write_html
from treeward.stats import formatting

Facts = Mapping[str, Any]
Line = tuple[str, ...]
LENGTH_AND_WORDS = "what length and words predict"
LEVELS = ("mean", "q05", "q25", "median", "q75", "q95", "max")
LEVEL_NAMES = ("mean", "5 %", "25 %", "median", "75 %", "95 %", "max")
SHARES = ("share_under_64", "share_64_127", "share_over_127")
PARTS = {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected", "response": "any response",
         "whole": "whole path"}  # fmt: skip


@dataclass(frozen=True)
class Section:
    """A table with a title. The first column has names, the others numbers; `note` explains the table."""

    title: str
    head: Line
    rows: tuple[Line, ...]
    note: str = ""


def sections(facts: Facts) -> list[Section]:
    """The tables of an inspection, in order."""
    tables = [_rows(facts), _faults(facts)]
    if facts["rated_pairs"]:
        tables.append(_ratings(facts))
    for tokens in facts["tokens"]:
        tables += [_lengths(tokens), _cuts(tokens)]
    if facts["pairs"]:
        tables.append(_preference(facts))
    if facts["embedding_rows"] is not None and facts["vocabulary"] is not None:
        tables.append(_vocabulary(facts))
    return tables


def remarks(facts: Facts) -> list[str]:
    """Problems of this data for training, one sentence each; each begins with the id of its check."""
    rows, pairs = facts["rows"], facts["pairs"] or 0
    lost = max(0, rows - facts["used"] - facts.get("no_fault", 0))
    held_out = facts["validation_rows"] + facts["test_rows"]
    counted = [
        (facts["prompts_in_both_splits"], "F04: {n} prompts are in more than one split; "
         f"{_share(facts['held_out_leaked'], held_out)} of the held-out rows leak"),
        (facts["contradictions"], "F04: {n} pairs appear with both labels"),
        (facts["duplicates"], "F04: {n} rows repeat an earlier one"),
        (_over(facts["rating_disagreements"], facts["rated_pairs"], 0.01),
         "F05: the ratings of {n} pairs contradict their order"),
        (_over(lost, rows, 0.05), f"F10: {{n}} rows of {rows:,} cannot be used"),
        (_over(facts["identical_pairs"], rows, 0.05), "F11: {n} pairs are identical in the data"),
    ]  # fmt: skip
    for tokens in facts["tokens"]:
        counted += _token_remarks(tokens, pairs, facts["max_response"], facts["max_prompt"])
    return [text.replace("{n}", f"{n:,}") for n, text in counted if n]


def text(facts: Facts) -> str:
    """The tables for a terminal."""
    blocks = [f"{facts['source']}: {facts['columns']}; read for {facts['purpose']}"]
    if facts["columns_not_read"]:
        blocks[0] += f"\ncolumns not read: {facts['columns_not_read']}"
    for section in sections(facts):
        blocks.append("\n".join(_aligned(section)))
    problems = remarks(facts)
    if problems:
        blocks.append("\n".join(["problems to look at first", *(f"  {line}" for line in problems)]))
    return "\n\n".join(blocks)


def number(value: float | None, digits: int = 1) -> str:
    """A number for a table; a dash for None."""
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.{digits}f}"


def _rows(facts: Facts) -> Section:
    parts = [(part, facts[f"{part}_rows"]) for part in ("train", "validation", "test")]
    used = sum(n for _, n in parts)
    rows = [
        ("rows", number(facts["rows"]), ""),
        ("used", number(facts["used"]), _share(facts["used"], facts["rows"])),
        *([("pairs", number(facts["pairs"]), "")] if facts["pairs"] is not None else []),
        ("prompts", number(facts["prompts"]), ""),
        ("prompts of used rows", number(facts["prompts_used"]), ""),
        *((f"{part} rows", number(n), _share(n, used)) for part, n in parts if n),
        ("prompts in both splits", number(facts["prompts_in_both_splits"]), ""),
    ]
    if facts["own_split"]:
        note = "rows with a named split stay in it, other rows are split by prompt"
    else:
        note = "split by prompt; prompts that differ only in white space or capitals count as one"
    return Section("rows and splits", ("", "count", "share"), tuple(rows), note)


def _faults(facts: Facts) -> Section:
    names = {
        "duplicates": "duplicate of an earlier row",
        "identical_pairs": "chosen and rejected identical",
        "differing_prompts": "prompts of the two sides differ",
        "empty_responses": "a response is empty",
        "contradictions": "a pair with both labels",
        "other_dropped": "other",
    }
    rows = [(text, number(facts[key]), _share(facts[key], facts["rows"])) for key, text in names.items()]
    reasons = f"other: {facts['other_reasons']}" if facts["other_reasons"] else ""
    return Section("faults of the data", ("", "count", "of rows"), tuple(rows), reasons)


def _ratings(facts: Facts) -> Section:
    gaps = {"mean": facts["mean_rating_gap"], **{key: facts[f"rating_gap_{key}"] for key in LEVELS[1:]}}
    n = facts["rated_pairs"]
    note = (
        f"{n:,} rated pairs; ties (equal ratings) {facts['ties']:,}, {_share(facts['ties'], n)}; the rejected side is "
        f"rated higher in {facts['rating_disagreements']:,}, {_share(facts['rating_disagreements'], n)}"
    )
    return Section("ratings", ("", *LEVEL_NAMES), (("gap", *(number(gaps[key], 2) for key in LEVELS)),), note)


def _lengths(tokens: Facts) -> Section:
    rows = tuple(
        (name, *(number(tokens[f"{part}_{level}"], 1 if level == "mean" else 0) for level in LEVELS),
         *(_percent(tokens[f"{part}_{share}"]) for share in SHARES))
        for part, name in PARTS.items() if f"{part}_mean" in tokens
    )  # fmt: skip
    note = "whole path: the prompt with one response" if len(rows) > 1 else ""
    if tokens["vocabulary"] is not None and len(rows) > 1:
        note += "; responses count their end token"
    if tokens["templated"] is False:
        note = f"{note}\nno chat template: prompts are counted as the text of their messages".strip()
    return Section(f"lengths in {unit(tokens)}", ("", *LEVEL_NAMES, "under 64", "64 to 127", "over 127"), rows, note)


def _cuts(tokens: Facts) -> Section:
    columns = {
        "cut_prompts": "prompts",
        "cut_responses": "responses",
        "cut_paths": "paths",
        "rows_over": "rows",
        "cut_chosen": "chosen",
        "cut_rejected": "rejected",
        "identical_at": "made identical",
    }
    limits = budgets(tokens)
    shown = {key: name for key, name in columns.items() if f"{key}_{limits[0]}" in tokens}
    rows = tuple((str(limit), *(_counted(tokens, key, limit) for key in shown)) for limit in limits)
    note = "rows: rows with a path over the limit; made identical: pairs that do not differ after responses are cut"
    title = f"longer than a limit, in {unit(tokens)}"
    return Section(title, ("limit", *shown.values()), rows, note if "identical_at" in shown else "")


def _preference(facts: Facts) -> Section:
    rows: list[Line] = [("longer wins, in characters", *_interval(facts, "longer_wins_characters"))]
    rows.append(("  only unequal lengths", *_interval(facts, "longer_wins_characters_unequal")))
    for tokens in facts["tokens"]:
        rows.append((f"longer wins, in {unit(tokens)}", *_interval(tokens, "longer_wins")))
        rows.append(("  only unequal lengths", *_interval(tokens, "longer_wins_unequal")))
        rows.append(("  length correlation", number(tokens["length_correlation"], 3), "", number(facts["pairs"])))
    note = f"means over prompts, ties half; n: prompts; for the correlation pairs: {facts['length_correlation_kind']}\n"
    if facts["floor"] is None:
        note += "no pair is held out, so there is no word floor"
    else:
        rows.append(("word floor, held out", *_interval(facts, "floor")))
        note += (
            f"word floor: accuracy of a Bradley-Terry model that is linear in {facts['floor_words']:,} words, trained "
            f"on {facts['floor_pairs']:,} pairs (20,000 at most); a language model should be better"
        )
    return Section(LENGTH_AND_WORDS, ("", "value", "95 % interval", "n"), tuple(rows), note)


def _vocabulary(facts: Facts) -> Section:
    keys = ("vocabulary", "embedding_rows", "ids_beyond_model", "tokens_beyond_model")
    rows = tuple((tokens["tokenizer"], *(number(tokens[key]) for key in keys)) for tokens in facts["tokens"])
    return Section("tokenizer and model", ("", "ids", "embedding rows", "ids beyond", "tokens beyond"), rows)


def _token_remarks(tokens: Facts, pairs: int, response: int, prompt: int) -> list[tuple[int, str]]:
    counted_in = unit(tokens)
    rows, beyond = number(tokens["embedding_rows"]), number(tokens["tokens_beyond_model"])
    counted = [
        (tokens["ids_beyond_model"] or 0, f"F09: {{n}} ids of {tokens['tokenizer']} lie beyond the model's "
         f"{rows} embedding rows; {beyond} tokens of this data"),
        (_over(tokens[f"cut_prompts_{prompt}"], None, 0),
         f"F12: {{n}} prompts are longer than data.max_prompt {prompt} ({counted_in}) and are cut on the left"),
    ]  # fmt: skip
    if pairs:
        sides = [tokens[f"cut_{side}_share_{response}"] for side in ("chosen", "rejected")]
        counted += [
            (_over(tokens[f"identical_at_{response}"], pairs, 0.01),
             f"F11: data.max_response {response} makes {{n}} pairs identical ({counted_in})"),
            (tokens[f"cut_responses_{response}"] if abs(sides[0] - sides[1]) > 0.05 else 0,
             f"F13: data.max_response {response} cuts {_percent(sides[0])} of chosen, {_percent(sides[1])} of rejected "
             f"({counted_in})"),
        ]  # fmt: skip
    return counted


def budgets(tokens: Facts) -> list[int]:
    """The limits at which cuts were counted."""
    matches = (re.fullmatch(r"cut_prompts_(\d+)", key) for key in tokens)
    return sorted(int(match[1]) for match in matches if match)


def _over(n: int, of: int | None, limit: float) -> int:
    return n if of is None or n > limit * of else 0


def _counted(tokens: Facts, key: str, limit: int) -> str:
    share = tokens.get(f"{key}_share_{limit}")
    return number(tokens[f"{key}_{limit}"]) + (f" ({_percent(share)})" if share is not None else "")


def _interval(facts: Facts, key: str) -> tuple[str, str, str]:
    """Value, interval, n."""
    measured = {"value": facts[key], "low": facts[f"{key}_low"], "high": facts[f"{key}_high"]}
    return formatting.value(measured), formatting.bounds(measured), number(facts[f"{key}_n"])


def unit(tokens: Facts) -> str:
    """The unit of lengths, with the name of the tokenizer."""
    return "words" if tokens["vocabulary"] is None else f"tokens of {tokens['tokenizer']}"


def _share(n: int, of: int) -> str:
    return _percent(n / of) if of else "–"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


def _aligned(section: Section) -> Sequence[str]:
    lines = [section.head, *section.rows]
    widths = [max(len(line[n]) for line in lines) for n in range(len(section.head))]
    shown = [
        "  " + "  ".join(cell.rjust(width) if n else cell.ljust(width)
                         for n, (cell, width) in enumerate(zip(line, widths, strict=True)))
        for line in lines if any(line[1:])
    ]  # fmt: skip
    return [section.title, *(line.rstrip() for line in shown), *(f"  {line}" for line in section.note.splitlines())]


Bars = Mapping[str, Any]


def write_inspection(path: Path) -> Path:
    """Write the histograms and `inspect.html` into the directory of an inspection.

    Raises:
        UserError: the directory has no inspect.json.
    """
    if not (path / "inspect.json").exists():
        raise UserError(f"{str(path)!r} has no inspect.json; name a directory that treeward inspect --out wrote")
    facts = json.loads((path / "inspect.json").read_text(encoding="utf-8"))
    bars = json.loads((path / "histograms.json").read_text(encoding="utf-8"))
    return write_html(
        "inspection.html",
        path / "inspect.html",
        title=Path(facts["source"]).name,
        facts=facts,
        sections=sections(facts),
        remarks=remarks(facts),
        figures=_figures(path, facts, bars),
    )


def _figures(path: Path, facts: Mapping[str, Any], bars: Bars) -> dict[str, list[str]]:
    """Write the figures as PNG beside the page; return them as SVG, by the title of the table to show them under."""
    tables = {section.title: section for section in sections(facts)}
    shown: dict[str, list[str]] = {}
    with plt.rc_context({**STYLE, "svg.hashsalt": "treeward"}):
        for place, tokens in enumerate(facts["tokens"]):
            together, *apart = lengths(bars[tokens["tokenizer"]], _unit(tokens))
            _save(together, path / f"lengths{f'-{place + 1}' if place else ''}.png")
            plt.close(together)
            shown[f"lengths in {unit(tokens)}"] = [svg(figure) for figure in apart]
        if bars["rating_gap"]:
            figure = histogram(bars["rating_gap"], "chosen minus rejected rating", "pairs")
            shown["ratings"] = [_save_and_embed(figure, path / "rating_gaps.png")]
        first = bars[facts["tokens"][0]["tokenizer"]]
        title = LENGTH_AND_WORDS
        if first.get("difference") and title in tables:
            figure = histogram(first["difference"], f"chosen minus rejected length, {_unit(facts)}", "pairs")
            shown[title] = [_save_and_embed(figure, path / "length_differences.png")]
    return shown


def _unit(tokens: Mapping[str, Any]) -> str:
    """The unit of lengths, without the tokenizer, which the title above the figure names."""
    return "words" if tokens["vocabulary"] is None else "tokens"


def lengths(bars: Bars, counted_in: str) -> list[Figure]:
    """Histograms of prompts, responses and whole paths: one figure of all first, then one figure each for phones."""
    panels = {
        "prompts": {"prompt": ACCENT},
        "responses": {"chosen": ACCENT, "rejected": INK} if bars.get("chosen") else {"response": ACCENT},
        "whole paths": {"whole": ACCENT},
    }
    shown = {title: sides for title, sides in panels.items() if all(bars.get(side) for side in sides)}
    together, axes = plt.subplots(1, len(shown), figsize=(3.3 * len(shown), 2.7), layout="constrained", squeeze=False)
    figures = [together]
    for above, (title, sides) in zip(axes[0], shown.items(), strict=True):
        alone, below = plt.subplots(figsize=SIZE, layout="constrained")
        figures.append(alone)
        for axis in (above, below):
            _panel(axis, title, sides, bars, counted_in)
    return figures


def _panel(axis: Axes, title: str, sides: Mapping[str, str], bars: Bars, counted_in: str) -> None:
    """A histogram: the two sides of a pair as outlines over each other, one distribution filled."""
    for side, colour in sides.items():
        if len(sides) == 1:
            _filled(axis, bars[side])
        else:
            axis.stairs(bars[side]["counts"], bars[side]["edges"], color=colour, linewidth=1.3, label=side)
    if len(sides) > 1:
        legend_above(axis)
    axis.set(xlabel=f"{counted_in}\n(the outermost 1 % are in the end bars)", ylabel=title)
    axis.set_ylim(bottom=0)


def histogram(bars: Bars, label: str, counted: str) -> Figure:
    """One histogram, with a line at zero if there are negative values."""
    figure, axis = plt.subplots(figsize=SIZE, layout="constrained")
    _filled(axis, bars)
    if bars["edges"][0] < 0:
        axis.axvline(0, color=INK, linewidth=0.8)
    axis.set(xlabel=label, ylabel=counted)
    return figure


def _filled(axis: Axes, bars: Bars) -> None:
    axis.stairs(bars["counts"], bars["edges"], fill=True, color=SOFT)
    axis.stairs(bars["counts"], bars["edges"], color=ACCENT, linewidth=1.0)


def _save_and_embed(figure: Figure, path: Path) -> str:
    """Write the figure as PNG; return it as SVG."""
    _save(figure, path)
    return svg(figure)


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=150, facecolor="white")
