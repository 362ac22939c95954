"""Guards of fresh samples: is the KL that of this text, and did a judge fall while the score rose?

A fallen guard makes a run `worse`, not `broken`: it was trained as asked, and what was asked for is not good.
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

from treeward.evaluation.tables import JUDGE, Comparison, Table
from treeward.maths.statistics import by_group
from treeward.proof.checks import Check, below

ERRORS = 4.0
"""Standard errors that k1 may lie from the Rao-Blackwellised KL; 3 would break one sound run in 370, 4 in 16,000."""
ROUNDING = 1e-4
"""Nats by which the two may differ in fp32 whatever their spread."""

CUT = 0.8
"""Share of the first samples without an end above which they say more of the limit than of the policy."""


def k1_check(table: Table, temperature: float) -> Check:
    """F34: both estimates of KL(policy, start) on these samples have one expectation; errors clustered by prompt.

    With few prompts the limit is that of the t distribution at the probability of as many normal errors. At another
    temperature than 1 the samples are not the policy's and nothing follows.
    """
    name, guards = "standard errors between k1 and the Rao-Blackwellised KL", ("F31", "F34")
    gap = by_group(table.columns["k1"] - table.columns["kl"], table.groups)
    if len(gap) < 2 or temperature != 1:
        why = "sampled at another temperature than 1" if temperature != 1 else "one prompt has no standard error"
        return Check("F34", name, None, guards, "after", detail=why)
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
    """F32, one a judge: the score did not rise while the judge fell, both intervals clear of zero."""
    every = {found.metric.name: found for found in comparisons}
    score = every.get("score")
    found = []
    for name, judge in every.items():
        if name.startswith(JUDGE):
            fell = score is not None and score.outcome == "improved" and judge.outcome == "worse"
            found.append(_guard(name.removeprefix(JUDGE), score, judge, fell))
    return found


def _guard(name: str, score: Comparison | None, judge: Comparison, fell: bool) -> Check:
    about = f"no judge falls while the score rises: {name}"
    if score is None:
        return Check("F32", about, None, ("F24", "F32"), "after", detail="no evaluation.scorer was named")
    changes = ", ".join(
        f"{who} {found.difference.value:+.3g} [{found.difference.low:+.3g}, {found.difference.high:+.3g}]"
        for who, found in (("score", score), ("judge", judge))
    )
    more = "; train less, raise beta, or mend the reward" if fell else ""
    return Check("F32", about, not fell, ("F24", "F32"), "after", judge.difference.value, None, changes + more)
