"""Checks of fresh samples, and their effect on the verdict."""

from typing import Any

import numpy as np
import pytest

from treeward.checks.check import result
from treeward.checks.guards import collapse_guards, first_cut, first_rollout, judge_guards, k1_check, labels_check
from treeward.checks.receipt import decide
from treeward.stats.intervals import Difference, Interval
from treeward.stats.tables import Comparison, Table, metric


def change(name: str, low: float, high: float, p: float = 0.001) -> Comparison:
    interval = Interval(0.6, 0.55, 0.65, 400)
    return Comparison(metric(name), interval, interval, Difference((low + high) / 2, low, high, p, "test", 0.05))


def samples(shift: float, prompts: int = 60, k: int = 4, seed: int = 0) -> Table:
    draw = np.random.default_rng(seed)
    kl = draw.gamma(2.0, 0.5, prompts * k)
    groups = [str(n // k) for n in range(prompts * k)]
    return Table(groups, {"kl": kl, "k1": kl + draw.normal(shift, 1, len(kl))})


def test_f32_a_judge_that_falls_while_the_score_rises_makes_the_run_worse() -> None:
    score, judge = change("score", 0.1, 0.3), change("judge:other", -0.3, -0.1)
    checks = judge_guards([score, judge])
    assert [check.passed for check in checks] == [False]
    assert "judge other -0.2 [-0.3, -0.1]" in checks[0].detail
    verdict = decide(score, checks)
    assert (verdict.word, verdict.exit_code("improved"), verdict.exit_code("any")) == ("worse", 3, 0)
    assert "judges-agree (F32) FAILED" in verdict.reason


@pytest.mark.parametrize(
    ("score", "judge"),
    [((0.1, 0.3), (-0.3, 0.1)), ((0.1, 0.3), (0.1, 0.3)), ((-0.1, 0.3), (-0.3, -0.1)), ((-0.3, -0.1), (-0.3, -0.1))],
)
def test_a_judge_fails_where_both_intervals_exclude_zero(
    score: tuple[float, float], judge: tuple[float, float]
) -> None:
    assert judge_guards([change("score", *score), change("judge:other", *judge)])[0].passed is True


@pytest.mark.parametrize(
    ("ps", "failed"),
    [
        ([0.04], [0]), ([0.04, 0.9, 0.9], []), ([0.016, 0.9, 0.9], [0]), ([0.017, 0.9, 0.9], []),
        ([0.9, 0.01, 0.024], [1, 2]), ([0.9, 0.01, 0.026], [1]), ([0.008] * 6, [0, 1, 2, 3, 4, 5]), ([0.009] * 6, []),
    ],
)  # fmt: skip
def test_f32_p_values_of_several_judges_are_corrected(ps: list[float], failed: list[int]) -> None:
    """Holm (1979) over the judges: the smallest p against 0.05 / m, the next against 0.05 / (m - 1), and so on."""
    judges = [change(f"judge:{n}", -0.3, -0.1 if p < 0.05 else 0.1, p) for n, p in enumerate(ps)]
    checks = judge_guards([change("score", 0.1, 0.3), *judges])
    assert [n for n, check in enumerate(checks) if check.passed is False] == failed
    assert all(f"p over {len(ps)} judges" in check.detail for check in checks) == (len(ps) > 1)


def half(value: float, p: float) -> Difference:
    return Difference(value, value - 0.1, value + 0.1, p, "test", 0.05)


@pytest.mark.parametrize(
    ("held_out", "training", "passed"),
    [
        (half(-0.2, 1e-5), half(0.2, 1e-5), False), (half(-0.2, 1e-3), half(0.2, 1e-5), True),
        (half(-0.2, 1e-5), half(0.2, 1e-3), True), (half(-0.2, 1e-5), half(-0.2, 1e-5), True),
        (half(0.2, 1e-5), half(-0.2, 1e-5), True), (half(-0.2, 1e-5), half(0.0, 1.0), True),
    ],
)  # fmt: skip
def test_f05_is_broken_only_where_the_parts_are_clearly_on_opposite_sides(
    held_out: Difference, training: Difference, passed: bool
) -> None:
    check = labels_check(held_out, training)
    assert (check.id, check.passed) == ("F05", passed)
    word = "worse" if passed else "broken"
    assert decide(change("accuracy", -0.3, -0.1), [check]).word == word


def test_without_a_scorer_judges_are_compared_with_the_main_metric() -> None:
    main, judge = change("accuracy", 0.1, 0.3), change("judge:other", -0.3, -0.1)
    checks = judge_guards([main, judge])
    assert [check.passed for check in checks] == [False]
    assert checks[0].detail.startswith("accuracy +0.2 [+0.1, +0.3], judge other -0.2 [-0.3, -0.1]; p=")
    assert decide(main, checks).word == "worse"
    fallen_nll = change("nll", -0.3, -0.1)
    assert judge_guards([fallen_nll, judge, change("score", -0.1, 0.1)])[0].passed is False
    assert judge_guards([main]) == []


def bigrams(lost: float) -> dict[str, Any]:
    """Diversity facts of a start with 0.6 distinct bigrams, of which this share is lost, plus or minus a tenth."""
    difference = {"value": -0.6 * lost, "low": -0.6 * (lost + 0.1), "high": -0.6 * (lost - 0.1)}
    return {"distinct_2": {"before": {"value": 0.6, "low": 0.5, "high": 0.7, "n": 9}, "difference": difference}}


@pytest.mark.parametrize(
    ("name", "low", "failed"),
    [("repetition", 0.25, True), ("repetition", 0.15, False), ("start_nll", 1.5, True), ("start_nll", 0.7, False),
     ("kl_token", 2.1, True), ("kl_token", 0.6, False), ("kl", 24.0, False)],
)  # fmt: skip
def test_f24_fails_where_the_whole_interval_is_past_the_limit(name: str, low: float, failed: bool) -> None:
    main = change("score", 0.1, 0.3)
    checks = collapse_guards([main, change(name, low, low + 1)], bigrams(0.2), False)
    assert {check.id for check in checks} == {"F24"}
    assert [check.passed for check in checks if check.passed is False] == [False] * failed
    assert decide(main, checks).word == ("worse" if failed else "improved")
    assert collapse_guards([change("accuracy", 0.1, 0.3), change(name, low - 9, low + 1)], bigrams(0.2), False)[
        0
    ].passed


@pytest.mark.parametrize(("lost", "failed"), [(0.65, True), (0.55, False), (0.0, False)])
def test_f24_fails_where_most_bigrams_are_lost(lost: float, failed: bool) -> None:
    assert (collapse_guards([change("score", 0.1, 0.3)], bigrams(lost), False)[0].passed is False) == failed


def test_f24_is_not_checked_for_random_starts_and_for_nll() -> None:
    worse = [change("repetition", 0.5, 0.6), change("kl_token", 5.0, 6.0)]
    assert collapse_guards([change("score", 0.1, 0.3), *worse], bigrams(0.9), True) == []
    assert collapse_guards([change("nll", -0.3, -0.1), *worse], bigrams(0.9), False) == []


def test_a_failed_check_and_a_failed_guard_are_broken() -> None:
    guard, failed = result("judges-agree", passed=False), result("saved-equals-trained", passed=False)
    verdict = decide(change("score", 0.1, 0.3), [guard, failed])
    assert verdict.word == "broken"
    assert verdict.reason.startswith("saved-equals-trained (I12) FAILED")


def test_i17_some_prompt_must_have_samples_with_different_scores() -> None:
    assert first_rollout([[0.0, 0.0], [1.0, 1.5]], ["a"]).passed is True
    flat = first_rollout([[1.0, 1.0], [3.0, 3.0], [3.0, 3.0]], ["same"] * 4)
    assert flat.passed is False
    assert flat.id == "I17"
    assert "scores 1 to 3, median 3; samples 'same', 'same', 'same'" in flat.detail


@pytest.mark.parametrize(("ended", "passed"), [(2, True), (1, False)])
def test_i17_most_samples_must_end(ended: int, passed: bool) -> None:
    check = first_cut([True] * ended + [False] * (10 - ended), 48)
    assert check.passed is passed
    assert (check.id, check.guards) == ("I17", ("F30",))
    assert check.value == 1 - ended / 10
    assert f"{10 - ended} of 10 samples have no end within max_new_tokens 48" in check.detail


def test_k1_within_three_errors_passes_and_a_shift_fails() -> None:
    assert k1_check(samples(0.0), 1.0).passed is True
    check = k1_check(samples(0.5), 1.0)
    assert check.passed is False
    assert check.value is not None
    assert check.value > 5


@pytest.mark.slow
def test_k1_false_alarms_are_as_rare_with_few_prompts() -> None:
    alarms = sum(k1_check(samples(0.0, prompts=3, k=2, seed=n), 1.0).passed is False for n in range(2000))
    assert alarms <= 15


def test_k1_is_skipped_at_another_temperature_and_for_one_prompt() -> None:
    assert k1_check(samples(0.5), 0.7).passed is None
    assert k1_check(samples(0.5, prompts=1), 1.0).passed is None


@pytest.mark.parametrize(("share", "passed"), [(0.001, True), (0.02, False)])
def test_rare_tokens_of_a_nearly_deterministic_policy_are_no_fault(share: float, passed: bool) -> None:
    """All samples alike: the estimates differ by the tokens that no sample has, and there is no spread to judge by."""
    kl = np.full(8, 24.66)
    assert k1_check(Table(list("aabbccdd"), {"kl": kl, "k1": kl * (1 + share)}), 1.0).passed is passed


def test_equal_estimates_pass_without_any_spread() -> None:
    zeros = np.zeros(8)
    assert k1_check(Table(list("aabbccdd"), {"kl": zeros, "k1": zeros}), 1.0).passed is True
