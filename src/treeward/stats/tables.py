"""Metrics, tables of measured values, and comparisons of two tables.

A table has one row per held-out example, and a column per metric. A comparison is one metric in two tables of the same
examples. A metric has a direction and a kind of values, which fix what "better" means and which test is used.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from treeward.errors import UserError
from treeward.stats.intervals import (
    Difference,
    Floats,
    Interval,
    against_half,
    clustered_mean,
    paired_mean,
    paired_share,
    share,
)

Kind = Literal["accuracy", "bounded", "unbounded"]
"""The kind of a metric's values, which decides interval and test (`treeward.stats.intervals`): 1, 0 or one half per
pair; other values in [0, 1]; any numbers."""


@dataclass(frozen=True)
class Metric:
    """A named quantity.

    Attributes:
        name: The name of its column and in receipts.
        higher_is_better: Its direction.
        kind: The kind of its values.
        zero_at_start: True if it measures a distance from the start model, so that the start model has exactly 0.
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
"""The built-in metrics by name. `treeward.stats.formatting.FIGURES` describes each in words."""


JUDGE = "judge:"
"""Prefix of the columns with the scores of judges: `judge:NAME`."""


def is_metric(name: str) -> bool:
    """Whether a column is a metric. Other columns (such as lengths of parts) have no direction and no test."""
    return name in METRICS or name.startswith(JUDGE)


def metric(name: str) -> Metric:
    """The metric with this name; `judge:NAME` is a metric for every judge.

    Raises:
        UserError: There is none; all metrics are listed.
    """
    if name.startswith(JUDGE):
        return Metric(name, True, "unbounded")
    if name not in METRICS:
        raise UserError(f"metric {name!r} is unknown; known are {', '.join(sorted(METRICS))}")
    return METRICS[name]


@dataclass(frozen=True)
class Table:
    """Measured values with one row per example.

    Attributes:
        groups: The group (prompt) of each row.
        columns: One value per row, by metric.
    """

    groups: Sequence[str]
    columns: Mapping[str, Floats]

    def __post_init__(self) -> None:
        for name, column in self.columns.items():
            assert len(column) == len(self.groups), f"column {name} has {len(column)} values, not {len(self.groups)}"

    def interval(self, name: str) -> Interval:
        """The mean over groups with its interval: Wilson's for values in [0, 1], else the t interval."""
        interval = clustered_mean if metric(name).kind == "unbounded" else share
        return interval(self.columns[name], self.groups)

    def mean(self, name: str) -> float:
        """The mean over groups."""
        return self.interval(name).value

    def rows(self) -> list[dict[str, Any]]:
        """One dictionary per row: its group and its values."""
        return [
            {"group": group, **{name: float(column[i]) for name, column in self.columns.items()}}
            for i, group in enumerate(self.groups)
        ]


@dataclass(frozen=True)
class Comparison:
    """One metric before and after training, on the same examples.

    Attributes:
        metric: The metric.
        before: The start model's mean.
        after: The trained model's mean.
        difference: The paired difference, after minus before.
        constant: True if the start model has this value by construction, so that it has no sampling error.
    """

    metric: Metric
    before: Interval
    after: Interval
    difference: Difference
    constant: bool = False

    @property
    def outcome(self) -> Literal["improved", "no detectable change", "worse"]:
        """The verdict on this metric: whether the difference excludes zero, and in which direction."""
        if not self.difference.excludes_zero:
            return "no detectable change"
        return "improved" if (self.difference.low > 0) == self.metric.higher_is_better else "worse"

    def facts(self) -> dict[str, Any]:
        """The comparison as written to a receipt."""
        return {
            "higher_is_better": self.metric.higher_is_better,
            "before": {**asdict(self.before), "constant": self.constant},
            "after": {**asdict(self.after), "constant": False},
            "difference": asdict(self.difference),
        }


def compare(name: str, before: Table, after: Table) -> Comparison:
    """Compare one column of two tables with the same rows, by the tests of `treeward.stats.intervals`.

    Two starts are constant by construction: an accuracy where every pair is a tie before training (a zero head, or the
    policy is the reference) is compared with one half, and a metric with `zero_at_start` that is 0 is compared with 0.
    """
    assert list(before.groups) == list(after.groups), "both sides are measured on the same examples"
    compared = metric(name)
    values_before, values_after = before.columns[name], after.columns[name]
    mean_after = after.interval(name)
    if compared.kind == "accuracy" and bool((values_before == 0.5).all()):
        half = Interval(0.5, 0.5, 0.5, mean_after.n)
        return Comparison(compared, half, mean_after, against_half(values_after, after.groups), True)
    paired = paired_mean if compared.kind == "unbounded" else paired_share
    difference = paired(values_before, values_after, after.groups)
    if compared.zero_at_start and not values_before.any():
        return Comparison(compared, Interval(0.0, 0.0, 0.0, mean_after.n), mean_after, difference, True)
    return Comparison(compared, before.interval(name), mean_after, difference)


@dataclass(frozen=True)
class Measurement:
    """All that was measured of one model.

    Attributes:
        tables: The tables by what a row is: "pairs", "texts", "samples", "graded".
        samples: Prompts, responses and scores, as written to samples.jsonl.
    """

    tables: Mapping[str, Table]
    samples: Sequence[Mapping[str, Any]] = field(default_factory=list)

    def table_of(self, name: str) -> Table:
        """The table with this metric.

        Raises:
            UserError: The metric was not measured.
        """
        for table in self.tables.values():
            if name in table.columns:
                return table
        measured = sorted({column for table in self.tables.values() for column in table.columns if is_metric(column)})
        raise UserError(f"metric {name!r} is not measured here; measured are {', '.join(measured)}")

    def check_finite(self) -> None:
        """Check every value.

        Raises:
            FloatingPointError: A value is NaN or infinite; its column and group are named.
        """
        for table in self.tables.values():
            for name, column in table.columns.items():
                rows = np.flatnonzero(~np.isfinite(column))
                if len(rows):
                    group = table.groups[rows[0]]
                    raise FloatingPointError(f"{name} is {column[rows[0]]} for {group[:60]!r} and {len(rows) - 1} more")


def wins(chosen: ArrayLike, rejected: ArrayLike) -> Floats:
    """1 where the chosen score is higher, 0 where it is lower, 0.5 where they are equal."""
    a, b = np.asarray(chosen, dtype=np.float64), np.asarray(rejected, dtype=np.float64)
    return np.where(a == b, 0.5, (a > b).astype(np.float64))
