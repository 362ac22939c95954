"""F73: intervals without their stated coverage. Each fault has a clean twin."""

import math
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from treeward.checks.receipt import decide
from treeward.evaluation.rewards import calibration_facts
from treeward.stats.tables import Table, compare


def prompts(n: int) -> list[str]:
    return [str(i) for i in range(n)]


def stated(n: int, sharpen: float, seed: int) -> NDArray[np.float64]:
    """P(chosen) of n pairs with `sharpen` times the true log-odds."""
    draw = np.random.default_rng(seed)
    truth = draw.beta(4, 2, n)
    truth = np.maximum(truth, 1 - truth)
    probability = 1 / (1 + ((1 - truth) / truth) ** sharpen)
    return np.where(draw.random(n) < truth, probability, 1 - probability)


def test_f73_a_calibrated_model_has_no_calibration_error_above_zero() -> None:
    """n=225: the bootstrap gave "0.057 to 0.141" for exact probabilities. Tripled log-odds must be detected."""
    sound, wrong = (calibration_facts(Table(prompts(225), {"p": stated(225, s, 3)}))["ece"] for s in (1.0, 3.0))
    assert "low" not in sound
    assert sound["value"] < sound["plug_in"] / 2
    assert sound["p"] > 0.05
    assert wrong["p"] < 0.01
    assert wrong["value"] > 0.1


@pytest.mark.parametrize("column", ["score", "accuracy", "ended"])
def test_f73_equal_outcomes_have_an_interval_of_positive_width(column: str) -> None:
    """64 prompts that did not change: no "+0 [+0, +0]", and no "changes from 0 are detectable"."""
    same = Table(prompts(64), {column: np.tile([1.0, 0.0], 32)})
    comparison = compare(column, same, same)
    reason = decide(comparison, []).reason
    assert comparison.outcome == "no detectable change"
    assert comparison.difference.low != 0.0
    assert comparison.difference.high != 0.0
    assert "changes from 0 are" not in reason
    assert "nan" not in reason
    changed = Table(prompts(64), {column: np.tile([1.0, 0.0], 32) * np.repeat([1.0, 0.0], 32)})
    assert compare(column, same, changed).outcome == "worse"


def test_f73_intervals_of_shares_stay_between_0_and_1() -> None:
    """`ended` of four samples a prompt was [.981, 1.003]."""
    groups = [str(i // 4) for i in range(256)]
    results = np.ones(256)
    results[[3, 77]] = 0.0
    interval = Table(groups, {"ended": results}).interval("ended")
    assert 0.9 < interval.low < interval.value < interval.high <= 1.0
    half = Table(groups, {"ended": np.random.default_rng(0).integers(0, 2, 256) * 1.0}).interval("ended")
    assert 0.4 < half.low < 0.5 < half.high < 0.6


def test_f73_a_mean_that_depends_on_few_prompts_is_marked_unreliable() -> None:
    """Three of 64 scores rose: intervals of such means cover half of what they should."""
    rare, many = np.zeros(64), np.random.default_rng(1).standard_normal(64)
    rare[:3] = 5.0
    tables = [Table(prompts(64), {"score": column}) for column in (np.zeros(64), rare, many)]
    assert asdict(compare("score", tables[0], tables[1]).difference)["reliable"] is False
    assert asdict(compare("score", tables[0], tables[2]).difference)["reliable"] is True
    assert compare("score", tables[0], tables[1]).difference.p == 0.25


def test_f73_outcome_interval_and_p_value_agree() -> None:
    """For any table, the outcome is a change exactly where p < 0.05."""
    draw: Any = np.random.default_rng(2)
    for n in (2, 5, 6, 12, 64):
        for column in ("score", "accuracy", "ended", "brier"):
            sides = [draw.integers(0, 2, n) * 1.0 for _ in range(2)]
            comparison = compare(column, *(Table(prompts(n), {column: side}) for side in sides))
            changed = comparison.outcome != "no detectable change"
            assert changed == (comparison.difference.p < 0.05) or math.isnan(comparison.difference.low)
