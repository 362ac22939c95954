"""A measurement is a table with one row an example; a comparison is two tables of the same examples.

Metrics carry their direction and their test, so a "best" can only be chosen the right way round.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from treeward.errors import UserError
from treeward.stats import intervals as statistics
from treeward.stats.intervals import Difference, Floats, Interval

Kind = Literal["accuracy", "bounded", "unbounded"]
"""What its values are, which decides interval and test (`stats.intervals`): results of pairs, other values in [0, 1],
or any numbers."""


@dataclass(frozen=True)
class Metric:
    """A named quantity: which way is better, and what its values are.

    `zero_at_start`: a start has 0 by construction, because it is measured against itself.
    """

    name: str
    higher_is_better: bool
    kind: Kind
    zero_at_start: bool = False


METRICS = {
    metric.name: metric
    for metric in (
        Metric("nll", False, "unbounded"),
        Metric("accuracy", True, "accuracy"),
        Metric("log_ratio_chosen", True, "unbounded", zero_at_start=True),
        Metric("log_ratio_rejected", False, "unbounded", zero_at_start=True),
        Metric("brier", False, "bounded"),
        Metric("mae", False, "unbounded"),
        Metric("crps", False, "unbounded"),
        Metric("cross_entropy", False, "unbounded"),
        Metric("score", True, "unbounded"),
        Metric("kl", False, "unbounded", zero_at_start=True),
        Metric("kl_token", False, "unbounded", zero_at_start=True),
        Metric("entropy", True, "unbounded"),
        Metric("start_nll", False, "unbounded"),
        Metric("self_bleu", False, "bounded"),
        Metric("repetition", False, "bounded"),
        Metric("length", True, "unbounded"),
        Metric("ended", True, "bounded"),
    )
}
"""What each of them means in words stands in `stats.formatting`."""


JUDGE = "judge:"
"""Columns of this family hold the raw scores of judges that training never used."""


def known(name: str) -> bool:
    """Whether a column is a metric: it has a direction and a test."""
    return name in METRICS or name.startswith(JUDGE)


def metric(name: str) -> Metric:
    """The metric of that name; `judge:NAME` is one for every judge.

    Raises:
        UserError: there is none; the known ones are listed.
    """
    if name.startswith(JUDGE):
        return Metric(name, True, "unbounded")
    if name not in METRICS:
        raise UserError(f"metric {name!r} is unknown; known are {', '.join(sorted(METRICS))}")
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
        """The mean over groups with its interval, clustered by group: Wilson's in [0, 1], else the t interval."""
        interval = statistics.clustered_mean if metric(name).kind == "unbounded" else statistics.share
        return interval(self.columns[name], self.groups)

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
        if not self.difference.excludes_zero:
            return "no detectable change"
        return "improved" if (self.difference.low > 0) == self.metric.higher_is_better else "worse"

    def facts(self) -> dict[str, Any]:
        """As it stands in a receipt."""
        return {
            "higher_is_better": self.metric.higher_is_better,
            "before": {**asdict(self.before), "constant": self.constant},
            "after": {**asdict(self.after), "constant": False},
            "difference": asdict(self.difference),
        }


def compare(name: str, before: Table, after: Table) -> Comparison:
    """The comparison of one column of two tables over the same rows, by the intervals and tests of `stats.intervals`.

    Accuracies where every pair was a tie before (a zero head, policy = reference) are held against one half. Metrics
    with `zero_at_start` that are 0 before have that value by construction.
    """
    assert list(before.groups) == list(after.groups), "both sides are measured on the same examples"
    about = metric(name)
    a, b = before.columns[name], after.columns[name]
    later = after.interval(name)
    if about.kind == "accuracy" and bool((a == 0.5).all()):
        half = Interval(0.5, 0.5, 0.5, later.n)
        return Comparison(about, half, later, statistics.against_half(b, after.groups), True)
    paired = statistics.paired_mean if about.kind == "unbounded" else statistics.paired_share
    difference = paired(a, b, after.groups)
    if about.zero_at_start and not a.any():
        return Comparison(about, Interval(0.0, 0.0, 0.0, later.n), later, difference, True)
    return Comparison(about, before.interval(name), later, difference)


@dataclass(frozen=True)
class Measurement:
    """Tables by kind ("pairs", "texts", "samples"), and sampled text for the eye."""

    tables: Mapping[str, Table]
    samples: Sequence[Mapping[str, Any]] = field(default_factory=list)

    def table_of(self, name: str) -> Table:
        """The table that holds this metric.

        Raises:
            UserError: nothing measured holds it.
        """
        for table in self.tables.values():
            if name in table.columns:
                return table
        have = sorted({column for table in self.tables.values() for column in table.columns if known(column)})
        raise UserError(f"metric {name!r} is not measured here; measured are {', '.join(have)}")

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
