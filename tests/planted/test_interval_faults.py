"""F73: intervals that do not hold what they say. Each fault has a twin that stays silent."""

import math
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from treeward.checks.verdict import decide
from treeward.evaluation.rewards import calibration_facts
from treeward.stats.tables import Table, compare


def prompts(n: int) -> list[str]:
    return [str(i) for i in range(n)]


def stated(n: int, sharpen: float, seed: int) -> NDArray[np.float64]:
    """P(chosen) of n pairs, stated with `sharpen` times the true log-odds."""
    draw = np.random.default_rng(seed)
    truth = draw.beta(4, 2, n)
    truth = np.maximum(truth, 1 - truth)
    said = 1 / (1 + ((1 - truth) / truth) ** sharpen)
    return np.where(draw.random(n) < truth, said, 1 - said)


def test_f73_a_calibrated_model_is_not_given_an_error_with_an_interval_above_zero() -> None:
    """n=225: the bootstrap printed "0.057 to 0.141" for right probabilities. Three times the log-odds are found."""
    sound, wrong = (calibration_facts(Table(prompts(225), {"p": stated(225, s, 3)}))["ece"] for s in (1.0, 3.0))
    assert "low" not in sound
    assert sound["value"] < sound["plug_in"] / 2
    assert sound["p"] > 0.05
    assert wrong["p"] < 0.01
    assert wrong["value"] > 0.1


@pytest.mark.parametrize("column", ["score", "accuracy", "ended"])
def test_f73_equal_outcomes_do_not_exclude_everything_but_zero(column: str) -> None:
    """64 prompts that did not change: no "+0 [+0, +0]", and no "this n shows differences from 0"."""
    same = Table(prompts(64), {column: np.tile([1.0, 0.0], 32)})
    found = compare(column, same, same)
    reason = decide(found, []).reason
    assert found.outcome == "no detectable change"
    assert found.difference.low != 0.0
    assert found.difference.high != 0.0
    assert "differences from 0;" not in f"{reason};"
    assert "nan" not in reason
    changed = Table(prompts(64), {column: np.tile([1.0, 0.0], 32) * np.repeat([1.0, 0.0], 32)})
    assert compare(column, same, changed).outcome == "worse"


def test_f73_shares_stay_shares() -> None:
    """`ended` of four samples a prompt was [.981, 1.003]."""
    groups = [str(i // 4) for i in range(256)]
    results = np.ones(256)
    results[[3, 77]] = 0.0
    found = Table(groups, {"ended": results}).interval("ended")
    assert 0.9 < found.low < found.value < found.high <= 1.0
    half = Table(groups, {"ended": np.random.default_rng(0).integers(0, 2, 256) * 1.0}).interval("ended")
    assert 0.4 < half.low < 0.5 < half.high < 0.6


def test_f73_a_mean_that_hangs_on_a_few_prompts_says_so() -> None:
    """Three of 64 scores rose: intervals of such means cover half of what they should."""
    rare, many = np.zeros(64), np.random.default_rng(1).standard_normal(64)
    rare[:3] = 5.0
    tables = [Table(prompts(64), {"score": column}) for column in (np.zeros(64), rare, many)]
    assert asdict(compare("score", tables[0], tables[1]).difference)["reliable"] is False
    assert asdict(compare("score", tables[0], tables[2]).difference)["reliable"] is True
    assert compare("score", tables[0], tables[1]).difference.p == 0.25


def test_f73_a_score_and_its_verdict_agree() -> None:
    """Outcome, interval and p of any table say one thing."""
    draw: Any = np.random.default_rng(2)
    for n in (2, 5, 6, 12, 64):
        for column in ("score", "accuracy", "ended", "brier"):
            sides = [draw.integers(0, 2, n) * 1.0 for _ in range(2)]
            found = compare(column, *(Table(prompts(n), {column: side}) for side in sides))
            changed = found.outcome != "no detectable change"
            assert changed == (found.difference.p < 0.05) or math.isnan(found.difference.low)
