"""Measuring reward models on held-out responses: accuracy, likelihood, calibration, ratings, and trivial rules to
beat.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from treeward.data.splits import unit
from treeward.losses import risk
from treeward.losses.heads import Attributes, Scalar, expectation
from treeward.losses.reward import (
    Branches,
    TwoHot,
    cross_entropy,
    crps,
    log_preference,
    marginal_entropy,
    pit,
    to_score,
)
from treeward.models.reward_model import RewardModel
from treeward.stats import calibration
from treeward.stats import intervals as statistics
from treeward.stats.tables import Comparison, Metric, Table, wins
from treeward.trees.tokens import TokenTree

OF_PAIRS = ("accuracy", "nll", "brier")
"""Metrics of pairs; the others are of rated responses."""
MATCHED = 0.1
"""Two responses count as equally long if their lengths differ by less than this share of the longer one."""


@dataclass(frozen=True)
class ScoredTrees:
    """A model's outputs for every branch of some trees."""

    model: RewardModel
    trees: Sequence[TokenTree]
    outputs: Float[Tensor, "N W"]

    @classmethod
    def of(cls, model: RewardModel, trees: Sequence[TokenTree]) -> "ScoredTrees":
        """Score the trees, once for all tables."""
        if isinstance(model.head, Attributes):
            trees = [tree.with_attributes(model.head.names) for tree in trees]
        return cls(model, trees, model.outputs(trees))

    def pairs(self) -> Table | None:
        """All pairs of branches of a tree that differ in rank: by rating, without ratings by their order.

        Columns: `accuracy` (a tie counts half), `nll` (with half ties), `brier`, both scores, `p` = P(chosen above
        rejected), `longer_wins`, and both lengths in tokens. None if no tree has such a pair.
        """
        better, worse, groups = ordered(self.trees)
        if not groups:
            return None
        scored = paired(self.trees, self.model.head.scores(self.outputs))
        lengths = np.array([len(branch) for tree in self.trees for branch in tree.branches], dtype=np.float64)
        both = self.outputs[[row for pair in zip(better, worse, strict=True) for row in pair]]
        tree = torch.arange(len(groups)).repeat_interleave(2)
        log_p = log_preference(Branches(both.double(), self.model.head, tree)).numpy()
        columns = {
            **scored.columns, "nll": -log_p, "brier": np.square(-np.expm1(log_p)), "p": np.exp(log_p),
            "longer_wins": wins(lengths[better], lengths[worse]),
            "chosen_length": lengths[better], "rejected_length": lengths[worse],
        }  # fmt: skip
        return Table(groups, columns)

    def graded(self, scale: tuple[float, float]) -> Table | None:
        """Ratings against predicted distributions, the mean over attributes if there are several: `mae`, `crps`,
        `cross_entropy` (two-hot), `sd`, and `rating` and `mean_score` in bins; with one distribution a response also
        `pit`. None without ratings or distributions.
        """
        head = self.model.head
        if isinstance(head, Scalar) or not all(tree.ratings for tree in self.trees):
            return None
        log_probs = head.log_probs(self.outputs.double())
        grades = torch.tensor([rating for tree in self.trees for rating in tree.ratings]).double()
        if log_probs.shape[1] == 1:
            grades = grades.mean(1, keepdim=True)
        s = to_score(grades, scale, head.bins)
        mean = expectation(log_probs)
        columns = {
            "mae": (mean - s).abs(), "crps": crps(log_probs, s),
            "cross_entropy": cross_entropy(log_probs, TwoHot()(s, head.bins)),
            "sd": risk.variance(log_probs).sqrt(), "rating": s, "mean_score": mean,
        }  # fmt: skip
        if log_probs.shape[1] == 1:
            columns["pit"] = pit(log_probs, s, torch.rand(s.shape, generator=torch.Generator().manual_seed(0)).double())
        groups = [tree.group for tree in self.trees for _ in tree.branches]
        return Table(groups, {name: column.mean(1).numpy() for name, column in columns.items()})


def ordered(trees: Sequence[TokenTree]) -> tuple[list[int], list[int], list[str]]:
    """(branch numbers of the better side, of the worse side, groups) of all pairs that the data ranks.

    Of three or more branches the ratings decide, of two their order. Equally rated branches make no pair.
    """
    better: list[int] = []
    worse: list[int] = []
    groups: list[str] = []
    first = 0
    for tree in trees:
        count = len(tree.branches)
        ranks = tree.grades if tree.ratings and count > 2 else tuple(range(count, 0, -1))
        for a, b in combinations(range(count), 2):
            if ranks[a] != ranks[b] and not (tree.ratings and tree.grades[a] == tree.grades[b]):
                high, low = (a, b) if ranks[a] > ranks[b] else (b, a)
                better.append(first + high)
                worse.append(first + low)
                groups.append(tree.group)
        first += count
    return better, worse, groups


def paired(trees: Sequence[TokenTree], scores: Float[Tensor, "N"]) -> Table:
    """`accuracy` (a tie counts half) and both scores of every pair."""
    better, worse, groups = ordered(trees)
    values = scores.double().numpy()
    columns = {"accuracy": wins(values[better], values[worse]), "chosen": values[better], "rejected": values[worse]}
    return Table(groups, columns)


def calibration_facts(table: Table) -> dict[str, Any]:
    """ECE over ten equal-mass bins (`calibration.CalibrationError`), the reliability plot, and the temperature that one
    half of the groups asks for, with the other half's NLL before and after it.
    """
    p = table.columns["p"]
    half = np.array([unit(group, 1, "temperature") < 0.5 for group in table.groups])
    facts: dict[str, Any] = {
        "ece": asdict(calibration.calibration_error(p, table.groups)),
        "reliability": [asdict(point) for point in calibration.reliability(p, table.groups)],
    }
    if half.any() and not half.all() and np.ptp(p) > 0:
        t = calibration.fit_temperature(p[half])
        rest = p[~half]
        facts |= {
            "temperature": t, "nll_without_temperature": float(-np.log(np.maximum(rest, 1e-300)).mean()),
            "nll_with_temperature": float(-np.log(np.maximum(calibration.apply_temperature(rest, t), 1e-300)).mean()),
            "n_temperature": len(rest),
        }  # fmt: skip
    return facts


def length_facts(table: Table) -> dict[str, Any]:
    """How much the score depends on length: the rank correlation of their differences, and accuracy at equal
    lengths.
    """
    chosen, rejected = table.columns["chosen_length"], table.columns["rejected_length"]
    margin = table.columns["chosen"] - table.columns["rejected"]
    alike = np.abs(chosen - rejected) < MATCHED * np.maximum(chosen, rejected)
    groups = np.asarray(table.groups)
    matched = asdict(statistics.share(table.columns["accuracy"][alike], groups[alike])) if alike.any() else None
    return {
        "margin_against_length_difference": asdict(
            calibration.rank_correlation(margin, chosen - rejected, table.groups)
        ),
        "length_matched_accuracy": matched,
        "longer_wins": asdict(statistics.share(table.columns["longer_wins"], groups)),
    }


def graded_facts(table: Table, bins: int) -> dict[str, Any]:
    """Rank correlation of score and rating, whether the spread ranks the error, and the error by levels of the spread.

    With one distribution a response also the PIT's mean and variance (1/2 and 1/12 if calibrated) and its counts in
    tenths, and what a model that ignores its input would reach: MAE, CRPS and entropy of the marginal.
    """
    c = table.columns
    facts: dict[str, Any] = {
        "spearman": asdict(calibration.rank_correlation(c["mean_score"], c["rating"], table.groups)),
        "spread_ranks_error": asdict(calibration.rank_correlation(c["sd"], c["mae"], table.groups)),
        "spread_levels": [asdict(level) for level in calibration.binned_means(c["sd"], c["mae"], table.groups)],
    }
    if "pit" in c:
        s = torch.tensor(c["rating"])
        targets = TwoHot()(s, bins)
        marginal = targets.mean(0).clamp(min=1e-12).log().expand(len(s), -1)
        facts |= {
            "pit_mean": float(c["pit"].mean()), "pit_variance": float(c["pit"].var()),
            "pit_counts": np.histogram(c["pit"], bins=10, range=(0, 1))[0].tolist(),
            "marginal_mae": float((s - s.median()).abs().mean()), "marginal_crps": float(crps(marginal, s).mean()),
            "marginal_entropy": marginal_entropy(targets),
        }  # fmt: skip
    return facts


def subset_facts(table: Table, trees: Sequence[TokenTree]) -> dict[str, Any]:
    """Accuracy of each subset in the data, with its interval; empty without subsets."""
    names = {tree.group: tree.subset for tree in trees}
    groups = np.asarray(table.groups)
    of = np.array([names[group] for group in table.groups])
    right = table.columns["accuracy"]
    return {
        str(name): asdict(statistics.share(right[of == name], groups[of == name])) for name in np.unique(of[of != ""])
    }


def against_longer_wins(table: Table) -> Comparison:
    """The model's accuracy against the rule "the longer response wins" (or, if that is better, the shorter)."""
    rule = table.columns["longer_wins"]
    if statistics.share(rule, table.groups).value < 0.5:
        rule = 1 - rule
    accuracy = table.columns["accuracy"]
    about = Metric("accuracy", True, "accuracy")
    before = statistics.share(rule, table.groups)
    return Comparison(about, before, table.interval("accuracy"), statistics.paired_share(rule, accuracy, table.groups))


def score_spread(table: Table) -> float:
    """Standard deviation of all scores: 0 means that the model gives every text the same one."""
    return float(torch.tensor(np.concatenate([table.columns["chosen"], table.columns["rejected"]])).std())
