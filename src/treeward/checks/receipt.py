"""The receipt: what was checked, what moved, what the held-out metric did, and the verdict; as plain values."""

from collections.abc import Mapping, Sequence
from typing import Any

from treeward.checks.check import Check
from treeward.checks.closing import Movement
from treeward.checks.verdict import Verdict
from treeward.data.prepare import Prepared
from treeward.stats.tables import Comparison

SCHEMA = 1


def receipt(
    verdict: Verdict,
    main: Comparison,
    others: Sequence[Comparison],
    checks: Sequence[Check],
    movement: Movement,
    gradient_missing: Sequence[str],
    data: Prepared,
    require: str,
    scorer: str | None,
    extra: Mapping[str, Any],
) -> dict[str, Any]:
    """The content of receipt.json; `extra` holds seconds, tokens_per_second and what a command adds."""
    account = data.account
    return {
        "schema": SCHEMA,
        "verdict": verdict.word,
        "reason": verdict.reason,
        "metric": main.metric.name,
        "scorer": scorer,
        "require": require,
        **main.facts(),
        "metrics": {other.metric.name: other.facts() for other in others},
        "checks": [check.facts() for check in checks],
        "accepted": list(dict.fromkeys(check.id for check in checks if check.accepted)),
        "movement": {
            "relative_update": movement.relative_update,
            "by_module": movement.by_module,
            "parameters_unmoved": movement.parameters_unmoved,
            "gradient_missing": list(gradient_missing),
        },
        "data": {
            "verdict": data.verdict_facts(),
            "rows": account.rows, "used": account.used,
            "dropped": dict(account.dropped), "cut": dict(account.cut), "columns": dict(account.columns),
        },
        **extra,
    }  # fmt: skip
