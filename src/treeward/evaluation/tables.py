"""A measurement is a table with one row an example; a comparison is two tables of the same examples.

Metrics carry their direction and their test, so a "best" can only be chosen the right way round.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from treeward.maths import statistics
from treeward.maths.statistics import Difference, Floats, Interval

Test = Literal["bootstrap", "accuracy"]


@dataclass(frozen=True)
class Metric:
    """A named quantity: which way is better, how before and after are compared, and what it is in words."""

    name: str
    higher_is_better: bool
    test: Test
    meaning: str


METRICS = {
    metric.name: metric
    for metric in (
        Metric("nll", False, "bootstrap", "negative log-likelihood, nats a token (policy) or a pair (reward model)"),
        Metric("accuracy", True, "accuracy", "share of pairs whose chosen side scores higher, ties one half"),
        Metric("log_ratio_chosen", True, "bootstrap", "log(policy / start) of the chosen response, nats"),
        Metric("log_ratio_rejected", False, "bootstrap", "log(policy / start) of the rejected response, nats"),
        Metric("brier", False, "bootstrap", "squared error of the stated probability of the chosen side"),
        Metric("mae", False, "bootstrap", "distance of the mean score from the rating, in bins"),
        Metric("crps", False, "bootstrap", "continuous ranked probability score against the rating, in bins"),
        Metric("cross_entropy", False, "bootstrap", "cross-entropy of the rating's two-hot target, nats"),
        Metric("score", True, "bootstrap", "the scorer's raw score of fresh samples"),
        Metric("kl", False, "bootstrap", "KL(policy, start) a response in nats, Rao-Blackwellised"),
        Metric("kl_token", False, "bootstrap", "KL(policy, start) a scored token in nats, mean over responses"),
        Metric("entropy", True, "bootstrap", "conditional entropy, nats a token"),
        Metric("start_nll", False, "bootstrap", "NLL of fresh samples under the start model, nats a token"),
        Metric("self_bleu", False, "bootstrap", "BLEU-4 of each sample against the others of its prompt, 0 to 1"),
        Metric("repetition", False, "bootstrap", "share of a response's 4-grams that stand in it before"),
        Metric("length", True, "bootstrap", "scored tokens a response"),
        Metric("ended", True, "bootstrap", "share of responses that end by themselves"),
    )
}


JUDGE = "judge:"
"""Columns of this family hold the raw scores of judges that training never used."""


def known(name: str) -> bool:
    """Whether a column is a metric: it has a direction and a test."""
    return name in METRICS or name.startswith(JUDGE)


def metric(name: str) -> Metric:
    """The metric of that name; `judge:NAME` is one for every judge.

    Raises:
        ValueError: there is none; the known ones are listed.
    """
    if name.startswith(JUDGE):
        return Metric(name, True, "bootstrap", f"raw score of fresh samples by {name.removeprefix(JUDGE)}")
    if name not in METRICS:
        raise ValueError(f"metric {name!r} is unknown; known are {', '.join(sorted(METRICS))}")
    return METRICS[name]


@dataclass(frozen=True)
class Table:
    """Values by example: `groups[i]` is the group of row i, and each column holds one value a row."""

    groups: Sequence[str]
    columns: Mapping[str, Floats]

    def __post_init__(self) -> None:
        for name, column in self.columns.items():
            assert len(column) == len(self.groups), f"column {name} has {len(column)} values, not {len(self.groups)}"

    def interval(self, name: str) -> Interval:
        """The mean over groups with its interval, clustered by group; Wilson's for accuracies of single rows."""
        column = self.columns[name]
        if metric(name).test == "accuracy":
            return statistics.share(column, self.groups)
        return statistics.clustered_mean(column, self.groups)

    def mean(self, name: str) -> float:
        """Mean over groups."""
        return self.interval(name).value

    def rows(self) -> list[dict[str, Any]]:
        """One dictionary a row."""
        return [
            {"group": group, **{name: float(column[i]) for name, column in self.columns.items()}}
            for i, group in enumerate(self.groups)
        ]


@dataclass(frozen=True)
class Comparison:
    """One metric before and after on the same examples. `constant`: the start has one value by construction."""

    metric: Metric
    before: Interval
    after: Interval
    difference: Difference
    constant: bool = False

    @property
    def outcome(self) -> Literal["improved", "no detectable change", "worse"]:
        """What the interval of the difference says, in the metric's own direction."""
        sign = 1 if self.metric.higher_is_better else -1
        low, high = sorted((sign * self.difference.low, sign * self.difference.high))
        if low > 0 and self.difference.p < 0.05:
            return "improved"
        return "worse" if high < 0 and self.difference.p < 0.05 else "no detectable change"

    def facts(self) -> dict[str, Any]:
        """As it stands in a receipt."""
        return {
            "higher_is_better": self.metric.higher_is_better,
            "before": {**asdict(self.before), "constant": self.constant},
            "after": {**asdict(self.after), "constant": False},
            "difference": asdict(self.difference),
        }


def compare(name: str, before: Table, after: Table) -> Comparison:
    """The comparison of one column of two tables over the same rows.

    Accuracies of single rows: McNemar's exact test or, where every pair was a tie before (a zero head, policy =
    anchor), the exact sign test against one half. All else, and accuracies where a group has several rows: paired
    bootstrap by group.
    """
    assert list(before.groups) == list(after.groups), "both sides are measured on the same examples"
    own = metric(name)
    a, b = before.columns[name], after.columns[name]
    if own.test == "accuracy":
        if bool((a == 0.5).all()):
            found = after.interval(name)
            half = Interval(0.5, 0.5, 0.5, found.n)
            return Comparison(own, half, found, statistics.against_half(b, after.groups), True)
        difference = statistics.paired_share(a, b, after.groups)
        return Comparison(own, before.interval(name), after.interval(name), difference)
    difference = statistics.paired_bootstrap(a, b, after.groups)
    return Comparison(own, before.interval(name), after.interval(name), difference)


@dataclass(frozen=True)
class Measurement:
    """Tables by kind ("pairs", "texts", "samples"), and sampled text for the eye."""

    tables: Mapping[str, Table]
    samples: Sequence[Mapping[str, Any]] = field(default_factory=list)

    def table_of(self, name: str) -> Table:
        """The table that holds this metric.

        Raises:
            ValueError: nothing measured holds it.
        """
        for table in self.tables.values():
            if name in table.columns:
                return table
        have = sorted({column for table in self.tables.values() for column in table.columns if known(column)})
        raise ValueError(f"metric {name!r} is not measured here; measured are {', '.join(have)}")

    def check_finite(self) -> None:
        """Look at every value.

        Raises:
            FloatingPointError: one is NaN or infinite; its column and group are named.
        """
        for table in self.tables.values():
            for name, column in table.columns.items():
                wrong = np.flatnonzero(~np.isfinite(column))
                if len(wrong):
                    group = table.groups[wrong[0]]
                    raise FloatingPointError(
                        f"{name} is {column[wrong[0]]} for {group[:60]!r} and {len(wrong) - 1} more"
                    )


def wins(chosen: ArrayLike, rejected: ArrayLike) -> Floats:
    """1 where chosen is higher, 0 where it is lower, 0.5 where they are equal."""
    a, b = np.asarray(chosen, dtype=np.float64), np.asarray(rejected, dtype=np.float64)
    return np.where(a == b, 0.5, (a > b).astype(np.float64))
