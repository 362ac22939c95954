"""Fresh samples of a tuned policy against those of its start, for the same prompts: what a receipt says of them
beside the compared metrics.

Diversity at one token budget, the win rate, best-of-n of the start at equal KL, and the start against itself. Nothing
is computed by a model here: tables and ids alone are read.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from treeward.stats import best_of_n, diversity
from treeward.stats.intervals import Floats, by_group, clustered_mean, share
from treeward.stats.tables import JUDGE, Measurement, Table, compare, wins

AGAIN = "again"
"""The table of the start's samples under another seed."""
AA = ("score", "entropy", "length", "ended", "repetition")


def facts(before: Measurement, after: Measurement) -> dict[str, Any]:
    """`diversity`, `win_rate`, `best_of_n` and `aa`, each where there is something to say; empty without samples."""
    if "samples" not in before.tables or "samples" not in after.tables:
        return {}
    a, b = before.tables["samples"], after.tables["samples"]
    found: dict[str, Any] = {"diversity": diversity_facts(before, after)}
    scored = [name for name in b.columns if name == "score" or name.startswith(JUDGE)]
    if scored:
        found["win_rate"] = {name: win_rate(a.columns[name], b.columns[name], a.groups) for name in scored}
    if "score" in scored:
        found["best_of_n"] = best_of_n_facts(a, b)
    if AGAIN in before.tables:
        found["aa"] = aa_facts(a, before.tables[AGAIN])
    return found


def diversity_facts(before: Measurement, after: Measurement) -> dict[str, Any]:
    """Token entropy, distinct-n and perplexity under the start, of both sides, at `budget` tokens each."""
    pools = [pool(side.samples) for side in (before, after)]
    found: dict[str, Any] = {"budget": min(p.tokens for p in pools), "n": len(set(pools[0].groups))}
    tables = [side.tables["samples"] for side in (before, after)]
    lengths = [t.columns["length"] for t in tables]
    sums = [t.columns["start_nll"] * length for t, length in zip(tables, lengths, strict=True)]
    measured = diversity.measured(pools)
    measured["perplexity"] = diversity.perplexity(sums, lengths, [t.groups for t in tables])
    for name, (intervals, gaps) in measured.items():
        found[name] = {
            "before": asdict(intervals[0]), "after": asdict(intervals[1]), "difference": asdict(gaps[1]),
        }  # fmt: skip
    return found


def pool(samples: Sequence[Any]) -> diversity.Pool:
    """The ids of sampled rows, by prompt."""
    return diversity.Pool([row["ids"] for row in samples], [row["group"] for row in samples])


def win_rate(before: Floats, after: Floats, groups: Sequence[str]) -> dict[str, Any]:
    """Share of prompts whose mean score is above the start's, ties half, with Wilson's interval."""
    gain = by_group(after, groups) - by_group(before, groups)
    won = wins(gain, np.zeros(len(gain)))
    return {**asdict(share(won, np.arange(len(won)))), "ties": int((gain == 0).sum())}


def best_of_n_facts(before: Table, after: Table) -> dict[str, Any]:
    """The start's best of n for n = 1..K against the bound of its KL, and the tuned policy against it at equal KL.

    Its figures are None past the curve's end: K samples say nothing of more than ln K - (K - 1)/K nats. There is no
    `at_equal_kl` where the policy's KL was not measured.
    """
    scores = by_prompt(before, "score")
    names = np.unique(np.asarray(before.groups))
    curve = []
    for n in range(1, scores.shape[1] + 1):
        score = clustered_mean(best_of_n.unbiased(scores, n), names)
        curve.append({"n": n, "kl_bound": best_of_n.kl_bound(n), "score": asdict(score)})
    if "kl" not in after.columns:
        return {"curve": curve}
    at = best_of_n.at_equal_kl(
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
    found = {}
    for name in (n for n in again.columns if n in AA or n.startswith(JUDGE)):
        difference = compare(name, first, again).difference
        found[name] = {**asdict(difference), "covers_zero": not difference.excludes_zero}
    return found


def side_by_side(before: Measurement, after: Measurement) -> list[dict[str, Any]]:
    """Samples of the start and of the trained policy for the same prompts, the largest fall of the score first.

    Without a scorer they stand in the prompts' order.
    """
    rows = [
        {"group": b["group"], "sample": b["sample"], "prompt": b["prompt"], "before": a["response"],
         "after": b["response"], "score_before": a.get("score"), "score_after": b.get("score"), "kl": b.get("kl"),
         **_judged(a, b), "ids_before": a["ids"], "ids_after": b["ids"]}
        for a, b in zip(before.samples, after.samples, strict=True)
    ]  # fmt: skip
    return sorted(rows, key=lambda row: (row["score_after"] or 0.0) - (row["score_before"] or 0.0))


def _judged(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{n}_{side}": row[n] for side, row in (("before", a), ("after", b)) for n in row if n.startswith(JUDGE)}
