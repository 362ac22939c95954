"""Figures of an inspection: lengths, what a limit would cut, whether the longer response wins, and the word floor.

Lengths are those that training sees under one tokenizer: a response is counted with its end token, a prompt with its
template and start token. A whole path is prompt and response. Nothing is cut before it is counted.

The word floor is the accuracy of Bradley-Terry on pairs, linear in the words of the responses; a model that reads text
should beat it. The score of a response y is w . x(y), where x is log(1 + count) of each word, and
P(chosen over rejected) = sigma(margin), margin = w . (x_chosen - x_rejected). The weights w minimise
sum softplus(-margin) + L2 / 2 |w|^2. That is convex and starts at zero, so there is nothing to seed. An intercept would
cancel in the difference, and so would the prompt: it is not read.
"""

import math
import re
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from scipy.sparse import csr_array
from scipy.special import expit

from treeward.data.render import token_trees
from treeward.stats.intervals import Floats, Interval, share, spearman
from treeward.trees.text import Prompt, Tree
from treeward.trees.tokens import Tokenizer

Ints = NDArray[np.int64]
Figures = dict[str, Any]
Pair = tuple[str, str]
"""Texts of the chosen and the rejected response."""

BINS = 40
QUANTILES = {"q05": 0.05, "q25": 0.25, "median": 0.5, "q75": 0.75, "q95": 0.95, "max": 1.0}
MAX_LENGTHS = (64, 128, 256, 512, 1024)
WORDS = "words"
"""The unit of lengths where no tokenizer is named."""

L2 = 10.0
"""Strength of the word floor's penalty, set once and never tuned: a prior deviation of 0.3 nats a word."""
MIN_RESPONSES = 2
"""A word counts if at least this many training responses contain it."""
WORD = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True)
class Lengths:
    """Counts by tree: `prompt` Int[N], `responses` Int[N, K] (K 2 for pairs, 1, or 0), `shared` Int[N].

    `shared` is how many first tokens the two responses of a pair have in common. `beyond` counts tokens of the data
    whose id has no embedding row in the model. `templated` is None where no prompt is made of messages.
    """

    prompt: Ints
    responses: Ints
    shared: Ints
    beyond: int = 0
    templated: bool | None = None

    @property
    def parts(self) -> dict[str, Ints]:
        """The lengths of prompts, of chosen and rejected responses, of all responses, and of whole paths, where the
        trees have them."""
        lengths = {"prompt": self.prompt}
        if self.responses.shape[1] == 2:
            lengths |= {"chosen": self.responses[:, 0], "rejected": self.responses[:, 1]}
        if self.responses.shape[1]:
            lengths |= {"response": self.responses.ravel(), "whole": (self.prompt[:, None] + self.responses).ravel()}
        return lengths


def measure(trees: Iterable[Tree], branches: int, tokenizer: Tokenizer | None, rows: int | None = None) -> Lengths:
    """Count the tokens of trees that have `branches` responses each; without a tokenizer, words.

    `rows` is how many embedding rows the model has. A prompt of messages is counted as their text where the tokenizer
    has no chat template, and `templated` is False.

    Raises:
        UserError: the tokenizer can neither open an empty prompt nor end a response.
    """
    chats = False
    counts: list[tuple[int, list[int], int, int]] = []

    def readable() -> Iterable[Tree]:
        nonlocal chats
        for tree in trees:
            chat = isinstance(tree.prompt, tuple)
            chats = chats or chat
            yield Tree(plain(tree.prompt), tree.responses, tree.group) if chat and not template else tree

    template = tokenizer is not None and bool(tokenizer.chat_template)
    if tokenizer is None:
        for tree in readable():
            sides = [response.text.split() for response in tree.responses]
            counts.append((len(plain(tree.prompt).split()), list(map(len, sides)), _shared(sides), 0))
    else:
        for tokens in token_trees(readable(), tokenizer):
            beyond = 0 if rows is None else sum(i >= rows for ids in (tokens.prompt, *tokens.branches) for i in ids)
            counts.append((len(tokens.prompt), list(map(len, tokens.branches)), _shared(tokens.branches), beyond))
    prompts, responses, shared, beyond_rows = zip(*counts, strict=True) if counts else ((), (), (), ())
    return Lengths(
        np.asarray(prompts, dtype=np.int64),
        np.asarray(responses, dtype=np.int64).reshape(len(counts), branches),
        np.asarray(shared, dtype=np.int64),
        sum(beyond_rows),
        template if chats and tokenizer is not None else None,
    )


def plain(prompt: Prompt) -> str:
    """A prompt's text; messages line by line."""
    return prompt if isinstance(prompt, str) else "\n".join(message["content"] for message in prompt)


def describe(lengths: Lengths, gaps: Floats, groups: Ints, budgets: Iterable[int] = ()) -> Figures:
    """Flat figures: `chosen_mean`, `prompt_share_over_127`, `cut_responses_256`, `longer_wins`, ...

    `gaps` are rating differences by pair, NaN where there is none, `groups` the prompt's number of each pair; both are
    empty without pairs. `budgets` are limits beside MAX_LENGTHS. `mean_length` and the shares without a prefix are
    those of the responses, or of the prompts where there are none; `length_of` tells which.
    """
    figures: Figures = {"templated": lengths.templated}
    for name, values in lengths.parts.items():
        figures |= {f"{name}_{key}": value for key, value in _spread(values).items()}
    of = "response" if "response" in lengths.parts else "prompt"
    figures |= {"length_of": of, "mean_length": figures[f"{of}_mean"]}
    figures |= {f"share_{share}": figures[f"{of}_share_{share}"] for share in ("under_64", "64_127", "over_127")}
    for budget in sorted({*MAX_LENGTHS, *budgets}):
        figures |= {f"{key}_{budget}": value for key, value in _cut(lengths, budget).items()}
    is_pairs = lengths.responses.shape[1] == 2 and len(gaps) > 0
    return figures | (_longer(lengths.responses, gaps, groups) if is_pairs else {})


def quantiles(values: Sequence[float] | Ints | Floats) -> Figures:
    """Mean and quantiles; None where there are no values."""
    array = np.asarray(values, dtype=np.float64)
    if not len(array):
        return dict.fromkeys(("mean", *QUANTILES))
    levels = np.quantile(array, list(QUANTILES.values()))
    return {"mean": float(array.mean()), **dict(zip(QUANTILES, map(float, levels), strict=True))}


def bars_of(lengths: Lengths) -> dict[str, Any]:
    """Histograms of every part, the two sides of a pair on the same edges; for pairs of the length difference too."""
    parts = lengths.parts
    histograms = {
        name: bars(values, parts["response"] if name in ("chosen", "rejected") else values)
        for name, values in parts.items()
    }
    if lengths.responses.shape[1] == 2:
        histograms["difference"] = bars(lengths.responses[:, 0] - lengths.responses[:, 1])
    return histograms


def bars(values: Ints | Floats, scale: Ints | Floats | None = None) -> dict[str, list[float]] | None:
    """A histogram over the middle 99 % of `scale` (by default the values); values outside count in the end bars.

    A bar covers a whole number of steps between values, else some bars would cover more steps than others.
    """
    if not len(values):
        return None
    scale = values if scale is None else scale
    low, high = (float(np.quantile(scale, q, method="nearest")) for q in (0.005, 0.995))
    step = 1.0 if np.issubdtype(scale.dtype, np.integer) else _step(scale)
    width = step * max(1, math.ceil((high - low) / step / BINS))
    count = max(1, round((high - low) / width + 0.5))
    edges = low - step / 2 + width * np.arange(count + 1)
    counts, _ = np.histogram(np.clip(values, edges[0] + step / 4, edges[-1] - step / 4), edges)
    return {"edges": edges.tolist(), "counts": counts.tolist()}


def _step(values: Ints | Floats) -> float:
    """The smallest distance between two values, without distances below 1 % of their range: ratings come in steps."""
    distances = np.diff(np.unique(values.astype(np.float64)))
    reach = float(np.ptp(values))
    steps = distances[distances > 0.01 * reach]
    return float(steps.min()) if len(steps) else max(reach, 1.0)


def longer_wins(difference: Ints, groups: Ints, name: str = "longer_wins") -> Figures:
    """How often the longer response is the chosen one, by length differences: ties half, and unequal lengths alone.

    Means over groups (prompts) with their intervals; n counts groups.
    """
    unequal = difference != 0
    figures = _interval(name, np.where(unequal, difference > 0, 0.5), groups)
    return figures | _interval(f"{name}_unequal", (difference > 0)[unequal], groups[unequal])


def _spread(values: Ints) -> Figures:
    shares = {"under_64": values < 64, "64_127": (values >= 64) & (values <= 127), "over_127": values > 127}
    return quantiles(values) | {f"share_{key}": _mean(inside) for key, inside in shares.items()}


def _cut(lengths: Lengths, budget: int) -> Figures:
    """What a limit of this many tokens would cut, and how many pairs it would make identical."""
    parts = lengths.parts
    figures: Figures = {}
    names = {"prompt": "prompts", "response": "responses", "chosen": "chosen", "rejected": "rejected", "whole": "paths"}
    for part, name in names.items():
        if part in parts:
            over = parts[part] > budget
            figures |= {f"cut_{name}": int(over.sum()), f"cut_{name}_share": _mean(over)}
    for part in ("prompt", "response", "whole"):
        if part in parts:
            figures[f"mean_{part}_cut_to"] = _mean(np.minimum(parts[part], budget))
    if "whole" in parts:
        paths = lengths.prompt[:, None] + lengths.responses
        figures["rows_over"] = int((paths > budget).any(1).sum())
        figures["prompt_fills"] = int((lengths.prompt >= budget).sum())
    if "chosen" in parts:
        figures["identical_at"] = int((lengths.shared >= budget).sum())
    return figures


def _longer(responses: Ints, gaps: Floats, groups: Ints) -> Figures:
    """How often the longer response wins, and the correlation of length with preference."""
    difference = responses[:, 0] - responses[:, 1]
    figures = longer_wins(difference, groups)
    rated = np.isfinite(gaps)
    if rated.any():
        kind, value = "Spearman of length difference with rating gap", spearman(difference[rated], gaps[rated])
    else:
        kind, value = "point-biserial of length with being chosen", _biserial(responses)
    return figures | {"length_correlation": value if math.isfinite(value) else None, "length_correlation_kind": kind}


def _interval(name: str, results: ArrayLike, groups: Ints) -> Figures:
    if not len(groups):
        return {name: None, f"{name}_low": None, f"{name}_high": None, f"{name}_n": 0}
    mean = share(results, groups)
    return {name: mean.value, f"{name}_low": mean.low, f"{name}_high": mean.high, f"{name}_n": mean.n}


def _biserial(responses: Ints) -> float:
    lengths = responses.astype(np.float64).ravel()
    if lengths.std() == 0:
        return math.nan
    return float(np.corrcoef(lengths, np.tile([1.0, 0.0], len(responses)))[0, 1])


def _shared(sides: Sequence[Sequence[Any]]) -> int:
    if len(sides) != 2:
        return 0
    length = min(map(len, sides))
    return next((n for n in range(length) if sides[0][n] != sides[1][n]), length)


def _mean(values: NDArray[Any]) -> float | None:
    return float(values.mean()) if len(values) else None


# The word floor --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Floor:
    """Held-out accuracy of the word floor, ties half, and how many pairs and words it was trained on."""

    accuracy: Interval
    pairs: int
    words: int


def floor(train: Sequence[Pair], test: Sequence[Pair], groups: Sequence[int], l2: float = L2) -> Floor | None:
    """Fit on `train`, measure on `test`, whose pairs belong to `groups` (prompts); None where one of them is empty."""
    if not train or not test:
        return None
    vocabulary: dict[str, int] = {}
    sides = [features((pair[side] for pair in train), vocabulary, grow=True) for side in (0, 1)]
    sides[0].resize(len(train), len(vocabulary))
    responses = np.bincount(np.concatenate([side.indices for side in sides]), minlength=len(vocabulary))
    frequent = responses >= MIN_RESPONSES
    weights = np.zeros(len(vocabulary))
    weights[frequent] = fit((sides[0] - sides[1])[:, frequent], l2)
    chosen, rejected = (features((pair[side] for pair in test), vocabulary) for side in (0, 1))
    margins = (chosen - rejected) @ weights
    right = np.where(margins == 0, 0.5, margins > 0)
    return Floor(share(right, groups), len(train), int(frequent.sum()))


def words(text: str) -> Counter[str]:
    """Lower-case words and punctuation marks, with their counts."""
    return Counter(WORD.findall(text.lower()))


def features(texts: Iterable[str], vocabulary: dict[str, int], grow: bool = False) -> Any:
    """log(1 + count) of the words in `vocabulary`: sparse, Float[responses, words]; `grow` adds new words to it."""
    columns, values, ends = array("i"), array("i"), array("q", [0])
    for text in texts:
        for word, count in words(text).items():
            column = vocabulary.setdefault(word, len(vocabulary)) if grow else vocabulary.get(word)
            if column is not None:
                columns.append(column)
                values.append(count)
        ends.append(len(columns))
    data = np.log1p(np.asarray(values, dtype=np.float64)), np.asarray(columns, dtype=np.int32), np.asarray(ends)
    return csr_array(data, shape=(len(ends) - 1, len(vocabulary)))


def fit(difference: Any, l2: float) -> Floats:
    """The weights that minimise the penalised loss of these feature differences, Float[words]."""
    if not difference.shape[1]:
        return np.zeros(0)
    transposed = difference.T.tocsr()
    count = difference.shape[0]

    def loss(weights: Floats) -> tuple[float, Floats]:
        margins = difference @ weights
        value = np.logaddexp(0.0, -margins).sum() + l2 / 2 * weights @ weights
        slope = l2 * weights - transposed @ expit(-margins)
        return float(value) / count, slope / count

    result: Any = minimize(loss, np.zeros(difference.shape[1]), jac=True, method="L-BFGS-B", options={"maxiter": 500})
    return np.asarray(result.x, dtype=np.float64)
