"""Lengths of prompts, responses and whole paths under one tokenizer, what a limit would cut, what length gives away.

A response is counted with its end token, a prompt with its template and start token: as training sees them. A whole
path is prompt and response. Nothing is cut before it is counted.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from treeward.data.batched import token_trees
from treeward.stats.intervals import Floats, share, spearman
from treeward.trees.text import Prompt, Tree
from treeward.trees.tokens import Tokenizer

Ints = NDArray[np.int64]
Figures = dict[str, Any]

BINS = 40
QUANTILES = {"q05": 0.05, "q25": 0.25, "median": 0.5, "q75": 0.75, "q95": 0.95, "max": 1.0}
MAX_LENGTHS = (64, 128, 256, 512, 1024)
WORDS = "words"
"""The unit where no tokenizer is named."""


@dataclass(frozen=True)
class Lengths:
    """Counts by tree: `prompt` Int[N], `responses` Int[N, K] (K 2 for pairs, 1, or 0), `shared` Int[N].

    `shared` is how many first tokens the two responses of a pair have in common. `beyond` counts tokens of the data
    whose id the model has no embedding row for. `templated` is None where no prompt is made of messages.
    """

    prompt: Ints
    responses: Ints
    shared: Ints
    beyond: int = 0
    templated: bool | None = None

    @property
    def parts(self) -> dict[str, Ints]:
        """Lengths by what they are of; only what there is."""
        found = {"prompt": self.prompt}
        if self.responses.shape[1] == 2:
            found |= {"chosen": self.responses[:, 0], "rejected": self.responses[:, 1]}
        if self.responses.shape[1]:
            found |= {"response": self.responses.ravel(), "whole": (self.prompt[:, None] + self.responses).ravel()}
        return found


def measure(trees: Iterable[Tree], branches: int, tokenizer: Tokenizer | None, rows: int | None = None) -> Lengths:
    """Count the tokens of trees that have `branches` responses each; without a tokenizer, words.

    `rows` is how many embedding rows the model has. A prompt of messages is counted as their text where the tokenizer
    has no chat template, and `templated` is False.

    Raises:
        UserError: the tokenizer can neither open an empty prompt nor end a response.
    """
    chats = False
    found: list[tuple[int, list[int], int, int]] = []

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
            found.append((len(plain(tree.prompt).split()), list(map(len, sides)), _shared(sides), 0))
    else:
        for tokens in token_trees(readable(), tokenizer):
            beyond = 0 if rows is None else sum(i >= rows for row in (tokens.prompt, *tokens.branches) for i in row)
            found.append((len(tokens.prompt), list(map(len, tokens.branches)), _shared(tokens.branches), beyond))
    prompts, responses, shared, outside = zip(*found, strict=True) if found else ((), (), (), ())
    return Lengths(
        np.asarray(prompts, dtype=np.int64), np.asarray(responses, dtype=np.int64).reshape(len(found), branches),
        np.asarray(shared, dtype=np.int64), sum(outside), template if chats and tokenizer is not None else None,
    )  # fmt: skip


def plain(prompt: Prompt) -> str:
    """A prompt's text; messages line by line."""
    return prompt if isinstance(prompt, str) else "\n".join(message["content"] for message in prompt)


def describe(lengths: Lengths, gaps: Floats, groups: Ints, budgets: Iterable[int] = ()) -> Figures:
    """Flat figures: `chosen_mean`, `prompt_share_over_127`, `cut_responses_256`, `longer_wins`, ...

    `gaps` are rating differences by pair, NaN where there is none, `groups` the prompt's number of each pair, both of
    them empty without pairs; `budgets` are limits beside MAX_LENGTHS. The plain
    `mean_length` and shares are those of the responses (of the prompts, where there are none): `length_of` says so.
    """
    found: Figures = {"templated": lengths.templated}
    for name, values in lengths.parts.items():
        found |= {f"{name}_{key}": value for key, value in _spread(values).items()}
    of = "response" if "response" in lengths.parts else "prompt"
    found |= {"length_of": of, "mean_length": found[f"{of}_mean"]}
    found |= {f"share_{share}": found[f"{of}_share_{share}"] for share in ("under_64", "64_127", "over_127")}
    for budget in sorted({*MAX_LENGTHS, *budgets}):
        found |= {f"{key}_{budget}": value for key, value in _cut(lengths, budget).items()}
    return found | (_longer(lengths.responses, gaps, groups) if lengths.responses.shape[1] == 2 and len(gaps) else {})


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
    found = {name: bars(values, parts["response"] if name in ("chosen", "rejected") else values)
             for name, values in parts.items()}  # fmt: skip
    if lengths.responses.shape[1] == 2:
        found["difference"] = bars(lengths.responses[:, 0] - lengths.responses[:, 1])
    return found


def bars(values: Ints | Floats, alike: Ints | Floats | None = None) -> dict[str, list[float]] | None:
    """A histogram over the middle 99 % of `alike` (of the values, if not given); the rest stands in the end bars.

    A bar covers a whole number of steps between values, else some bars would hold more steps than others.
    """
    if not len(values):
        return None
    every = values if alike is None else alike
    low, high = (float(np.quantile(every, q, method="nearest")) for q in (0.005, 0.995))
    step = 1.0 if np.issubdtype(every.dtype, np.integer) else _step(every)
    width = step * max(1, math.ceil((high - low) / step / BINS))
    count = max(1, round((high - low) / width + 0.5))
    edges = low - step / 2 + width * np.arange(count + 1)
    counts, _ = np.histogram(np.clip(values, edges[0] + step / 4, edges[-1] - step / 4), edges)
    return {"edges": edges.tolist(), "counts": counts.tolist()}


def _step(values: Ints | Floats) -> float:
    """The smallest distance between two values, those below 1 % of their range apart: ratings come in steps."""
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
    found: Figures = {}
    for key, part in (("prompts", "prompt"), ("responses", "response"), ("chosen", "chosen"),
                      ("rejected", "rejected"), ("paths", "whole")):  # fmt: skip
        if part in parts:
            over = parts[part] > budget
            found |= {f"cut_{key}": int(over.sum()), f"cut_{key}_share": _mean(over)}
    for part in ("prompt", "response", "whole"):
        if part in parts:
            found[f"mean_{part}_cut_to"] = _mean(np.minimum(parts[part], budget))
    if "whole" in parts:
        paths = lengths.prompt[:, None] + lengths.responses
        found["rows_over"] = int((paths > budget).any(1).sum())
        found["prompt_fills"] = int((lengths.prompt >= budget).sum())
    if "chosen" in parts:
        found["identical_at"] = int((lengths.shared >= budget).sum())
    return found


def _longer(responses: Ints, gaps: Floats, groups: Ints) -> Figures:
    """Does the longer response win, and how length goes with preference."""
    difference = responses[:, 0] - responses[:, 1]
    found = longer_wins(difference, groups)
    rated = np.isfinite(gaps)
    if rated.any():
        kind, value = "Spearman of length difference with rating gap", spearman(difference[rated], gaps[rated])
    else:
        kind, value = "point-biserial of length with being chosen", _biserial(responses)
    return found | {"length_correlation": value if math.isfinite(value) else None, "length_correlation_kind": kind}


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
