"""Simulated coverage of the intervals, calibration tests, diversity figures and verdicts that receipts print.

    python bench/calibration.py [--only REGEX] [--out FILE.jsonl]

Every scenario draws many tables whose true values are known, and passes them to the functions that receipts and reports
use. A finished scenario is one line of the JSON lines file; a second call runs only what is missing. Each scenario has
its own random generator, seeded by its name, so the order and the choice of scenarios change no figure. At the end one
Markdown table per family is printed; the exit code is 1 if a scenario failed.
"""

import argparse
import json
import math
import re
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.special import expit, logit

from treeward.checks.guards import judge_guards, k1_check
from treeward.checks.receipt import decide
from treeward.data.account import Account
from treeward.data.splits import Part
from treeward.data.store import Prepared
from treeward.evaluation.rewards import calibration_facts
from treeward.evaluation.versus import diversity_facts
from treeward.stats.calibration import equal_mass, rank_correlation
from treeward.stats.diversity import Gap
from treeward.stats.frontier import Point, at_equal_kl, kl_bound, standings
from treeward.stats.intervals import Difference, Interval, against_half
from treeward.stats.tables import Comparison, Measurement, Table, compare
from treeward.trees.text import Tree
from treeward.trees.tokens import TokenTree

Floats = NDArray[np.float64]
Draw = np.random.Generator
Figures = Mapping[str, Any]
"""What a scenario measured; `passed` is True, False, or None where nothing is required."""

SEED = 0
TABLES = 4_000
ECE_TABLES = 1_000
DIVERSITY_TABLES = 300
ROUNDING = 1e-12
LEAST = 0.93
"""A cell of 32 examples and more fails if its coverage is below this beyond chance (99 %)."""
SIZES = (16, 32, 64, 200, 1000)


@dataclass(frozen=True)
class Scenario:
    """One line of a table: its family, its name, and what it measures from a generator of its own."""

    family: str
    name: str
    run: Callable[[Draw], Figures]

    def draw(self, seed: int) -> Draw:
        """The scenario's own generator: the same whatever else is run."""
        return np.random.default_rng([seed, zlib.crc32(f"{self.family} {self.name}".encode())])


def upper(successes: int, n: int) -> float:
    """The 99 % upper limit of a rate (Clopper and Pearson 1934), one-sided."""
    return 1.0 if successes == n else float(stats.beta.ppf(0.99, successes + 1, n - successes))


def lower(successes: int, n: int) -> float:
    """The 99 % lower limit of a rate (Clopper and Pearson 1934), one-sided."""
    return 0.0 if successes == 0 else float(stats.beta.ppf(0.01, successes, n - successes + 1))


# --- coverage of intervals ------------------------------------------------------------------------------------------


def covered(truth: float, found: Interval | Difference | Gap) -> tuple[bool, float, bool]:
    """Whether an interval holds the truth (up to rounding), its width, and whether it is called reliable."""
    inside = found.low - ROUNDING <= truth <= found.high + ROUNDING
    return inside, found.high - found.low, found.reliable


def coverage(
    family: str,
    name: str,
    n: int,
    once: Callable[[Draw], tuple[bool, float, bool]],
    required: bool = True,
    tables: int = TABLES,
) -> Scenario:
    """`once` draws a table and returns what `covered` says of its interval.

    Beside the coverage stand the share of tables whose interval is called unreliable, and the coverage of the others.
    """

    def run(draw: Draw) -> Figures:
        results = [once(draw) for _ in range(tables)]
        held = sum(inside for inside, _, _ in results)
        sure = [inside for inside, _, reliable in results if reliable]
        widths = [width for _, width, _ in results if np.isfinite(width)]
        return {
            "n": n, "tables": tables, "coverage": held / tables, "at most": upper(held, tables),
            "mean width": float(np.mean(widths)) if widths else None, "unreliable": 1 - len(sure) / tables,
            "coverage of the others": float(np.mean(sure)) if sure else None,
            "passed": upper(held, tables) >= LEAST if required and n >= 32 else None,
        }  # fmt: skip

    return Scenario(family, f"{name}, n={n}", run)


def prompts(n: int, rows: int = 1) -> list[str]:
    """n prompts with some rows each."""
    return [str(i) for i in range(n) for _ in range(rows)]


def of_share(p: float, n: int) -> Scenario:
    """A share of single rows, as an accuracy's."""

    def once(draw: Draw) -> tuple[bool, float, bool]:
        results = draw.binomial(1, p, n).astype(np.float64)
        return covered(p, Table(prompts(n), {"accuracy": results}).interval("accuracy"))

    return coverage("share", f"share {p:g}", n, once)


def of_paired_share(gained: float, lost: float, n: int) -> Scenario:
    """Two accuracies on the same pairs: shares `gained` and `lost` of them change sides."""

    def once(draw: Draw) -> tuple[bool, float, bool]:
        change = draw.choice([1.0, -1.0, 0.0], n, p=[gained, lost, 1 - gained - lost])
        before = np.where(change == 0, draw.integers(0, 2, n), change < 0).astype(np.float64)
        tables = [Table(prompts(n), {"accuracy": side}) for side in (before, before + change)]
        return covered(gained - lost, compare("accuracy", *tables).difference)

    return coverage("paired difference of shares", f"gained {gained:g}, lost {lost:g}", n, once)


def beta_of(p: float, alike: float) -> tuple[float, float]:
    """The beta distribution of prompts' accuracies with mean p, and correlation `alike` of two pairs of one prompt."""
    return p * (1 - alike) / alike, (1 - p) * (1 - alike) / alike


def of_share_by_prompt(p: float, n: int) -> Scenario:
    """n prompts with four pairs each, whose results correlate by 0.3."""

    def once(draw: Draw) -> tuple[bool, float, bool]:
        results = draw.binomial(1, np.repeat(draw.beta(*beta_of(p, 0.3), n), 4)).astype(np.float64)
        return covered(p, Table(prompts(n, 4), {"accuracy": results}).interval("accuracy"))

    return coverage("share, four pairs a prompt", f"share {p:g}", n, once)


def of_paired_share_by_prompt(p: float, q: float, n: int) -> Scenario:
    """Accuracies p and q on n prompts with four pairs each; a prompt that is easy for one model is so for the other."""

    def once(draw: Draw) -> tuple[bool, float, bool]:
        rank = draw.random(n)
        before, after = (
            draw.binomial(1, np.repeat(stats.beta.ppf(rank, *beta_of(share, 0.3)), 4)).astype(np.float64)
            for share in (p, q)
        )
        tables = [Table(prompts(n, 4), {"accuracy": side}) for side in (before, after)]
        return covered(q - p, compare("accuracy", *tables).difference)

    return coverage("paired difference of shares, four pairs a prompt", f"{p:g} to {q:g}", n, once)


@dataclass(frozen=True)
class Values:
    """A distribution of values with its mean; `bounded` ones lie in [0, 1], and their changes in [-1, 1]."""

    name: str
    sample: Callable[[Draw, int], Floats]
    mean: float
    bounded: bool = False

    @property
    def column(self) -> str:
        """A metric of the kind."""
        return "repetition" if self.bounded else "score"


VALUES = (
    Values("bounded, uniform", lambda draw, n: draw.random(n), 0.5, True),
    Values("bounded, beta(0.3, 3)", lambda draw, n: draw.beta(0.3, 3, n), 0.3 / 3.3, True),
    Values("bounded, 5 % not 0", lambda draw, n: draw.random(n) * (draw.random(n) < 0.05), 0.025, True),
    Values("normal", lambda draw, n: draw.standard_normal(n), 0.0),
    Values("t(3)", lambda draw, n: draw.standard_t(3, n), 0.0),
    Values("tied: -1, 0, 0, 0, 1, 2", lambda draw, n: draw.choice([-1.0, 0, 0, 0, 1, 2], n), 1 / 3),
)
CHANGES = (
    Values("bounded, -0.4 to 0.6", lambda draw, n: draw.uniform(-0.4, 0.6, n), 0.1, True),
    Values("bounded, 5 % rise", lambda draw, n: draw.random(n) * (draw.random(n) < 0.05), 0.025, True),
    *(values for values in VALUES if not values.bounded),
)
HARD = (
    Values("lognormal", lambda draw, n: draw.lognormal(0, 1, n), math.exp(0.5)),
    Values("exponential less another", lambda draw, n: draw.exponential(1, n) - draw.exponential(0.5, n), 0.5),
    Values("5 % rise, unbounded", lambda draw, n: draw.exponential(1, n) * (draw.random(n) < 0.05), 0.05),
    Values("1 % rise by 1", lambda draw, n: (draw.random(n) < 0.01).astype(np.float64), 0.01),
)


def of_mean(values: Values, n: int) -> Scenario:
    """The mean of one table's column."""

    def once(draw: Draw) -> tuple[bool, float, bool]:
        table = Table(prompts(n), {values.column: values.sample(draw, n)})
        return covered(values.mean, table.interval(values.column))

    return coverage("mean", values.name, n, once)


def of_change(values: Values, n: int, family: str, required: bool) -> Scenario:
    """The mean of the differences of two tables."""

    def once(draw: Draw) -> tuple[bool, float, bool]:
        change = values.sample(draw, n)
        before = np.clip(-change, 0, None) if values.bounded else draw.standard_normal(n)
        tables = [Table(prompts(n), {values.column: side}) for side in (before, before + change)]
        return covered(values.mean, compare(values.column, *tables).difference)

    return coverage(family, values.name, n, once, required)


def of_rank_correlation(rho: float, n: int) -> Scenario:
    """Spearman's correlation of two normal columns whose Pearson correlation is rho: 6 / pi arcsin(rho / 2)."""

    def once(draw: Draw) -> tuple[bool, float, bool]:
        x = draw.standard_normal(n)
        y = rho * x + math.sqrt(1 - rho**2) * draw.standard_normal(n)
        return covered(6 / math.pi * math.asin(rho / 2), rank_correlation(x, y, prompts(n)))

    return coverage("rank correlation", f"rho {rho:g}", n, once, tables=200)


def of_best_of_n(n: int) -> Scenario:
    """A policy that is the best of three or of four of the start's samples, on n prompts: the curve is reached exactly.

    Its KL varies by prompt around the middle of the two bounds.
    """

    def once(draw: Draw) -> tuple[bool, float, bool]:
        hard = draw.standard_normal((n, 1))
        start, own = (hard + draw.standard_normal((n, 8)) for _ in range(2))
        tuned = np.where(draw.random(n) < 0.5, own[:, :3].max(1), own[:, :4].max(1))
        kl = (kl_bound(3) + kl_bound(4)) / 2 + 0.05 * draw.standard_normal(n)
        above = at_equal_kl(start, tuned, kl).above
        assert above is not None
        return covered(0.0, above)

    return coverage("score above best-of-n at equal KL", "best of 3 or 4 of 8", n, once)


COVERAGE = [
    *(of_share(p, n) for p in (0.02, 0.1, 0.5, 0.785, 0.98) for n in SIZES),
    *(
        of_paired_share(gained, lost, n)
        for gained, lost in ((0.01, 0.01), (0.02, 0.0), (0.04, 0.02), (0.1, 0.1), (0.25, 0.15))
        for n in SIZES
    ),
    *(of_share_by_prompt(p, n) for p in (0.5, 0.785, 0.98) for n in SIZES),
    *(of_paired_share_by_prompt(p, q, n) for p, q in ((0.6, 0.6), (0.6, 0.7), (0.95, 0.99)) for n in SIZES),
    *(of_mean(values, n) for values in VALUES for n in SIZES),
    *(of_change(values, n, "paired difference of means", True) for values in CHANGES for n in SIZES),
    *(of_change(values, n, "skewed and rare changes, nothing required", False) for values in HARD for n in SIZES),
    *(of_rank_correlation(rho, n) for rho, n in ((0.3, 32), (0.8, 64), (0.3, 200))),
    *(of_best_of_n(n) for n in (32, 64, 200)),
]

# --- calibration error ----------------------------------------------------------------------------------------------


def of_calibration_error(name: str, sharpen: float, n: int, rows: int = 1) -> Scenario:
    """Pairs whose true log-odds are stated `sharpen` times as large; the rows of a prompt are right or wrong together.

    `rejected` is the share of tables with p < .05: the test's size where the probabilities are right (it fails if its
    99 % lower limit is above .05), else its power.
    """

    def run(draw: Draw) -> Figures:
        size = n // rows
        found, truths = [], []
        for _ in range(ECE_TABLES):
            true = draw.beta(4, 2, n)
            confidence = np.maximum(true, 1 - true)
            shared = np.repeat(draw.standard_normal(size), rows)
            latent = shared if rows == 1 else math.sqrt(0.5) * (shared + draw.standard_normal(n))
            right = stats.norm.cdf(latent) < confidence
            stated = expit(sharpen * logit(confidence))
            table = Table(prompts(size, rows), {"p": np.where(right, stated, 1 - stated)})
            found.append(calibration_facts(table)["ece"])
            truths.append(sum(abs((stated - confidence)[part].sum()) for part in equal_mass(stated, 10)) / n)
        mean = {key: float(np.mean([f[key] for f in found])) for key in ("plug_in", "expected_if_exact", "value")}
        rejected = sum(f["p"] < 0.05 for f in found)
        return {
            "n": n, "tables": ECE_TABLES, "true": round(float(np.mean(truths)), 12), "plug-in": mean["plug_in"],
            "if exact": mean["expected_if_exact"], "debiased": mean["value"],
            "bias": mean["value"] - float(np.mean(truths)), "rejected": rejected / ECE_TABLES,
            "passed": lower(rejected, ECE_TABLES) <= 0.05 if sharpen == 1 else None,
        }  # fmt: skip

    return Scenario("calibration error", f"{name}, n={n}" + (f", {rows} pairs a prompt" if rows > 1 else ""), run)


STATED = (("exact", 1.0), ("half the log-odds", 0.5), ("1.5 times the log-odds", 1.5), ("3 times the log-odds", 3.0))
ECE = [
    *(of_calibration_error(name, sharpen, n) for name, sharpen in STATED for n in (64, 225, 1000)),
    *(of_calibration_error(name, sharpen, n, 4) for name, sharpen in STATED[:3:2] for n in (256, 1000)),
]

# --- diversity ------------------------------------------------------------------------------------------------------

WORDS = 2_000
ZIPF = 1 / np.arange(1, WORDS + 1) ** 1.1
FIGURES = ("token_entropy", "distinct_1", "distinct_2", "distinct_3", "perplexity")


def texts(draw: Draw, topics: NDArray[np.int64], shortest: int, longest: int, own: float) -> Measurement:
    """Four samples a prompt from a source with Zipf's frequencies: a token is one of its prompt's twenty words with
    probability `own`, one of three successors of the token before with 0.35, else any of 2,000.
    """
    shape = (len(topics), 4)
    lengths = draw.integers(shortest, longest + 1, shape)
    cumulated = np.cumsum(ZIPF / ZIPF.sum())
    ids = np.zeros((*shape, longest), dtype=np.int64)
    nll = np.zeros(shape)
    before = np.zeros(shape, dtype=np.int64)
    for place in range(longest):
        kind = draw.random(shape)
        word = np.minimum(np.searchsorted(cumulated, draw.random(shape)), WORDS - 1)
        of_prompt = np.take_along_axis(topics, draw.integers(0, topics.shape[1], shape), 1)
        successor = (7 * before + 3 + draw.integers(0, 3, shape)) % WORDS
        ids[:, :, place] = before = np.where(kind < own, of_prompt, np.where(kind < own + 0.35, successor, word))
        nll += np.where(place < lengths, -np.log(ZIPF[before] / ZIPF.sum()), 0.0)
    flat = lengths.ravel()
    groups = prompts(len(topics), 4)
    lines = ids.reshape(-1, longest)
    rows = [{"group": g, "ids": line[:m].tolist()} for g, line, m in zip(groups, lines, flat, strict=True)]
    columns = {"length": flat.astype(np.float64), "start_nll": nll.ravel() / flat}
    return Measurement({"samples": Table(groups, columns)}, rows)


def of_diversity(n: int, shortest: int, longest: int, own: float = 0.3) -> Scenario:
    """Coverage of the difference of two models on the same n prompts. The first takes 0.3 of its tokens from the
    prompt's words; where `own` is 0.3 too, a model stands against itself and the truth is 0, else it is the mean.
    """

    def run(draw: Draw) -> Figures:
        found = []
        cumulated = np.cumsum(ZIPF / ZIPF.sum())
        for _ in range(DIVERSITY_TABLES):
            topics = np.minimum(np.searchsorted(cumulated, draw.random((n, 20))), WORDS - 1)
            before, after = texts(draw, topics, shortest, longest, 0.3), texts(draw, topics, shortest, longest, own)
            found.append(diversity_facts(before, after))
        held = {}
        for name in FIGURES:
            gaps = [facts[name]["difference"] for facts in found]
            truth = 0.0 if own == 0.3 else float(np.mean([gap["value"] for gap in gaps]))
            held[name] = sum(gap["low"] <= truth <= gap["high"] for gap in gaps)
        return {
            "n": n, "tables": DIVERSITY_TABLES, **{name: count / DIVERSITY_TABLES for name, count in held.items()},
            "passed": all(upper(count, DIVERSITY_TABLES) >= LEAST for count in held.values()),
        }  # fmt: skip

    against = "itself" if own == 0.3 else "a narrower model"
    return Scenario("diversity", f"a model against {against}, {shortest} to {longest} tokens, n={n}", run)


DIVERSITY = [
    *(of_diversity(n, *lengths) for n in (32, 64, 128) for lengths in ((20, 20), (20, 60))),
    of_diversity(64, 20, 60, own=0.5),
]

# --- verdicts -------------------------------------------------------------------------------------------------------

VERDICT_TABLES = 10_000
FRONTIERS = 500
BOUNDS = {"improved": 0.025, "worse": 0.03, "broken": 0.001}
"""The largest rate of each word that a run without effect may have."""
ROWS = 4
"""Rows a prompt where prompts have several."""


def rates(
    draw: Draw, n: int, once: Callable[[Draw], str], bounds: Mapping[str, float], tables: int = VERDICT_TABLES
) -> Figures:
    """`once` draws a run and returns its verdict; a rate fails if it is above its bound beyond chance (99 %)."""
    counts = Counter(once(draw) for _ in range(tables))
    sound = all(lower(counts[word], tables) <= bound for word, bound in bounds.items())
    return {"n": n, "tables": tables, **{word: counts[word] / tables for word in bounds}, "passed": sound}


Sides = tuple[Floats, Floats]
"""A column before and after, `ROWS` rows a prompt or one."""
Columns = Callable[[Draw, int, float], Sides]
"""(draw, prompts, effect) to a column before and after; an effect of 0 leaves its truth as it is."""


def constant_start(draw: Draw, n: int, effect: float) -> Sides:
    """A reward model whose head starts at zero: all ties before."""
    return np.full(n, 0.5), draw.binomial(1, 0.5 + effect, n).astype(np.float64)


def single_rows(draw: Draw, n: int, effect: float) -> Sides:
    """Accuracies of one pair a prompt: hard and easy pairs, both models right as often on each."""
    p = draw.beta(2, 1.5, n)
    return draw.binomial(1, p).astype(np.float64), draw.binomial(1, p + effect * (1 - p)).astype(np.float64)


def at_one_half(draw: Draw, n: int, effect: float) -> Sides:
    """Accuracies of a start that is at one half without being constant."""
    return draw.binomial(1, 0.5, n).astype(np.float64), draw.binomial(1, 0.5 + effect, n).astype(np.float64)


def clustered_rows(draw: Draw, n: int, effect: float) -> Sides:
    """Accuracies of several pairs a prompt that are right or wrong together."""
    p = np.repeat(draw.beta(0.8, 0.6, n), ROWS)
    return draw.binomial(1, p).astype(np.float64), draw.binomial(1, p + effect * (1 - p)).astype(np.float64)


def normal_scores(draw: Draw, n: int, effect: float) -> Sides:
    """Scores of several samples a prompt."""
    level = np.repeat(draw.normal(size=n), ROWS)
    return level + draw.normal(size=n * ROWS), level + draw.normal(size=n * ROWS) + effect


def tied_scores(draw: Draw, n: int, effect: float) -> Sides:
    """Counts, most of them 0 or 1, one sample a prompt."""
    level = draw.gamma(2, 0.3, n)
    return draw.poisson(level).astype(np.float64), draw.poisson(level + effect).astype(np.float64)


def bounded_scores(draw: Draw, n: int, effect: float) -> Sides:
    """Scores between 0 and 1 that crowd at both ends."""
    level = np.repeat(draw.beta(1, 1, n), ROWS)
    return draw.beta(2 * level + 0.1, 2 - 2 * level + 0.1), draw.beta(2 * level + 0.1 + 4 * effect, 2 - 2 * level + 0.1)


ACCURACIES = {
    "accuracy from a constant start": constant_start, "accuracy, single rows": single_rows,
    "accuracy from one half": at_one_half, "accuracy, clustered": clustered_rows,
}  # fmt: skip
SCORES = {"normal scores": normal_scores, "tied scores": tied_scores, "bounded scores": bounded_scores}


def compared(name: str, sides: Sides, n: int) -> Comparison:
    """One metric before and after of n prompts."""
    groups: Any = np.repeat(np.arange(n), len(sides[0]) // n)
    return compare(name, *(Table(groups, {name: side}) for side in sides))


def word_of(main: Comparison, judges: Sequence[Comparison] = (), accuracy: Sides | None = None) -> str:
    """The verdict as a receipt gives it; an accuracy is also held against one half."""
    half = None
    if accuracy is not None:
        groups = np.repeat(np.arange(main.after.n), len(accuracy[1]) // main.after.n)
        half = against_half(accuracy[1], groups)
    return decide(main, judge_guards([main, *judges]), scorer="gold", half=half).word


def no_effect(name: str, columns: Columns, n: int) -> Scenario:
    """A run after which the truth is what it was."""

    def once(draw: Draw) -> str:
        sides = columns(draw, n, 0.0)
        accurate = columns in ACCURACIES.values()
        return word_of(compared("accuracy" if accurate else "score", sides, n), accuracy=sides if accurate else None)

    return Scenario("verdicts without effect", f"{name}, n={n}", lambda draw: rates(draw, n, once, BOUNDS))


def sound_samples(n: int) -> Scenario:
    """Guards of the samples of a policy that moved a little from its start: is k1 taken for another quantity than KL?

    Samples are of 20 tokens from 8, the logits' differences normal with sd 0.3; their two estimates are drawn again and
    again from 100,000 such samples.
    """

    def run(draw: Draw) -> Figures:
        logits = draw.normal(size=(100_000, 20, 8))
        p, q = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in (logits, logits + draw.normal(0, 0.3, 8)))
        token = (draw.uniform(size=(100_000, 20, 1)) > p.cumsum(-1)[..., :-1]).sum(-1)
        log_ratio = np.log(p / q)
        kl = (p * log_ratio).sum((1, 2))
        k1 = np.take_along_axis(log_ratio, token[..., None], 2).sum((1, 2))
        groups: Any = np.repeat(np.arange(n), ROWS)

        def once(draw: Draw) -> str:
            rows = draw.integers(0, len(kl), n * ROWS)
            check = k1_check(Table(groups, {"kl": kl[rows], "k1": k1[rows]}), 1.0)
            return "broken" if check.passed is False else "sound"

        return rates(draw, n, once, {"broken": BOUNDS["broken"]})

    return Scenario("k1 of sound samples", f"20 tokens a sample, n={n}", run)


def improved(name: str, columns: Columns, judges: int, n: int) -> Scenario:
    """A run that improved beyond doubt, and judges who see no difference."""

    def once(draw: Draw) -> str:
        main = compared("score", normal_scores(draw, n, 3.0), n)
        unchanged = [compared(f"judge:{number}", columns(draw, n, 0.0), n) for number in range(judges)]
        return word_of(main, unchanged)

    title = f"{judges} unchanged judge{'s' if judges > 1 else ''} of {name}, n={n}"
    bounds = {"worse": BOUNDS["worse"]}
    return Scenario("verdicts of a true improvement", title, lambda draw: rates(draw, n, once, bounds))


def chosen(name: str, columns: Columns, measurements: int, n: int) -> Scenario:
    """A run without a test part and without effect: the best of several checkpoints on one half of the validation
    groups, the verdict on the other half, as `Prepared.apart` parts them.
    """
    trees = [TokenTree((1,), ((2,),), f"prompt {number}") for number in range(n)]
    texts = [Tree("prompt", ["response"]) for _ in trees]
    parts: dict[Part, list[TokenTree]] = {"train": [], "validation": trees, "test": []}
    data = Prepared(parts, {"train": [], "validation": texts, "test": []}, Account(rows=n), "preference")
    accurate = columns in ACCURACIES.values()

    def once(draw: Draw) -> str:
        held_out = data.apart(chooses=True, seed=int(draw.integers(2**31))).held_out
        judging = np.zeros(n, dtype=bool)
        judging[[int(tree.group.split()[1]) for tree in held_out]] = True
        drawn = [columns(draw, n, 0.0) for _ in range(measurements)]
        rows = np.repeat(judging, len(drawn[0][0]) // n)
        before, after = max(drawn, key=lambda sides: float(sides[1][~rows].mean()))
        sides = before[rows], after[rows]
        metric = "accuracy" if accurate else "score"
        return word_of(compared(metric, sides, int(judging.sum())), accuracy=sides if accurate else None)

    title = f"{name}, the best of {measurements} measurements, n={n // 2} and {n // 2}"
    return Scenario(
        "verdicts after a choice without a test part", title, lambda draw: rates(draw, n // 2, once, BOUNDS)
    )


def equal_models(name: str, n: int) -> Scenario:
    """Thirty equal models on one frontier: is any called clearly beaten?"""
    points = [Point(str(kl), Interval(0, 0, 0, n), Interval(kl, kl, kl, n)) for kl in range(30)]

    def once(draw: Draw) -> str:
        level = draw.gamma(2, 0.3, (1, n))
        scores = draw.poisson(level, (30, n)) if name == "tied" else draw.normal(level, 1.0, (30, n))
        called = any(standing.beaten_by for standing in standings(points, list(scores.astype(np.float64))))
        return "any clearly beaten" if called else "none"

    bounds = {"any clearly beaten": 0.05}
    title = f"{name} scores, n={n}"
    return Scenario("frontiers of thirty equal models", title, lambda draw: rates(draw, n, once, bounds, FRONTIERS))


JUDGES = (1, 3, 6)
VERDICTS: list[Scenario] = [
    *(no_effect(name, columns, n) for name, columns in (ACCURACIES | SCORES).items() for n in (64, 400)),
    *(sound_samples(n) for n in (64, 400)),
    *(improved(name, columns, judges, 64) for name, columns in SCORES.items() for judges in JUDGES),
    improved("normal scores", normal_scores, 6, 400),
    *(chosen(name, columns, k, 128) for k in (3, 10, 20)
      for name, columns in (("accuracy", single_rows), ("scores", tied_scores))),
    *(equal_models(name, 64) for name in ("normal", "tied")),
]  # fmt: skip

SCENARIOS: Sequence[Scenario] = [*COVERAGE, *ECE, *DIVERSITY, *VERDICTS]


# --- running and printing -------------------------------------------------------------------------------------------


def finished(path: Path, seed: int) -> dict[tuple[str, str], dict[str, Any]]:
    """The lines of an earlier call with this seed, by family and name."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    rows = [json.loads(line) for line in lines if line.endswith("}")]
    return {(row["family"], row["name"]): row for row in rows if row["seed"] == seed}


def run(scenarios: Sequence[Scenario], path: Path, seed: int) -> list[dict[str, Any]]:
    """Every scenario's line, in order; those that are in the file already are not run again."""
    rows = finished(path, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        for scenario in scenarios:
            key = (scenario.family, scenario.name)
            if key in rows:
                continue
            begun = time.monotonic()
            figures = dict(scenario.run(scenario.draw(seed)))
            seconds = round(time.monotonic() - begun, 2)
            rows[key] = {"family": key[0], "name": key[1], "seed": seed, **figures, "seconds": seconds}
            file.write(json.dumps(rows[key]) + "\n")
            file.flush()
            print(f"{key[0]}: {key[1]}: {said(figures)} ({seconds:.1f} s)", file=sys.stderr, flush=True)
    return [rows[scenario.family, scenario.name] for scenario in scenarios]


def said(figures: Figures) -> str:
    """A scenario's figures in one line."""
    return ", ".join(f"{name} {shown(value)}" for name, value in figures.items())


def shown(value: object) -> str:
    """A cell: four digits of a number, "–" for what is not measured or not required."""
    if isinstance(value, bool):
        return "yes" if value else "NO"
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """One table a family; coverage by n, one line a case."""
    blocks = []
    for family in dict.fromkeys(row["family"] for row in rows):
        of = [row for row in rows if row["family"] == family]
        lines = by_size(of) if "coverage" in of[0] else by_row(of)
        blocks.append(f"### {family}\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines))
    return "\n\n".join(blocks)


def by_row(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """A line a scenario with all its figures."""
    columns = [name for name in rows[0] if name not in ("family", "seed", "seconds")]
    return [columns, ["---"] * len(columns), *([shown(row.get(name)) for name in columns] for row in rows)]


def by_size(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """A line a case with its coverage by n; in brackets the share of tables whose interval is called unreliable."""
    sizes = sorted({row["n"] for row in rows})
    cases: dict[str, dict[int, str]] = {}
    for row in rows:
        cell = f"{row['coverage']:.3f}" + (" FAILED" if row["passed"] is False else "")
        flagged = f" ({row['unreliable']:.0%})" if row["unreliable"] >= 0.005 else ""
        cases.setdefault(row["name"].removesuffix(f", n={row['n']}"), {})[row["n"]] = cell + flagged
    head = [["case", *(f"n={n}" for n in sizes)], ["---"] * (len(sizes) + 1)]
    return head + [[case, *(cells.get(n, "–") for n in sizes)] for case, cells in cases.items()]


def main() -> int:
    """Run what was asked for and print the tables; 1 where a scenario failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="run the scenarios whose 'family: name' matches this expression")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent / "calibration.jsonl")
    parser.add_argument("--seed", type=int, default=SEED)
    asked = parser.parse_args()
    chosen = [scenario for scenario in SCENARIOS if re.search(asked.only, f"{scenario.family}: {scenario.name}")]
    if not chosen:
        parser.error(f"--only is {asked.only!r}; no scenario matches, such as '{SCENARIOS[0].family}: '")
    rows = run(chosen, asked.out, asked.seed)
    print(f"{datetime.now(UTC):%Y-%m-%d}, seed {asked.seed}, {sum(row['seconds'] for row in rows):.0f} s\n")
    print(markdown(rows))
    failed = [f"{row['family']}: {row['name']}" for row in rows if row["passed"] is False]
    print("\n" + (f"{len(failed)} failed: " + "; ".join(failed) if failed else "none failed"))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
