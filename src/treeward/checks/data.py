"""Checks of the data, before the first step: what was lost, what leaks, what cannot be learned from or measured."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from treeward.checks.check import Check, below
from treeward.data.formats import JUDGED
from treeward.data.prepare import COMPARED, IDENTICAL, NO_FAULT, REPEATED, Prepared, VerdictPart
from treeward.data.render import Account, closing_id, opening_id, template_faults
from treeward.data.shapes import Purpose
from treeward.data.splits import Part
from treeward.models import vocabulary
from treeward.models.loading import ModelConfig
from treeward.stats.intervals import POWER, Z
from treeward.trees.tokens import Tokenizer, TokenTree, decode

GAP = 0.1
"""Median gap of the ratings of a pair, in standard deviations of all ratings, below which it is noise."""
ERRORS = 5.0
"""Standard errors by which a part's share may miss the one asked for; one sound run in a million misses it by more."""
GROUPS = 30
"""Fewer held-out groups than this cannot carry an interval."""


def data_checks(data: Prepared, tokenizer: Tokenizer, embedding_rows: int, purpose: Purpose) -> list[Check]:
    """All checks that need no model pass."""
    everything = [tree for part in data.parts.values() for tree in part]
    found = [
        _ends(data),
        *_tokens(everything, tokenizer, embedding_rows),
        _template(tokenizer),
        _overlap(data),
        *_shares(data),
        _dropped(data),
    ]
    if purpose == "unpaired":
        found.append(_labels(data))
    if purpose in JUDGED:
        found += _made(data, everything, tokenizer, purpose)
    compared = [tree for tree in everything if len(tree.branches) > 1]
    return [*found, *_compared(data, compared)] if purpose in COMPARED and compared else found


def vocabulary_checks(config: ModelConfig, tokenizer: Tokenizer, module: Any) -> list[Check]:
    """F09: the tokenizer is the model's own, by its tokens, the configuration's special ids and its size."""
    return [
        below("F09", finding.name, finding.count, finding.limit, ["F09"], detail=finding.detail)
        for finding in vocabulary.compare(config, tokenizer, module)
    ]


def _ends(data: Prepared) -> Check:
    account = data.account
    open_ends = 1 - account.ended / account.responses if account.responses else 0.0
    detail = f"{account.responses} whole responses"
    return below("F02", "share of uncut responses without a scored end token", open_ends, 0.01, ["F02"], detail=detail)


def _tokens(trees: Sequence[TokenTree], tokenizer: Tokenizer, embedding_rows: int) -> list[Check]:
    largest = max((max(tree.prompt + sum(tree.branches, ())) for tree in trees), default=0)
    bos = tokenizer.bos_token_id
    doubled = [
        tree for tree in trees
        if bos is not None and bos != tokenizer.eos_token_id and tree.prompt[:2] == (bos, bos)
    ]  # fmt: skip
    unscored = sum(not branch for tree in trees for branch in tree.branches)
    shown = decode(doubled[0].prompt[:8], tokenizer) if doubled else ""
    return [
        below("I01", "responses without a scored token", unscored, 0, ["F03", "F12"]),
        below("I16", "prompts that open with two BOS", len(doubled), 0, ["F01"], detail=shown),
        below("F09", "largest token id, against the embedding rows", largest, embedding_rows - 1, ["F09"]),
    ]


def _template(tokenizer: Tokenizer) -> Check:
    error, remark = template_faults(tokenizer)
    detail = error or (f"the template rewrites the response: {remark}" if remark else "")
    return Check("F01", "the generation prompt begins the template's dialogue", error is None, ("F01",), detail=detail)


def _overlap(data: Prepared) -> Check:
    """F04, by the texts before they were paired; of data that was prepared earlier, by its trees."""
    leaked, examples = data.account.leaked, data.account.leaks
    if not leaked:
        held_out = [tree.group for part in ("validation", "test") for tree in data.parts[part]]
        groups = {tree.group for tree in data.train} & set(held_out)
        examples = sorted(groups)[:3]
        leaked = Counter({
            "groups": len(groups), "training": sum(tree.group in groups for tree in data.train),
            "held out": sum(group in groups for group in held_out), "of held out": len(held_out),
        })  # fmt: skip
    detail = ""
    if leaked["groups"]:
        share = leaked["held out"] / max(1, leaked["of held out"])
        shown = "; ".join(repr(group[:60]) for group in examples)
        detail = (
            f"{leaked['held out']} of {leaked['of held out']} held-out examples ({share:.1%}), such as {shown}; split "
            f"all rows anew with --data.splits ignore, or drop the {leaked['training']} training examples of these "
            "groups with --data.leaks drop"
        )
    return below("F04", "groups both in training and held out", leaked["groups"], 0, ["F04", "F50"], detail=detail)


def _shares(data: Prepared) -> list[Check]:
    """F63: whether the groups that fell into a part by chance are as many as chance gives."""
    if data.placed is None:
        return []
    groups, total = data.placed.groups, data.placed.groups.total()
    return [_shares_check(groups, {part: (share, total) for part, share in data.placed.shares.items()}, math.inf)]


def selection_check(before: Mapping[Part, int], after: Mapping[Part, int]) -> Check:
    """F63: whether a selection took examples from each part in proportion. `before` and `after` count examples by part.

    The count of a part after a selection of n out of N, K of them in the part, is hypergeometric under a fair choice:
    mean n K / N, variance n (K / N) (1 - K / N) (N - n) / (N - 1).
    """
    pool, taken = sum(before.values()), sum(after.values())
    return _shares_check(after, {part: (count / pool, taken) for part, count in before.items()}, pool)


def _shares_check(counts: Mapping[Part, int], asked: Mapping[Part, tuple[float, int]], pool: float) -> Check:
    """Counts by part against (share, number drawn) by part; `pool` is what was drawn from."""
    worst, detail = 0.0, ""
    for part, (share, n) in asked.items():
        spread = math.sqrt(n * share * (1 - share) * (1.0 if math.isinf(pool) else (pool - n) / max(1, pool - 1)))
        off = abs(counts.get(part, 0) - n * share)
        errors = off / spread if spread else 0.0
        if errors > worst:
            worst = errors
            detail = f"{part} has {counts.get(part, 0)} of {n}, where {share:.1%} were asked for"
    fix = "; the examples were chosen by the hash that splits them: choose them another way, or set another data.seed"
    name = "shares of the parts against those asked for, in standard errors"
    return below("F63", name, worst, ERRORS, ["F63"], detail=detail + fix if worst > ERRORS else "")


def _dropped(data: Prepared) -> Check:
    account = data.account
    faults = Counter({reason: n for reason, n in account.dropped.items() if reason not in NO_FAULT and n})
    share = faults.total() / max(1, account.rows)
    detail = f"{account}; {_advice(account, faults)}" if share > 0.05 else str(account)
    return below("F10", "share of rows dropped", share, 0.05, ["F10"], detail=detail)


def _advice(account: Account, faults: Counter[str]) -> str:
    """What to do about the most frequent reason for which rows were dropped."""
    (reason, n), *_ = faults.most_common(1)
    if reason == IDENTICAL:
        middle, most, longest = (account.response_length(share) for share in (0.5, 0.95, 1.0))
        cure = (
            f"responses have {middle} tokens at the median, {most} at 95 % and {longest} at most: --data.max_response "
            f"{most} keeps 95 % of them whole"
        )
    else:
        cure = CURES.get(reason, "look at these rows with `treeward inspect`")
    return f"{n} rows have: {reason}; {cure}; or accept the loss with --skip-check F10"


CURES = {
    "empty response": "give these rows a response, or take them out",
    "empty prompt": "give these rows a prompt, or take them out",
    "identical pair": "take out the pairs whose two sides are equal",
    "prompts differ": "the two sides of a pair answer different prompts: take these rows out",
    "without a winner": "fill in the winner's column, or take these rows out",
    "without a rating": "rate these responses, or take them out",
    "one response alone": "a comparison needs two rated responses to a prompt; ratings alone teach --loss.kind graded",
}
"""What to do about rows that are dropped, by the reason."""


def enough_groups(data: Prepared, used: int) -> Check:
    """F48: the verdict uses at least `GROUPS` groups of the held-out ones; `used` is how many.

    With n groups a paired difference of (1.96 + 0.84) / sqrt(n) standard deviations is seen with a power of 80 %.
    """
    groups, detail = len({tree.group for tree in data.held_out}), ""
    if used < GROUPS:
        shows = f"{used} show only differences above {(Z + POWER) / max(used, 1) ** 0.5:.2g} standard deviations"
        mends = ["raise evaluation.prompts"] if used < groups else []
        if groups < GROUPS:
            mends.append(_MORE_GROUPS[data.verdict_on])
        detail = f"{shows}; {' and '.join(mends)}, or accept with --skip-check F48"
    name = "groups that the verdict uses"
    return Check("F48", name, used >= GROUPS, ("F48", "F50"), "before", used, GROUPS, detail)


_MORE_GROUPS: dict[VerdictPart, str] = {
    "test": "raise data.test or data.limit",
    "validation": "raise data.validation or data.limit",
    "half of validation": "raise data.validation, or set data.test (one half of the validation groups chooses the "
    "checkpoint)",
}


def _labels(data: Prepared) -> Check:
    parts = {part: data.parts[part] for part in ("validation", "test") if data.parts[part]}
    bare = [part for part, trees in parts.items() if not _comparable(trees)]
    detail = f"{', '.join(bare)}; raise data.validation and data.test, or mix the rows" if bare else ""
    return below("F50", "held-out parts without both labels", len(bare), 0, ["F50"], detail=detail)


def _comparable(trees: Sequence[TokenTree]) -> bool:
    return any(len(tree.branches) > 1 for tree in trees) or {(0.0,), (1.0,)} <= {tree.grades for tree in trees}


def _compared(data: Prepared, trees: Sequence[TokenTree]) -> list[Check]:
    """Pairs and rankings, better branches first; a comparison is a branch with the one before it."""
    account = data.account
    same = sum(len(set(tree.branches)) < len(tree.branches) for tree in trees)
    kept, comparisons = len(trees), sum(len(tree.branches) - 1 for tree in trees)
    gone = account.dropped[IDENTICAL] + account.cut[IDENTICAL]
    by_budget = gone / (comparisons + gone)
    in_data = (account.dropped["identical pair"] + account.cut[REPEATED]) / max(account.rows, comparisons)
    cut = [account.cut[f"response {place}"] / kept for place in range(min(len(tree.branches) for tree in trees))]
    ordered = {(tree.prompt, sides) for tree in trees for sides in combinations(tree.branches, 2)}
    both_ways = sum((prompt, sides[::-1]) in ordered for prompt, sides in ordered) // 2
    wrong = sum(bool(tree.ratings) and list(tree.grades) != sorted(tree.grades, reverse=True) for tree in trees) / kept
    return [
        below("F11", "pairs and rankings with identical branches left in", same, 0, ["F11"]),
        below("F11", "share of comparisons made identical by truncation", by_budget, 0.01, ["F11"],
              detail="raise data.max_response" if by_budget > 0.01 else ""),
        below("F11", "share of comparisons identical in the data", in_data, 0.05, ["F11"]),
        below("F13", "cut chosen against cut rejected, difference of shares", max(cut) - min(cut), 0.05, ["F13"]),
        below("F04", "pairs present in both orders", both_ways, 0, ["F04"]),
        below("F05", "share of pairs whose ratings contradict their order", wrong, 0.01, ["F05"]),
    ]  # fmt: skip


def _made(data: Prepared, trees: Sequence[TokenTree], tokenizer: Tokenizer, purpose: Purpose) -> list[Check]:
    """F08: the ways in which preferences made of samples are known to be malformed."""
    texts = [tree for part in data.texts.values() for tree in part]
    said = [(tree.prompt.strip(), r.text) for tree in texts if isinstance(tree.prompt, str) for r in tree.responses]
    echoes = [(prompt, text) for prompt, text in said if _echoes(prompt, text.strip())]
    responses = max(1, sum(len(tree.responses) for tree in texts))
    starts = ((opening_id(tokenizer),), (closing_id(tokenizer),))
    bare = 0 if data.format == "text" else sum(tree.prompt in starts for tree in trees)
    shown = f"{echoes[0][1][:60]!r} after {echoes[0][0][:60]!r}; give the response alone" if echoes else ""
    found = [
        below("F08", "share of responses that begin with their prompt", len(echoes) / responses, 0.01, ["F08"],
              detail=shown),
        below("F08", "share of prompts of the start token alone", bare / max(1, len(trees)), 0.01, ["F08"]),
    ]  # fmt: skip
    if purpose in ("pairs", "ranked") and trees and all(tree.ratings for tree in trees):
        gaps = [tree.grades[0] - tree.grades[-1] for tree in trees]
        spread = float(np.std([grade for tree in trees for grade in tree.grades]))
        gap = float(np.median(gaps)) / max(spread, 1e-12)
        detail = (
            "" if gap >= GAP else "the scores hardly tell the sides apart: ask for a larger min_gap, or more samples"
        )
        found.append(
            Check("F08", "median gap of the ratings, in their sd", gap >= GAP, ("F08",), "before", gap, GAP, detail)
        )
    return found


def _echoes(prompt: str, text: str) -> bool:
    """Whether the text begins with all words of its prompt; one word alone may well begin both."""
    ends = not (prompt[-1:].isalnum() and text[len(prompt) : len(prompt) + 1].isalnum())
    return len(prompt.split()) > 1 and text.startswith(prompt) and ends
