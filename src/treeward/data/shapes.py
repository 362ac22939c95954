"""Trees as a purpose needs them: pairs, rankings or ratings, from whatever the format gave."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any, Literal

from treeward.data.splits import shuffled
from treeward.errors import UserError
from treeward.trees.text import Response, Tree, beside

Purpose = Literal["pairs", "ranked", "graded", "unpaired", "sft", "prompts"]

UNRANKED = "nothing to rank"
"""Why responses with equal ratings are dropped."""

MADE: dict[Purpose, str] = {
    "pairs": "pairs", "ranked": "rankings", "graded": "rated prompts", "unpaired": "labelled responses and pairs",
    "sft": "responses", "prompts": "prompts",
}  # fmt: skip
"""What rows become, by purpose."""


def shaped(trees: Sequence[Tree], purpose: Purpose, dropped: Counter[str]) -> list[Tree]:
    """Rated trees gathered by prompt and cut to the purpose; what cannot serve it is counted in `dropped`.

    "pairs": two branches, the better rated first; "ranked": all branches, best first; "graded": all that are rated,
    best first; "unpaired": single responses and pairs as they stand.
    """
    if purpose == "unpaired":
        return list(trees)
    gathered = gather(trees)
    if purpose == "graded":
        kept = [tree for tree in gathered if all(response.ratings for response in tree.responses)]
        if len(kept) < len(gathered):
            dropped["without a rating"] += len(gathered) - len(kept)
        return [replace_responses(tree, sorted(tree.responses, key=_mean, reverse=True)) for tree in kept]
    if purpose == "pairs":
        return [pair for tree in gathered for pair in _pairs_of(tree, dropped)]
    return [ranked for tree in gathered if (ranked := _ranked(tree, dropped))]


def gather(trees: Sequence[Tree]) -> list[Tree]:
    """Single rated responses to one prompt as one tree, of their subset if they share it; trees of two and more stand
    as they are.

    Raises:
        UserError: the responses to one prompt have different weights, or ratings of different names.
    """
    found: dict[object, Tree] = {}
    for number, tree in enumerate(trees):
        key = (tree.group, str(tree.prompt)) if len(tree.responses) == 1 else number
        found[key] = _joined(found[key], tree) if key in found else tree
    return list(found.values())


def _joined(tree: Tree, other: Tree) -> Tree:
    if tree.weight != other.weight:
        raise UserError(
            f"column 'weight' is {tree.weight:g} and {other.weight:g} for responses to {tree.group[:60]!r}, which are "
            "judged together; give them one weight"
        )
    if tree.attributes != other.attributes:
        raise UserError(
            f"the responses to {tree.group[:60]!r} are rated by {', '.join(tree.attributes) or 'one number'} and by "
            f"{', '.join(other.attributes) or 'one number'}; every row needs the same names"
        )
    subset = tree.subset if tree.subset == other.subset else ""
    return replace(tree, responses=(*tree.responses, *other.responses), subset=subset, row=_shared(tree.row, other.row))


def _shared(row: Mapping[str, Any] | None, other: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """What two rows that became one tree both say."""
    if row is None or other is None:
        return None
    return {name: value for name, value in row.items() if name in other and other[name] == value}


def replace_responses(tree: Tree, responses: Sequence[Response]) -> Tree:
    """The same tree with other responses."""
    return replace(tree, responses=tuple(responses))


def pair_labelled(trees: Sequence[Tree], seed: int) -> list[Tree]:
    """Positive texts against negative ones, each text in at most one pair; the order depends on the seed alone. A pair
    is of the subset that both its texts are of.

    Raises:
        UserError: a text has no label, a label is neither 0 nor 1, or a text has a weight of its own.
    """
    labels = {tree.responses[0].score for tree in trees}
    if not labels <= {0.0, 1.0}:
        raise UserError(
            f"column 'label' holds {sorted(map(str, labels))[:4]}; pairs need 1 (positive) and 0 (negative)"
        )
    weighted = sum(tree.weight != 1 for tree in trees)
    if weighted:
        raise UserError(
            f"column 'weight' weighs {weighted} single texts, but they are trained on in pairs; take the column out, "
            "or give pairs with weights"
        )
    sides = [shuffled(((t.group, t) for t in trees if t.responses[0].score == s), seed, "pairing") for s in (1.0, 0.0)]
    return [
        Tree(
            "",
            [Response(a.responses[0].text), Response(b.responses[0].text)],
            group=beside(a.group, b.group),
            subset=a.subset if a.subset == b.subset else "",
            row=_shared(a.row, b.row),
        )
        for a, b in zip(*sides, strict=False)
    ]


def _pairs_of(tree: Tree, dropped: Counter[str]) -> list[Tree]:
    if len(tree.responses) == 2 and not tree.responses[0].grades:
        return [tree]
    ranked = _ranked(tree, dropped)
    if ranked is None:
        return []
    return [replace_responses(ranked, (a, b)) for a, b in combinations(ranked.responses, 2) if _mean(a) > _mean(b)]


def _ranked(tree: Tree, dropped: Counter[str]) -> Tree | None:
    """Branches by their mean rating, best first; None where there is nothing to rank."""
    if any(not response.ratings for response in tree.responses):
        if len(tree.responses) == 2:
            return replace_responses(tree, [replace(r, score=float(1 - n)) for n, r in enumerate(tree.responses)])
        dropped["without a rating"] += 1
        return None
    if len({_mean(response) for response in tree.responses}) < 2:
        dropped[UNRANKED if len(tree.responses) > 1 else "one response alone"] += 1
        return None
    return replace_responses(tree, sorted(tree.responses, key=_mean, reverse=True))


def _mean(response: Response) -> float:
    return sum(response.ratings) / len(response.ratings)
