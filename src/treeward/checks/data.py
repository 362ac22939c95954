"""Checks of the data before the first step: rows lost, leaks between splits, and data that cannot be learned from."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from treeward.checks.check import Check, below, result
from treeward.data.account import Account
from treeward.data.formats import PREFERENCE_PURPOSES, Purpose
from treeward.data.prepare import COMPARED, IDENTICAL, NO_FAULT, REPEATED
from treeward.data.render import closing_id, opening_id, template_faults
from treeward.data.splits import Part
from treeward.data.store import Prepared, VerdictPart
from treeward.models import vocabulary
from treeward.models.loading import ModelConfig
from treeward.stats.intervals import POWER, Z
from treeward.trees.tokens import Tokenizer, TokenTree, decode

MIN_GAP = 0.1
"""Least median difference of the ratings of a pair, in standard deviations of all ratings; below it is noise."""
MAX_STANDARD_ERRORS = 5.0
"""How far the share of a part may be from the requested one. By chance, one run in a million exceeds it."""
MIN_GROUPS = 30
"""Least number of held-out groups for an interval."""
MAX_DROPPED = 0.05
"""Largest share of rows that may be dropped."""
MAX_CUT_TO_IDENTICAL = 0.01
"""Largest share of comparisons that truncation may make identical."""


def data_checks(data: Prepared, tokenizer: Tokenizer, embedding_rows: int, purpose: Purpose) -> list[Check]:
    """All checks of the data that need no forward pass of a model.

    Args:
        data: the trees of each part and the account of dropped rows.
        tokenizer: the tokenizer that rendered them.
        embedding_rows: number of rows of the model's embedding.
        purpose: what the data is prepared for, such as "pairs".
    """
    trees = [tree for part in data.parts.values() for tree in part]
    compared = [tree for tree in trees if len(tree.branches) > 1]
    return [
        _responses_end(data),
        *_token_checks(trees, tokenizer, embedding_rows),
        _template(tokenizer),
        _splits_disjoint(data),
        *_split_shares(data),
        _rows_kept(data),
        *([_both_labels(data)] if purpose == "unpaired" else []),
        *(_preference_checks(data, trees, tokenizer, purpose) if purpose in PREFERENCE_PURPOSES else []),
        *(_comparison_checks(data, compared) if purpose in COMPARED and compared else []),
    ]


def vocabulary_checks(config: ModelConfig, tokenizer: Tokenizer, module: Any) -> list[Check]:
    """Whether the tokenizer is the model's own: its tokens, its special ids and its size, one check each."""
    return [
        below("tokenizer-matches-model", finding.count, finding.limit, detail=f"{finding.name}; {finding.detail}")
        for finding in vocabulary.compare(config, tokenizer, module)
    ]


def _responses_end(data: Prepared) -> Check:
    account = data.account
    open_share = 1 - account.ended / account.responses if account.responses else 0.0
    return below("responses-end", open_share, 0.01, detail=f"{account.responses} complete responses")


def _token_checks(trees: Sequence[TokenTree], tokenizer: Tokenizer, embedding_rows: int) -> list[Check]:
    largest = max((max(tree.prompt + sum(tree.branches, ())) for tree in trees), default=0)
    bos = tokenizer.bos_token_id
    has_own_bos = bos is not None and bos != tokenizer.eos_token_id
    doubled = [tree for tree in trees if has_own_bos and tree.prompt[:2] == (bos, bos)]
    unscored = sum(not branch for tree in trees for branch in tree.branches)
    example = decode(doubled[0].prompt[:8], tokenizer) if doubled else ""
    return [
        below("responses-have-tokens", unscored, 0),
        below("single-bos", len(doubled), 0, detail=example),
        below("token-ids-in-embedding", largest, embedding_rows - 1),
    ]


def _template(tokenizer: Tokenizer) -> Check:
    error, remark = template_faults(tokenizer)
    detail = error or (f"the template rewrites the response: {remark}" if remark else "")
    return result("template-starts-with-prompt", passed=error is None, detail=detail)


def _splits_disjoint(data: Prepared) -> Check:
    """Groups that are in two parts: counted before texts were paired, or in the trees of data prepared earlier."""
    leaked, examples = data.account.leaked, data.account.leaks
    if not leaked:
        held_out = [tree.group for part in ("validation", "test") for tree in data.parts[part]]
        shared = {tree.group for tree in data.train} & set(held_out)
        examples = sorted(shared)[:3]
        leaked = Counter(
            {
                "groups": len(shared),
                "training": sum(tree.group in shared for tree in data.train),
                "held out": sum(group in shared for group in held_out),
                "of held out": len(held_out),
            }
        )
    if not leaked["groups"]:
        return below("splits-disjoint", 0, 0)
    share = leaked["held out"] / max(1, leaked["of held out"])
    shown = "; ".join(repr(group[:60]) for group in examples)
    return below(
        "splits-disjoint",
        leaked["groups"],
        0,
        detail=f"{leaked['held out']} of {leaked['of held out']} held-out examples ({share:.1%}), such as {shown}",
        fix=f"split all rows again with --data.splits ignore, or drop the {leaked['training']} training examples of "
        "these groups with --data.leaks drop",
    )


def _split_shares(data: Prepared) -> list[Check]:
    """Whether the groups that were assigned to parts by hash have the requested shares."""
    if data.placed is None:
        return []
    groups, total = data.placed.groups, data.placed.groups.total()
    requested = {part: (share, total) for part, share in data.placed.shares.items()}
    return [_shares_check(groups, requested, math.inf)]


def selection_check(before: Mapping[Part, int], after: Mapping[Part, int]) -> Check:
    """Whether a selection took examples from each part in proportion.

    After a fair selection of n out of N, of which K are in a part, the part's count is hypergeometric: mean n K / N,
    variance n (K / N) (1 - K / N) (N - n) / (N - 1).

    Args:
        before: number of examples in each part before the selection.
        after: number of selected examples in each part.
    """
    pool, selected = sum(before.values()), sum(after.values())
    return _shares_check(after, {part: (count / pool, selected) for part, count in before.items()}, pool)


def _shares_check(counts: Mapping[Part, int], requested: Mapping[Part, tuple[float, int]], pool: float) -> Check:
    """Counts by part against (share, number drawn) by part; `pool` is the number that was drawn from."""
    worst, detail = 0.0, ""
    for part, (share, n) in requested.items():
        without_replacement = 1.0 if math.isinf(pool) else (pool - n) / max(1, pool - 1)
        deviation = math.sqrt(n * share * (1 - share) * without_replacement)
        difference = abs(counts.get(part, 0) - n * share)
        errors = difference / deviation if deviation else 0.0
        if errors > worst:
            worst = errors
            detail = f"{part} has {counts.get(part, 0)} of {n}, but the requested share is {share:.1%}"
    return below(
        "split-shares",
        worst,
        MAX_STANDARD_ERRORS,
        detail=detail if worst > MAX_STANDARD_ERRORS else "",
        fix="the examples were selected by the hash that splits them: select them in another way, or set another "
        "data.seed",
    )


def _rows_kept(data: Prepared) -> Check:
    account = data.account
    faults = Counter({reason: n for reason, n in account.dropped.items() if reason not in NO_FAULT and n})
    share = faults.total() / max(1, account.rows)
    fix = _fix_for_dropped(account, faults) if share > MAX_DROPPED else ""
    return below("rows-kept", share, MAX_DROPPED, detail=str(account), fix=fix)


def _fix_for_dropped(account: Account, faults: Counter[str]) -> str:
    """What to do about the most frequent reason for which rows were dropped."""
    (reason, n), *_ = faults.most_common(1)
    if reason == IDENTICAL:
        middle, most, longest = (account.response_length(share) for share in (0.5, 0.95, 1.0))
        fix = (
            f"responses have {middle} tokens at the median, {most} at 95 % and {longest} at most: --data.max_response "
            f"{most} keeps 95 % of them complete"
        )
    else:
        fix = FIXES.get(reason, "look at these rows with `treeward inspect`")
    return f"{n} rows have: {reason}; {fix}; or accept the loss with --skip-check rows-kept"


FIXES = {
    "empty response": "give these rows a response, or take them out",
    "empty prompt": "give these rows a prompt, or take them out",
    "identical pair": "take out the pairs whose two sides are equal",
    "prompts differ": "the two sides of a pair answer different prompts: take these rows out",
    "without a winner": "fill in the winner's column, or take these rows out",
    "without a rating": "rate these responses, or take them out",
    "one response alone": "a comparison needs two rated responses to a prompt; single ones need --loss.kind graded",
}
"""What to do about dropped rows, by the reason."""


def enough_groups(data: Prepared, used: int) -> Check:
    """Whether the verdict is measured on at least `MIN_GROUPS` held-out groups; `used` is how many.

    With n groups, a paired difference of (1.96 + 0.84) / sqrt(n) standard deviations is detected with a power of 80 %.
    """
    if used >= MIN_GROUPS:
        return result("enough-groups", passed=True, value=used, limit=MIN_GROUPS)
    groups = len({tree.group for tree in data.held_out})
    fixes = ["raise evaluation.prompts"] if used < groups else []
    if groups < MIN_GROUPS:
        fixes.append(_MORE_GROUPS[data.verdict_on])
    return result(
        "enough-groups",
        passed=False,
        value=used,
        limit=MIN_GROUPS,
        detail=f"{used} show only differences above {(Z + POWER) / max(used, 1) ** 0.5:.2g} standard deviations",
        fix=f"{' and '.join(fixes)}, or accept with --skip-check enough-groups",
    )


_MORE_GROUPS: dict[VerdictPart, str] = {
    "test": "raise data.test or data.limit",
    "validation": "raise data.validation or data.limit",
    "half of validation": "raise data.validation, or set data.test (one half of the validation groups chooses the "
    "checkpoint)",
}


def _both_labels(data: Prepared) -> Check:
    parts = {part: data.parts[part] for part in ("validation", "test") if data.parts[part]}
    one_label = [part for part, trees in parts.items() if not _has_both_labels(trees)]
    fix = "raise data.validation and data.test, or mix the rows"
    return below("both-labels-held-out", len(one_label), 0, detail=", ".join(one_label), fix=fix)


def _has_both_labels(trees: Sequence[TokenTree]) -> bool:
    return any(len(tree.branches) > 1 for tree in trees) or {(0.0,), (1.0,)} <= {tree.grades for tree in trees}


def _comparison_checks(data: Prepared, trees: Sequence[TokenTree]) -> list[Check]:
    """Checks of pairs and rankings, better branches first; one comparison is a branch and the branch before it."""
    account = data.account
    identical = sum(len(set(tree.branches)) < len(tree.branches) for tree in trees)
    count, comparisons = len(trees), sum(len(tree.branches) - 1 for tree in trees)
    made_identical = account.dropped[IDENTICAL] + account.cut[IDENTICAL]
    identical_in_data = account.dropped["identical pair"] + account.cut[REPEATED]
    places = range(min(len(tree.branches) for tree in trees))
    cut_shares = [account.cut[f"response {place}"] / count for place in places]
    ordered = {(tree.prompt, sides) for tree in trees for sides in combinations(tree.branches, 2)}
    both_orders = sum((prompt, sides[::-1]) in ordered for prompt, sides in ordered) // 2
    contradicting = sum(bool(tree.ratings) and list(tree.grades) != sorted(tree.grades, reverse=True) for tree in trees)
    return [
        below("branches-differ", identical, 0),
        below("truncation-keeps-differences", made_identical / (comparisons + made_identical), MAX_CUT_TO_IDENTICAL),
        below("data-has-differences", identical_in_data / max(account.rows, comparisons), 0.05),
        below("sides-cut-alike", max(cut_shares) - min(cut_shares), 0.05),
        below("one-order-per-pair", both_orders, 0),
        below("ratings-agree-with-order", contradicting / count, 0.01),
    ]


def _preference_checks(
    data: Prepared, trees: Sequence[TokenTree], tokenizer: Tokenizer, purpose: Purpose
) -> list[Check]:
    """The known ways in which preferences made from samples are malformed."""
    texts = [tree for part in data.texts.values() for tree in part]
    rows = [(tree.prompt.strip(), r.text) for tree in texts if isinstance(tree.prompt, str) for r in tree.responses]
    echoes = [(prompt, text) for prompt, text in rows if _begins_with_prompt(prompt, text.strip())]
    responses = max(1, sum(len(tree.responses) for tree in texts))
    start_tokens = ((opening_id(tokenizer),), (closing_id(tokenizer),))
    empty = 0 if data.format == "text" else sum(tree.prompt in start_tokens for tree in trees)
    example = f"{echoes[0][1][:60]!r} after {echoes[0][0][:60]!r}" if echoes else ""
    checks = [
        below("responses-without-prompt", len(echoes) / responses, 0.01, detail=example),
        below("prompts-not-empty", empty / max(1, len(trees)), 0.01),
    ]
    if purpose in ("pairs", "ranked") and trees and all(tree.ratings for tree in trees):
        gaps = [tree.grades[0] - tree.grades[-1] for tree in trees]
        deviation = float(np.std([grade for tree in trees for grade in tree.grades]))
        gap = float(np.median(gaps)) / max(deviation, 1e-12)
        checks.append(result("rating-gap", passed=gap >= MIN_GAP, value=gap, limit=MIN_GAP))
    return checks


def _begins_with_prompt(prompt: str, text: str) -> bool:
    """Whether the text begins with its prompt. Prompts of one word are ignored: many texts begin with them."""
    ends_at_word = not (prompt[-1:].isalnum() and text[len(prompt) : len(prompt) + 1].isalnum())
    return len(prompt.split()) > 1 and text.startswith(prompt) and ends_at_word
