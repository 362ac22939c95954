"""Fresh samples of a trained policy compared with the start's for the same prompts: what a receipt reports besides
metrics.

Diversity at an equal token budget, win rate, best-of-n of the start at equal KL, and an A/A test of the start. It reads
tables and ids only; no model runs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from treeward.stats import diversity, frontier
from treeward.stats.intervals import Floats, by_group, clustered_mean, share
from treeward.stats.tables import JUDGE, Measurement, Table, compare, wins

AGAIN = "again"
"""The table of the start's samples under another seed."""
AA_METRICS = ("score", "entropy", "length", "ended", "repetition")


def facts(before: Measurement, after: Measurement) -> dict[str, Any]:
    """`diversity`, `win_rate`, `best_of_n` and `aa`, each where it was measured; empty without samples."""
    if "samples" not in before.tables or "samples" not in after.tables:
        return {}
    start, trained = before.tables["samples"], after.tables["samples"]
    facts: dict[str, Any] = {"diversity": diversity_facts(before, after)}
    scored = [name for name in trained.columns if name == "score" or name.startswith(JUDGE)]
    if scored:
        facts["win_rate"] = {
            name: win_rate(start.columns[name], trained.columns[name], start.groups) for name in scored
        }
    if "score" in scored:
        facts["best_of_n"] = best_of_n_facts(start, trained)
    if AGAIN in before.tables:
        facts["aa"] = aa_facts(start, before.tables[AGAIN])
    return facts


def diversity_facts(before: Measurement, after: Measurement) -> dict[str, Any]:
    """Token entropy, distinct-n and (with a start model) perplexity under the start, before and after, at `budget`
    tokens each.
    """
    pools = [pool(side.samples) for side in (before, after)]
    tables = [side.tables["samples"] for side in (before, after)]
    facts: dict[str, Any] = {"budget": min(p.tokens for p in pools), "n": len(set(pools[0].groups))}
    measured = diversity.measure(pools)
    if all("start_nll" in table.columns for table in tables):
        lengths = [table.columns["length"] for table in tables]
        sums = [table.columns["start_nll"] * length for table, length in zip(tables, lengths, strict=True)]
        measured["perplexity"] = diversity.perplexity(sums, lengths, [table.groups for table in tables])
    for name, (intervals, differences) in measured.items():
        facts[name] = {
            "before": asdict(intervals[0]),
            "after": asdict(intervals[1]),
            "difference": asdict(differences[1]),
        }
    return facts


def pool(samples: Sequence[Any]) -> diversity.Pool:
    """The ids of sampled rows, by prompt."""
    return diversity.Pool([row["ids"] for row in samples], [row["group"] for row in samples])


def win_rate(before: Floats, after: Floats, groups: Sequence[str]) -> dict[str, Any]:
    """Share of prompts whose mean score is above the start's (a tie counts half), with Wilson's interval."""
    gain = by_group(after, groups) - by_group(before, groups)
    won = wins(gain, np.zeros(len(gain)))
    return {**asdict(share(won, np.arange(len(won)))), "ties": int((gain == 0).sum())}


def best_of_n_facts(before: Table, after: Table) -> dict[str, Any]:
    """The start's best-of-n score for n = 1..K with the upper bound of its KL, and the trained policy compared with it
    at equal KL.

    The comparison is None beyond the end of the curve: with K samples it ends at ln K - (K - 1)/K nats. Without a KL
    there is no `at_equal_kl`.
    """
    scores = by_prompt(before, "score")
    names = np.unique(np.asarray(before.groups))
    curve = []
    for n in range(1, scores.shape[1] + 1):
        score = clustered_mean(frontier.expected_best(scores, n), names)
        curve.append({"n": n, "kl_bound": frontier.kl_bound(n), "score": asdict(score)})
    if "kl" not in after.columns:
        return {"curve": curve}
    at = frontier.at_equal_kl(
        scores, by_group(after.columns["score"], after.groups), by_group(after.columns["kl"], after.groups)
    )
    return {"curve": curve, "at_equal_kl": {**asdict(at), "n": len(scores)}}


def by_prompt(table: Table, name: str) -> Floats:
    """A column as (G, K): one row a prompt, prompts in sorted order."""
    order = np.argsort(np.asarray(table.groups), kind="stable")
    count = len(set(table.groups))
    return np.asarray(table.columns[name][order].reshape(count, -1), dtype=np.float64)


def aa_facts(first: Table, again: Table) -> dict[str, Any]:
    """The start against itself under another seed: the difference of each metric, and whether it covers zero."""
    facts = {}
    for name in (n for n in again.columns if n in AA_METRICS or n.startswith(JUDGE)):
        difference = compare(name, first, again).difference
        facts[name] = {**asdict(difference), "covers_zero": not difference.excludes_zero}
    return facts


def side_by_side(before: Measurement, after: Measurement) -> list[dict[str, Any]]:
    """Samples of the start and of the trained policy for the same prompts, the largest loss of score first.

    Without a scorer they are in the order of the prompts.
    """
    rows = [
        {
            "group": new["group"],
            "sample": new["sample"],
            "prompt": new["prompt"],
            "before": old["response"],
            "after": new["response"],
            "score_before": old.get("score"),
            "score_after": new.get("score"),
            "kl": new.get("kl"),
            **_judge_columns(old, new),
            "prompt_ids": new["prompt_ids"],
            "ids_before": old["ids"],
            "ids_after": new["ids"],
        }
        for old, new in zip(before.samples, after.samples, strict=True)
    ]
    return sorted(rows, key=lambda row: (row["score_after"] or 0.0) - (row["score_before"] or 0.0))


def _judge_columns(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    return {
        f"{name}_{side}": row[name]
        for side, row in (("before", old), ("after", new))
        for name in row
        if name.startswith(JUDGE)
    }
