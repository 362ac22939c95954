"""`receipt(before, after, checks)`: the verdict from measurements, without a run."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from treeward.checks.check import below
from treeward.checks.receipt import SCHEMA, receipt
from treeward.errors import UserError
from treeward.stats.tables import Measurement, Table

GROUPS = [str(n) for n in range(64)]


def measurement(columns: Mapping[str, Any], kind: str = "pairs") -> Measurement:
    return Measurement({kind: Table(GROUPS, {name: np.asarray(column) for name, column in columns.items()})})


def noise(seed: int) -> Any:
    return np.random.default_rng(seed).normal(size=64)


BEFORE = measurement({"score": noise(0), "nll": 2 + noise(1)})
BETTER = measurement({"score": 1 + noise(0) + 0.1 * noise(2), "nll": 2 + noise(1) + 0.1 * noise(3)})


def test_an_improved_score_is_improved() -> None:
    checks = [below("layout-equals-rows", 0.0, 1e-4)]
    outcome = receipt(BEFORE, BETTER, checks, scorer="gold")
    assert (outcome.verdict.word, outcome.exit_code) == ("improved", 0)
    assert str(outcome).startswith("improved: score ")
    facts = outcome.facts()
    assert facts["schema"] == SCHEMA == 2
    assert (facts["metric"], list(facts["metrics"])) == ("score", ["nll"])
    assert [check["slug"] for check in facts["checks"]] == ["layout-equals-rows"]
    assert list(facts["checks"][0]) == [
        "id", "slug", "guards", "name", "stage", "passed", "value", "limit", "detail",
    ]  # fmt: skip
    assert not {"movement", "data"} & set(facts)


def test_a_model_against_itself_is_no_detectable_change() -> None:
    assert receipt(BEFORE, BEFORE, []).verdict.word == "no detectable change"
    assert receipt(BEFORE, BEFORE, []).exit_code == 3
    assert receipt(BEFORE, BEFORE, [], require="any").exit_code == 0


def test_a_failed_check_is_broken_and_a_falling_judge_is_worse() -> None:
    assert receipt(BEFORE, BETTER, [below("layout-equals-rows", 1.0, 1e-4)]).verdict.word == "broken"
    judged = [
        measurement({"score": a, "judge:other": b}) for a, b in ((noise(0), noise(4)), (1 + noise(0), noise(4) - 1))
    ]
    outcome = receipt(*judged, [])
    assert outcome.verdict.word == "worse"
    assert outcome.verdict.reason.startswith("judges-agree (F32) FAILED")


def test_the_metric_is_the_named_one_or_the_first_usual_one() -> None:
    assert receipt(BETTER, BEFORE, [], metric="nll").main.metric.name == "nll"
    assert receipt(BETTER, BEFORE, []).verdict.word == "worse"
    with pytest.raises(UserError, match="'kl' is not measured"):
        receipt(BEFORE, BETTER, [], metric="kl")


def test_an_accuracy_below_one_half_is_worse() -> None:
    right = [np.where(np.arange(64) < n, 1.0, 0.0) for n in (2, 12)]
    outcome = receipt(*(measurement({"accuracy": column}) for column in right), [])
    assert outcome.verdict.word == "worse"
    assert "below one half" in outcome.verdict.reason
