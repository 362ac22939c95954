"""The verdict of a run in one word, and its receipt: what was checked, what moved, what the held-out metrics did.

The verdict is broken, worse, no detectable change or improved; the strongest that applies. The training loss has no
part in it. A failed check makes a run `broken`: its numbers mean nothing. A failed guard against learning the wrong
thing (`GUARDS`) makes it `worse`: training did what the reward asks for, and the result is not good. Otherwise the
interval of the main metric's change decides, and `improved` needs an interval that excludes zero.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from treeward.checks.check import Check
from treeward.checks.guards import Movement, collapse_guards, judge_guards
from treeward.checks.registry import REGISTRY
from treeward.data.store import Prepared
from treeward.evaluation import versus
from treeward.stats import formatting
from treeward.stats.intervals import Difference, against_half
from treeward.stats.tables import Comparison, Measurement, compare, is_metric

Word = Literal["improved", "no detectable change", "worse", "broken"]
GUARDS = ("F24", "F32")
"""Ids of the checks whose failure makes a run worse, not broken."""
BELOW_HALF = 0.01
"""p below which an accuracy that did not fall is `worse` because it is below one half. It is two-sided: together with
the 2.5 % for a fall, a run without effect at one half is called worse in at most 3 %."""
EXIT = {"improved": 0, "no detectable change": 3, "worse": 3, "broken": 4}
"""The exit code for each word."""
LENGTH_RULE = REGISTRY["beats-length-rule"]


@dataclass(frozen=True)
class Verdict:
    """The word, and the reason in one line."""

    word: Word
    reason: str

    def exit_code(self, require: str) -> int:
        """0 where `require` is met, 3 below it, 4 for broken. `require` is "improved" or "any"."""
        return 0 if require == "any" and self.word != "broken" else EXIT[self.word]


def decide(
    main: Comparison,
    checks: Sequence[Check],
    rule: Comparison | None = None,
    scorer: str | None = None,
    half: Difference | None = None,
    reward: str | None = None,
) -> Verdict:
    """The verdict of a run.

    Args:
        main: the main metric before and after.
        checks: all results of checks.
        rule: for reward models, the accuracy of the length rule (before) and of the model (after).
        scorer: the name of the scorer; without a judge the reason says that the score is by this scorer alone.
        half: the difference of the accuracy after training from one half.
        reward: the name of the scorer that training used; if it is `scorer`, the reason says so.
    """
    failed = [check for check in checks if check.passed is False]
    broken = [check for check in failed if check.id not in GUARDS]
    if broken:
        return Verdict("broken", str(broken[0]))
    if failed:
        return Verdict("worse", str(failed[0]))
    change = _describe(main)
    if main.metric.name == "score" and scorer is not None and not any(c.slug == "judges-agree" for c in checks):
        change += f", by its own reward {scorer}" if scorer == reward else f", by {scorer} alone"
    if half is not None and half.value < 0 and half.p < BELOW_HALF and main.outcome != "worse":
        return Verdict("worse", f"{change}: below one half (p={half.p:.2g})")
    if main.outcome == "improved" and rule is not None and rule.outcome != "improved":
        numbers_of_rule = f"{rule.before.value:.3g} against {rule.after.value:.3g}, p={rule.difference.p:.2g}"
        return Verdict(
            "no detectable change",
            f"{change}, but not above the rule that the longer response wins ({numbers_of_rule}; {LENGTH_RULE.slug}, "
            f"{LENGTH_RULE.id})",
        )
    if main.outcome == "no detectable change":
        detectable = main.difference.minimum_detectable
        if math.isnan(detectable):
            return Verdict(
                main.outcome, f"{change}; all values are equal, so the smallest detectable change is unknown"
            )
        return Verdict(main.outcome, f"{change}; with this n, changes from {detectable:.3g} are detectable")
    return Verdict(main.outcome, change)


def _describe(main: Comparison) -> str:
    """The change of the main metric with its interval and n."""
    before, after = formatting.value(asdict(main.before)), formatting.value(asdict(main.after))
    change = formatting.interval(asdict(main.difference), sign=True)
    return f"{main.metric.name} {before} -> {after}, change {change}, n={main.after.n}"


SCHEMA = 2
MAIN = ("score", "accuracy", "nll")
"""The main metric unless one is named: the first of these that was measured."""


@dataclass(frozen=True)
class Receipt:
    """The result of a run. `str(receipt)` is its verdict in one line; `facts()` is the content of receipt.json.

    `main` is the comparison that decides the verdict, `others` are all other metrics. `data` and `extra` are further
    facts as plain values; `extra` goes to the top level. `require` is the verdict that the user requires: "improved" or
    "any".
    """

    verdict: Verdict
    main: Comparison
    others: Sequence[Comparison]
    checks: Sequence[Check]
    require: str = "improved"
    scorer: str | None = None
    movement: Movement | None = None
    gradient_missing: Sequence[str] = ()
    data: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """The exit code of a command with this receipt."""
        return self.verdict.exit_code(self.require)

    def __str__(self) -> str:
        return f"{self.verdict.word}: {self.verdict.reason}"

    def facts(self) -> dict[str, Any]:
        """The content of receipt.json, as plain values."""
        facts: dict[str, Any] = {
            "schema": SCHEMA,
            "verdict": self.verdict.word,
            "reason": self.verdict.reason,
            "metric": self.main.metric.name,
            "scorer": self.scorer,
            "require": self.require,
            **self.main.facts(),
            "metrics": {other.metric.name: other.facts() for other in self.others},
            "checks": [check.facts() for check in self.checks],
            "accepted": list(dict.fromkeys(check.slug for check in self.checks if check.accepted)),
        }
        if self.movement is not None:
            facts["movement"] = {
                "relative_update": self.movement.relative_update,
                "by_module": self.movement.by_module,
                "parameters_unmoved": self.movement.parameters_unmoved,
                "gradient_missing": list(self.gradient_missing),
            }
        if self.data:
            facts["data"] = dict(self.data)
        return {**facts, **self.extra}


def receipt(
    before: Measurement,
    after: Measurement,
    checks: Sequence[Check],
    *,
    metric: str | None = None,
    rule: Comparison | None = None,
    scorer: str | None = None,
    reward: str | None = None,
    require: str = "improved",
    random_start: bool = False,
) -> Receipt:
    """The receipt of a trained model from its measurements before and after on the same held-out examples.

    Guards of the fresh samples (judges, repetition, KL, diversity) are added to the checks where samples were measured.

    Args:
        before: the start model's measurement.
        after: the trained model's.
        checks: all results of checks so far.
        metric: the main metric; by default the first of score, accuracy and NLL that was measured.
        rule: for reward models, the accuracy of the length rule (before) and of the model (after).
        scorer: the name of the scorer, for the reason of the verdict.
        reward: the name of the scorer that training used, if it used one.
        require: the verdict below which `exit_code` is 3: "improved" or "any".
        random_start: whether the start has random weights; its samples are then not text, and not guarded.

    Raises:
        UserError: the metric was not measured.
    """
    columns = [name for table in after.tables.values() for name in table.columns if is_metric(name)]
    main_metric = metric or next((name for name in MAIN if name in columns), columns[0])
    comparisons = compare_all(main_metric, before, after)
    facts = versus.facts(before, after)
    guards = judge_guards(comparisons)
    if "diversity" in facts:
        guards += collapse_guards(comparisons, facts["diversity"], random_start)
    main, *others = comparisons
    half = to_half(after) if main_metric == "accuracy" else None
    all_checks = [*checks, *guards]
    verdict = decide(main, all_checks, rule, scorer, half, reward)
    return Receipt(verdict, main, others, all_checks, require, scorer, extra=facts)


def compare_all(metric: str, before: Measurement, after: Measurement) -> list[Comparison]:
    """The comparison of the main metric, then of every other metric that both measured on the same groups."""
    names = dict.fromkeys(name for table in after.tables.values() for name in table.columns if is_metric(name))
    others = [
        name
        for name in names
        if name != metric and list(before.table_of(name).groups) == list(after.table_of(name).groups)
    ]
    return [compare(name, before.table_of(name), after.table_of(name)) for name in (metric, *others)]


def to_half(measurement: Measurement) -> Difference:
    """The difference of a measured accuracy from one half."""
    table = measurement.table_of("accuracy")
    return against_half(table.columns["accuracy"], table.groups)


def data_facts(data: Prepared) -> dict[str, Any]:
    """The entry `data` of a receipt: the rows read, used and dropped, and the groups of the verdict."""
    account = data.account
    return {
        "verdict": data.verdict_facts(),
        "rows": account.rows,
        "used": account.used,
        "dropped": dict(account.dropped),
        "cut": dict(account.cut),
        "columns": dict(account.columns),
    }
