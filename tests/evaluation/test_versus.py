"""What a receipt says of two sets of samples, beside the compared metrics."""

import json
import math
from typing import Any

import numpy as np
import pytest

from treeward.evaluation.versus import AGAIN, by_prompt, facts, win_rate
from treeward.runs.directory import finite
from treeward.stats.frontier import kl_bound
from treeward.stats.tables import Measurement, Table

K = 4
GROUPS = [f"p{n:02}" for n in range(40) for _ in range(K)]


def measurement(scores: Any, kl: float = 0.0, seed: int = 0, words: int = 50) -> Measurement:
    draw = np.random.default_rng(seed)
    ids = [draw.integers(0, words, 12).tolist() for _ in GROUPS]
    columns = {
        "score": np.asarray(scores, dtype=np.float64), "judge:other": -np.asarray(scores, dtype=np.float64),
        "kl": np.full(len(GROUPS), kl), "length": np.full(len(GROUPS), 12.0), "entropy": np.ones(len(GROUPS)),
        "start_nll": draw.normal(3, 0.1, len(GROUPS)), "ended": np.ones(len(GROUPS)),
    }  # fmt: skip
    rows = [{"group": group, "ids": sample} for group, sample in zip(GROUPS, ids, strict=True)]
    return Measurement({"samples": Table(GROUPS, columns)}, rows)


def scores(seed: int, gain: float = 0.0) -> Any:
    return np.random.default_rng(seed).normal(gain, 1, len(GROUPS))


def test_a_win_rate_counts_prompts_and_halves_ties() -> None:
    rate = win_rate(np.array([0.0, 0, 1, 1, 5, 5]), np.array([1.0, 1, 1, 1, 4, 4]), ["a", "a", "b", "b", "c", "c"])
    assert (rate["value"], rate["n"], rate["ties"]) == (0.5, 3, 1)
    assert (rate["low"], rate["high"]) == pytest.approx((0.12533, 0.87467), abs=1e-4)


def test_e1_a_model_against_itself() -> None:
    same = measurement(scores(0))
    result = facts(same, same)
    won = result["win_rate"]["score"]
    assert (won["value"], won["n"], won["ties"]) == (0.5, 40, 40)
    for name in ("token_entropy", "distinct_1", "distinct_2", "distinct_3", "perplexity"):
        gap = result["diversity"][name]["difference"]
        assert (gap["value"], gap["reliable"], math.isnan(gap["low"])) == (0, False, True)
    at = result["best_of_n"]["at_equal_kl"]
    assert (at["kl"], at["above"]["value"], at["above"]["low"], at["above"]["high"]) == pytest.approx((0, 0, 0, 0))


def test_a_better_policy_wins_and_lies_above_best_of_n() -> None:
    result = facts(measurement(scores(0)), measurement(scores(1, gain=3), kl=0.4))
    assert result["win_rate"]["score"]["low"] > 0.9
    assert result["win_rate"]["judge:other"]["high"] < 0.1
    assert result["best_of_n"]["at_equal_kl"]["above"]["low"] > 0
    bounds = [point["kl_bound"] for point in result["best_of_n"]["curve"]]
    assert bounds == pytest.approx([kl_bound(n) for n in range(1, K + 1)])
    assert result["best_of_n"]["curve"][0]["score"]["value"] == pytest.approx(scores(0).mean())


def test_past_the_curve_the_receipt_says_none() -> None:
    at = facts(measurement(scores(0)), measurement(scores(1), kl=5.0))["best_of_n"]["at_equal_kl"]
    assert at["score"] is None
    assert at["above"] is None


def test_the_start_against_itself_covers_zero() -> None:
    before = measurement(scores(0))
    before = Measurement({**before.tables, AGAIN: measurement(scores(1)).tables["samples"]}, before.samples)
    aa = facts(before, measurement(scores(2)))["aa"]
    assert aa["score"]["covers_zero"] is True
    drifted = Measurement({**before.tables, AGAIN: measurement(scores(1, gain=1)).tables["samples"]}, before.samples)
    assert facts(drifted, measurement(scores(2)))["aa"]["score"]["covers_zero"] is False


def test_scores_by_prompt_keep_their_prompt() -> None:
    table = Table(["b", "a", "b", "a"], {"score": np.array([3.0, 1, 4, 2])})
    assert by_prompt(table, "score").tolist() == [[1, 2], [3, 4]]


def test_without_samples_nothing_is_said_and_all_is_json() -> None:
    assert facts(Measurement({}), Measurement({})) == {}
    result = facts(measurement(scores(0)), measurement(scores(1)))
    assert json.loads(json.dumps(finite(result)))["diversity"]["budget"] == 12 * len(GROUPS)
