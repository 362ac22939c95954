"""Guards of fresh samples: is the KL that of this text, did a judge fall while the metric rose, is it still text?

A fallen guard makes a run `worse`, not `broken`: it was trained as asked, and what was asked for is not good.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from treeward.checks.check import Check, below
from treeward.stats.intervals import Difference, by_group, holm
from treeward.stats.tables import JUDGE, Comparison, Table

ERRORS = 4.0
"""Standard errors that k1 may lie from the Rao-Blackwellised KL; 3 would break one sound run in 370, 4 in 16,000."""
ROUNDING = 1e-4
"""Nats by which the two may differ in fp32 whatever their spread."""
RISES = {
    "repetition": (0.2, "rise of the share of repeated 4-grams, at least"),
    "start_nll": (math.log(4), "rise of the samples' NLL under the start, nats a token, at least"),
    "kl_token": (2.0, "KL(policy, start), nats a token, at least"),
}
"""How far these may rise with their whole interval: four times the perplexity; a KL that a change of taste, such as the
0.5 of the film reviews' furthest run (docs/on-policy-pairs.md), does not come near."""
DISTINCT = 0.5
"""The share of the start's distinct bigrams that may be lost with the whole interval."""

OPPOSITE = 1e-4
"""p below which an accuracy is clearly on one side of one half: on both parts by chance in less than 1 of 10^8 runs."""

CUT = 0.8
"""Share of the first samples without an end above which they say more of the limit than of the policy."""


def k1_check(table: Table, temperature: float) -> Check:
    """F34: both estimates of KL(policy, start) on these samples have one expectation; errors clustered by prompt.

    With few prompts the limit is that of the t distribution at the probability of as many normal errors. At another
    temperature than 1 the samples are not the policy's and nothing follows.
    """
    name, guards = "standard errors between k1 and the Rao-Blackwellised KL", ("F31", "F34")
    if temperature != 1:
        return Check("F34", name, None, guards, "after", detail="sampled at another temperature than 1")
    gap = by_group(table.columns["k1"] - table.columns["kl"], table.groups)
    if len(gap) < 2:
        return Check("F34", name, None, guards, "after", detail="one prompt has no standard error")
    error = float(gap.std(ddof=1)) / math.sqrt(len(gap))
    limit = float(stats.t.isf(stats.norm.sf(ERRORS), len(gap) - 1))
    mean = float(gap.mean())
    apart = 0.0 if abs(mean) <= ROUNDING else abs(mean) / max(error, 1e-12)
    k1, kl = (float(np.mean(by_group(table.columns[c], table.groups))) for c in ("k1", "kl"))
    detail = f"k1 {k1:.4g}, Rao-Blackwellised {kl:.4g} nats a response, n={len(gap)}"
    return Check("F34", name, apart <= limit, guards, "after", apart, limit, detail)


def first_rollout(scores: Sequence[Sequence[float]], texts: Sequence[str]) -> Check:
    """I17: of the first prompts, those whose samples' scores differ; without any there is nothing to learn from.

    `scores` holds one row a prompt; `texts` are some samples to show.
    """
    telling = sum(max(row) > min(row) for row in scores)
    detail = ""
    if not telling:
        low, middle, high = np.quantile([score for row in scores for score in row], (0, 0.5, 1))
        shown = ", ".join(repr(text[:40]) for text in texts[:3])
        detail = f"scores {low:.3g} to {high:.3g}, median {middle:.3g}; samples {shown}; look at the scorer"
    name = f"prompts of the first {len(scores)} whose samples differ in score"
    return Check("I17", name, telling > 0, ("F29",), "before", telling, 1, detail)


def first_cut(ended: Sequence[bool], limit: int) -> Check:
    """I17: of the first samples, the share that has no end within `limit` tokens; answers that end can be compared."""
    share = 1 - sum(ended) / len(ended)
    mend = "; raise max_new_tokens, or use a policy that ends its answers" if share > CUT else ""
    detail = f"{len(ended) - sum(ended)} of {len(ended)} samples have no end within max_new_tokens {limit}{mend}"
    return below("I17", "share of the first samples that are cut", share, CUT, ["F30"], detail=detail)


def judge_guards(comparisons: Sequence[Comparison]) -> list[Check]:
    """F32, one a judge: the main metric, which stands first, did not improve while the judge fell, both intervals clear
    of zero, the judges' p values corrected for their number (Holm 1979), so that unchanged judges seldom fall.
    """
    main, *others = comparisons
    judges = [judge for judge in others if judge.metric.name.startswith(JUDGE)]
    corrected = holm([judge.difference.p for judge in judges])
    return [_guard(main, judge, p, len(judges)) for judge, p in zip(judges, corrected, strict=True)]


def labels_check(held_out: Difference, training: Difference) -> Check:
    """F05: the accuracy is not clearly below one half on the held-out part and clearly above it on the training part.

    Both are differences to one half. Labels that are reversed throughout would be learned; only labels that are
    reversed in one of the parts put them on opposite sides.
    """
    fell = clearly_below_half(held_out) and training.value > 0 and training.p < OPPOSITE
    detail = (
        f"accuracy {0.5 + held_out.value:.3g} held out (p={held_out.p:.2g}), {0.5 + training.value:.3g} on the "
        f"training part (p={training.p:.2g})"
    )
    more = "; the labels or their order are reversed in one of the parts: look at both" if fell else ""
    return Check("F05", "both parts on one side of one half", not fell, ("F05",), "after", None, None, detail + more)


def clearly_below_half(accuracy: Difference) -> bool:
    """Whether an accuracy's difference to one half is negative beyond any doubt of chance."""
    return accuracy.value < 0 and accuracy.p < OPPOSITE


def collapse_guards(comparisons: Sequence[Comparison], diversity: Mapping[str, Any], random_start: bool) -> list[Check]:
    """F24, judge or not: fresh samples did not turn into repetition, into word salad, or into one text.

    Each figure's whole interval must lie past its limit (`RISES`, `DISTINCT`) for the guard to fall. A start of random
    weights has nothing to fall from; and where held-out likelihood is the main metric, which stands first, a policy is
    asked to leave the start for other text, and none of these can buy it.

    `diversity` is what `evaluation.versus.facts` says under that name.
    """
    if random_start or comparisons[0].metric.name == "nll":
        return []
    rose = {c.metric.name: c.difference.low for c in comparisons}
    found = [_collapse(name, rose[column], limit) for column, (limit, name) in RISES.items() if column in rose]
    bigrams = diversity["distinct_2"]
    lost = -bigrams["difference"]["high"] / max(bigrams["before"]["value"], 1e-12)
    return [*found, _collapse("share of the start's distinct bigrams that is lost, at least", lost, DISTINCT)]


def _collapse(name: str, least: float, limit: float) -> Check:
    fell = least > limit
    mend = "look at the samples; train less, raise beta, or mend the reward" if fell else ""
    return Check("F24", name, not fell, ("F24", "F32"), "after", least, limit, mend)


def _guard(main: Comparison, judge: Comparison, p: float, judges: int) -> Check:
    fell = main.outcome == "improved" and judge.outcome == "worse" and p < 0.05
    about = f"no judge falls while {main.metric.name} improves: {judge.metric.name.removeprefix(JUDGE)}"
    changes = ", ".join(
        f"{who} {found.difference.value:+.3g} [{found.difference.low:+.3g}, {found.difference.high:+.3g}]"
        for who, found in ((main.metric.name, main), ("judge", judge))
    )
    changes += f"; p={p:.2g}" + (f", Holm's p over {judges} judges" if judges > 1 else "")
    more = "; train less, raise beta, or mend the reward" if fell else ""
    return Check("F32", about, not fell, ("F24", "F32"), "after", judge.difference.value, None, changes + more)
