"""Checks of the data, before the first step: what was lost, what leaks, what cannot be learned from or measured."""

from collections.abc import Sequence

import numpy as np

from treeward.data.prepare import Prepared
from treeward.data.render import Tokenizer, decode, template_faults
from treeward.data.shapes import Purpose
from treeward.proof.checks import Check, below
from treeward.trees.tokens import TokenTree

GAP = 0.1
"""Median gap of the ratings of a pair, in standard deviations of all ratings, below which it is noise."""
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
        _dropped(data),
        _groups(data),
    ]
    if purpose == "unpaired":
        found.append(_labels(data))
    return [*found, *_pairs(data, everything), *_made(data, everything)] if purpose == "pairs" else found


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
    train = {tree.group for tree in data.train}
    leaked = sorted({tree.group for part in ("validation", "test") for tree in data.parts[part]} & train)
    detail = "; ".join(repr(group[:60]) for group in leaked[:3])
    return below("F04", "groups both in training and held out", len(leaked), 0, ["F04", "F50"], detail=detail)


def _dropped(data: Prepared) -> Check:
    account = data.account
    share = sum(account.dropped.values()) / max(1, account.rows)
    mend = "raise data.max_prompt or data.max_response, or accept with --skip-check F10" if share > 0.05 else ""
    return below("F10", "share of rows dropped", share, 0.05, ["F10"], detail=f"{account}; {mend}".rstrip("; "))


def _groups(data: Prepared) -> Check:
    groups = len({tree.group for tree in data.held_out})
    detail = (
        f"{groups} groups; raise data.test or data.limit, or accept with --skip-check F48" if groups < GROUPS else ""
    )
    return Check("F48", "held-out groups", groups >= GROUPS, ("F48", "F50"), "before", groups, GROUPS, detail)


def _labels(data: Prepared) -> Check:
    parts = {part: data.parts[part] for part in ("validation", "test") if data.parts[part]}
    bare = [part for part, trees in parts.items() if not _comparable(trees)]
    detail = f"{', '.join(bare)}; raise data.validation and data.test, or mix the rows" if bare else ""
    return below("F50", "held-out parts without both labels", len(bare), 0, ["F50"], detail=detail)


def _comparable(trees: Sequence[TokenTree]) -> bool:
    return any(len(tree.branches) > 1 for tree in trees) or {(0.0,), (1.0,)} <= {tree.grades for tree in trees}


def _pairs(data: Prepared, trees: Sequence[TokenTree]) -> list[Check]:
    account = data.account
    same = sum(tree.branches[0] == tree.branches[1] for tree in trees)
    kept = max(1, len(trees))
    by_budget = account.dropped["identical after truncation"] / (kept + account.dropped["identical after truncation"])
    in_data = account.dropped["identical pair"] / max(1, account.rows)
    cut = [account.cut[f"response {side}"] / kept for side in (0, 1)]
    swapped = {(tree.prompt, tree.branches) for tree in trees}
    both_ways = sum((tree.prompt, tree.branches[::-1]) in swapped for tree in trees) // 2
    wrong = sum(bool(tree.ratings) and tree.grades[0] < tree.grades[1] for tree in trees) / kept
    return [
        below("F11", "identical pairs left in", same, 0, ["F11"]),
        below("F11", "share of pairs made identical by truncation", by_budget, 0.01, ["F11"],
              detail="raise data.max_response" if by_budget > 0.01 else ""),
        below("F11", "share of pairs identical in the data", in_data, 0.05, ["F11"]),
        below("F13", "cut chosen against cut rejected, difference of shares", abs(cut[0] - cut[1]), 0.05, ["F13"]),
        below("F04", "pairs present in both orders", both_ways, 0, ["F04"]),
        below("F05", "share of pairs whose ratings contradict their order", wrong, 0.01, ["F05"]),
    ]  # fmt: skip


def _made(data: Prepared, trees: Sequence[TokenTree]) -> list[Check]:
    """F08: the ways in which pairs made of samples are known to be malformed."""
    texts = [tree for part in data.texts.values() for tree in part]
    said = [(tree.prompt.strip(), r.text) for tree in texts if isinstance(tree.prompt, str) for r in tree.responses]
    echoes = [(prompt, text) for prompt, text in said if prompt and text.strip().startswith(prompt)]
    responses = max(1, sum(len(tree.responses) for tree in texts))
    bare = 0 if data.format == "text" else sum(len(tree.prompt) == 1 for tree in trees)
    shown = f"{echoes[0][1][:60]!r} after {echoes[0][0][:60]!r}; give the response alone" if echoes else ""
    found = [
        below("F08", "share of responses that begin with their prompt", len(echoes) / responses, 0.01, ["F08"],
              detail=shown),
        below("F08", "share of prompts of one token", bare / max(1, len(trees)), 0.01, ["F08"]),
    ]  # fmt: skip
    if trees and all(tree.ratings for tree in trees):
        grades = np.array([tree.grades for tree in trees])
        gap = float(np.median(grades[:, 0] - grades[:, 1]) / max(float(grades.std()), 1e-12))
        detail = (
            "" if gap >= GAP else "the scores hardly tell the sides apart: ask for a larger min_gap, or more samples"
        )
        found.append(
            Check("F08", "median gap of the ratings, in their sd", gap >= GAP, ("F08",), "before", gap, GAP, detail)
        )
    return found
