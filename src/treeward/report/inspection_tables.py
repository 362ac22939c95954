"""The figures of inspect.json as tables, for the terminal and the page alike; and what in them asks for attention."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from treeward.stats import formatting as numbers

Facts = Mapping[str, Any]
Line = tuple[str, ...]
LEVELS = ("mean", "q05", "q25", "median", "q75", "q95", "max")
LEVEL_NAMES = ("mean", "5 %", "25 %", "median", "75 %", "95 %", "max")
SHARES = ("share_under_64", "share_64_127", "share_over_127")
PARTS = {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected", "response": "any response",
         "whole": "whole path"}  # fmt: skip


@dataclass(frozen=True)
class Section:
    """A titled table; the first column names, the others are numbers. `note` says how to read it."""

    title: str
    head: Line
    rows: tuple[Line, ...]
    note: str = ""


def sections(facts: Facts) -> list[Section]:
    """Every table of an inspection, in the order of reading."""
    found = [_rows(facts), _faults(facts)]
    if facts["rated_pairs"]:
        found.append(_ratings(facts))
    for tokens in facts["tokens"]:
        found += [_lengths(tokens), _cuts(tokens)]
    if facts["pairs"]:
        found += [_preference(facts)]
    if facts["embedding_rows"] is not None and facts["vocabulary"] is not None:
        found.append(_vocabulary(facts))
    return found


def remarks(facts: Facts) -> list[str]:
    """What training on this would do wrong, or be wrong about, one sentence each."""
    rows, pairs = facts["rows"], facts["pairs"] or 0
    lost = max(0, rows - facts["used"] - facts.get("no_fault", 0))
    held_out = facts["validation_rows"] + facts["test_rows"]
    said = [
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
        said += _token_remarks(tokens, pairs, facts["max_response"], facts["max_prompt"])
    return [text.replace("{n}", f"{n:,}") for n, text in said if n]


def text(facts: Facts) -> str:
    """The tables for a terminal."""
    blocks = [f"{facts['source']}: {facts['columns']}; read for {facts['purpose']}"]
    if facts["columns_not_read"]:
        blocks[0] += f"\ncolumns not read: {facts['columns_not_read']}"
    for section in sections(facts):
        blocks.append("\n".join(_aligned(section)))
    warned = remarks(facts)
    if warned:
        blocks.append("\n".join(["look at", *(f"  {line}" for line in warned)]))
    return "\n\n".join(blocks)


def number(value: float | None, digits: int = 1) -> str:
    """A number for a table; a dash for what is not known."""
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
        ("prompts of what is used", number(facts["prompts_used"]), ""),
        *((f"{part} rows", number(n), _share(n, used)) for part, n in parts if n),
        ("prompts in both splits", number(facts["prompts_in_both_splits"]), ""),
    ]
    own = "rows that name a split stay in it, the others are split by prompt" if facts["own_split"] else \
        "split by prompt; prompts that differ only in white space or capitals count as one"  # fmt: skip
    return Section("rows and splits", ("", "count", "share"), tuple(rows), own)


def _faults(facts: Facts) -> Section:
    names = {
        "duplicates": "the same row again", "identical_pairs": "chosen and rejected identical",
        "differing_prompts": "prompts of the two sides differ", "empty_responses": "a response is empty",
        "contradictions": "a pair with both labels", "other_dropped": "other",
    }  # fmt: skip
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
        "cut_prompts": "prompts", "cut_responses": "responses", "cut_paths": "paths", "rows_over": "rows",
        "cut_chosen": "chosen", "cut_rejected": "rejected", "identical_at": "made identical",
    }  # fmt: skip
    limits = budgets(tokens)
    have = {key: name for key, name in columns.items() if f"{key}_{limits[0]}" in tokens}
    rows = tuple((str(limit), *(_counted(tokens, key, limit) for key in have)) for limit in limits)
    note = "rows: with a path over the limit; made identical: pairs that no longer differ once responses are cut" \
        if "identical_at" in have else ""  # fmt: skip
    return Section(f"longer than a limit, in {unit(tokens)}", ("limit", *have.values()), rows, note)


def _preference(facts: Facts) -> Section:
    rows: list[Line] = [("longer wins, in characters", *_interval(facts, "longer_wins_characters"))]
    rows.append(("  unequal lengths alone", *_interval(facts, "longer_wins_characters_unequal")))
    for tokens in facts["tokens"]:
        rows.append((f"longer wins, in {unit(tokens)}", *_interval(tokens, "longer_wins")))
        rows.append(("  unequal lengths alone", *_interval(tokens, "longer_wins_unequal")))
        rows.append(("  length correlation", number(tokens["length_correlation"], 3), "", number(facts["pairs"])))
    note = (f"means over prompts, ties half; n counts prompts, of the correlation pairs: "
            f"{facts['length_correlation_kind']}\n")  # fmt: skip
    if facts["floor"] is None:
        note += "no pair is held out, so no word floor can be measured"
    else:
        rows.append(("word floor, held out", *_interval(facts, "floor")))
        note += (f"word floor: Bradley-Terry linear in {facts['floor_words']:,} words, trained on "
                 f"{facts['floor_pairs']:,} pairs (20,000 at most): a model that reads should beat it")  # fmt: skip
    return Section("what length and words give away", ("", "value", "95 % interval", "n"), tuple(rows), note)


def _vocabulary(facts: Facts) -> Section:
    keys = ("vocabulary", "embedding_rows", "ids_beyond_model", "tokens_beyond_model")
    rows = tuple((tokens["tokenizer"], *(number(tokens[key]) for key in keys)) for tokens in facts["tokens"])
    return Section("tokenizer and model", ("", "ids", "embedding rows", "ids beyond", "tokens beyond"), rows)


def _token_remarks(tokens: Facts, pairs: int, response: int, prompt: int) -> list[tuple[int, str]]:
    counted_in = unit(tokens)
    rows, beyond = number(tokens["embedding_rows"]), number(tokens["tokens_beyond_model"])
    found = [
        (tokens["ids_beyond_model"] or 0, f"F09: {{n}} ids of {tokens['tokenizer']} lie beyond the model's "
         f"{rows} embedding rows; {beyond} tokens of this data"),
        (_over(tokens[f"cut_prompts_{prompt}"], None, 0),
         f"F12: {{n}} prompts are longer than data.max_prompt {prompt} ({counted_in}) and are cut on the left"),
    ]  # fmt: skip
    if pairs:
        sides = [tokens[f"cut_{side}_share_{response}"] for side in ("chosen", "rejected")]
        found += [
            (_over(tokens[f"identical_at_{response}"], pairs, 0.01),
             f"F11: data.max_response {response} makes {{n}} pairs identical ({counted_in})"),
            (tokens[f"cut_responses_{response}"] if abs(sides[0] - sides[1]) > 0.05 else 0,
             f"F13: data.max_response {response} cuts {_percent(sides[0])} of chosen, {_percent(sides[1])} of rejected "
             f"({counted_in})"),
        ]  # fmt: skip
    return found


def budgets(tokens: Facts) -> list[int]:
    """The limits that were counted."""
    found = (re.fullmatch(r"cut_prompts_(\d+)", key) for key in tokens)
    return sorted(int(match[1]) for match in found if match)


def _over(n: int, of: int | None, limit: float) -> int:
    return n if of is None or n > limit * of else 0


def _counted(tokens: Facts, key: str, limit: int) -> str:
    share = tokens.get(f"{key}_share_{limit}")
    return number(tokens[f"{key}_{limit}"]) + (f" ({_percent(share)})" if share is not None else "")


def _interval(facts: Facts, key: str) -> tuple[str, str, str]:
    """Value, interval, n."""
    measured = {"value": facts[key], "low": facts[f"{key}_low"], "high": facts[f"{key}_high"]}
    return numbers.value(measured), numbers.bounds(measured), number(facts[f"{key}_n"])


def unit(tokens: Facts) -> str:
    """What lengths are counted in, with the tokenizer's name."""
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
