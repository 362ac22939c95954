"""A floor for pairs: Bradley-Terry, linear in the words of the responses. A model that reads text should beat it.

score(y) = w . x(y), x the log(1 + count) of each word; P(chosen over rejected) = sigma(w . (x_chosen - x_rejected));
w minimises sum softplus(-margin) + L2 / 2 |w|^2. That is convex and starts at zero, so there is nothing to seed; an
intercept would cancel in the difference. The prompt is the same on both sides and cancels too: it is not read.
"""

import re
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.sparse import csr_array
from scipy.special import expit

from treeward.stats.intervals import Floats, Interval, share

L2 = 10.0
"""Strength of the penalty, set once and tuned on nothing: a prior deviation of 0.3 nats a word."""
SEEN = 2
"""A word counts if at least this many training responses hold it."""
WORD = re.compile(r"\w+|[^\w\s]")

Pair = tuple[str, str]
"""Texts of the chosen and the rejected response."""


@dataclass(frozen=True)
class Floor:
    """Held-out accuracy, ties half, of the linear model; how many pairs and words it was trained on."""

    accuracy: Interval
    pairs: int
    words: int


def floor(train: Sequence[Pair], test: Sequence[Pair], groups: Sequence[int], l2: float = L2) -> Floor | None:
    """Fit on `train`, measure on `test`, whose pairs belong to `groups` (prompts); None where one of them is empty."""
    if not train or not test:
        return None
    known: dict[str, int] = {}
    sides = [features((pair[side] for pair in train), known, grow=True) for side in (0, 1)]
    sides[0].resize(len(train), len(known))
    kept = np.bincount(np.concatenate([side.indices for side in sides]), minlength=len(known)) >= SEEN
    weights = np.zeros(len(known))
    weights[kept] = fit((sides[0] - sides[1])[:, kept], l2)
    chosen, rejected = (features((pair[side] for pair in test), known) for side in (0, 1))
    margins = (chosen - rejected) @ weights
    right = np.where(margins == 0, 0.5, margins > 0)
    return Floor(share(right, groups), len(train), int(kept.sum()))


def words(text: str) -> Counter[str]:
    """Lower-case words and signs, with their counts."""
    return Counter(WORD.findall(text.lower()))


def features(texts: Iterable[str], known: dict[str, int], grow: bool = False) -> Any:
    """log(1 + count) of the known words: sparse, Float[responses, words]; with `grow` new words become known."""
    columns, values, ends = array("i"), array("i"), array("q", [0])
    for text in texts:
        for word, count in words(text).items():
            column = known.setdefault(word, len(known)) if grow else known.get(word)
            if column is not None:
                columns.append(column)
                values.append(count)
        ends.append(len(columns))
    data = np.log1p(np.asarray(values, dtype=np.float64)), np.asarray(columns, dtype=np.int32), np.asarray(ends)
    return csr_array(data, shape=(len(ends) - 1, len(known)))


def fit(difference: Any, l2: float) -> Floats:
    """The weights that minimise the penalised loss of these feature differences, Float[words]."""
    turned = difference.T.tocsr()
    count = difference.shape[0]

    def loss(weights: Floats) -> tuple[float, Floats]:
        margins = difference @ weights
        value = np.logaddexp(0.0, -margins).sum() + l2 / 2 * weights @ weights
        slope = l2 * weights - turned @ expit(-margins)
        return float(value) / count, slope / count

    start = np.zeros(difference.shape[1])
    found: Any = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 500}) if len(start) else None
    return start if found is None else np.asarray(found.x, dtype=np.float64)
