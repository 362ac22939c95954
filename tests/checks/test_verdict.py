"""The verdict: the strongest word that applies, by the metric's own direction."""

import numpy as np
import pytest

from treeward.checks.check import below, result
from treeward.checks.receipt import decide
from treeward.stats.intervals import Difference, Interval, against_half
from treeward.stats.tables import Comparison, Table, compare, metric


def change(name: str, low: float, high: float, p: float = 0.001) -> Comparison:
    middle = (low + high) / 2
    interval = Interval(0.6, 0.55, 0.65, 400)
    return Comparison(metric(name), interval, interval, Difference(middle, low, high, p, "test", 0.05))


@pytest.mark.parametrize(
    ("name", "low", "high", "word"),
    [
        ("score", 0.1, 0.3, "improved"),
        ("score", -0.1, 0.3, "no detectable change"),
        ("score", -0.3, -0.1, "worse"),
        ("nll", 0.1, 0.3, "worse"),
        ("nll", -0.3, -0.1, "improved"),
    ],
)
def test_the_verdict_follows_interval_and_direction(name: str, low: float, high: float, word: str) -> None:
    assert decide(change(name, low, high), []).word == word


def test_a_failed_check_is_broken_whatever_the_metric_did() -> None:
    failed = below("saved-equals-trained", 1.0, 0.0)
    assert decide(change("score", 0.1, 0.3), [failed]).word == "broken"
    skipped = result("learning-rate-usual", passed=None)
    assert decide(change("score", 0.1, 0.3), [skipped]).word == "improved"


def test_exit_codes() -> None:
    improved, same = decide(change("score", 0.1, 0.3), []), decide(change("score", -0.1, 0.3), [])
    broken = decide(change("score", 0.1, 0.3), [below("saved-equals-trained", 1.0, 0.0)])
    assert [v.exit_code("improved") for v in (improved, same, broken)] == [0, 3, 4]
    assert [v.exit_code("any") for v in (improved, same, broken)] == [0, 0, 4]


def test_a_score_without_a_judge_is_by_its_scorer_alone() -> None:
    judged, text = result("judges-agree", passed=True), result("kl-limited", passed=True)
    assert "n=400, by gold alone" in decide(change("score", 0.1, 0.3), [text], scorer="gold").reason
    assert (
        "n=400, by gold alone; with this n, changes from 0.05 are detectable"
        in decide(change("score", -0.1, 0.3), [], scorer="gold").reason
    )
    assert "alone" not in decide(change("score", 0.1, 0.3), [judged], scorer="gold").reason
    assert "alone" not in decide(change("accuracy", 0.1, 0.3), [], scorer="gold").reason


def test_no_detectable_change_names_the_smallest_detectable_change() -> None:
    assert "0.05" in decide(change("score", -0.1, 0.3), []).reason


def test_a_model_against_itself_is_no_detectable_change() -> None:
    draw = np.random.default_rng(0)
    table = Table([str(n) for n in range(60)], {"score": draw.normal(size=60)})
    comparison = compare("score", table, table)
    assert (comparison.difference.value, comparison.difference.excludes_zero) == (0, False)
    verdict = decide(comparison, [])
    assert (verdict.word, "unknown" in verdict.reason, "nan" in verdict.reason) == ("no detectable change", True, False)


def test_a_constant_start_is_tested_against_one_half() -> None:
    groups = [str(n) for n in range(100)]
    before = Table(groups, {"accuracy": np.full(100, 0.5)})
    after = Table(groups, {"accuracy": np.array([1.0] * 70 + [0.0] * 30)})
    comparison = compare("accuracy", before, after)
    assert comparison.constant
    assert comparison.before == Interval(0.5, 0.5, 0.5, 100)
    assert comparison.difference.p == pytest.approx(7.85e-5, rel=0.01)


def test_a_constant_start_of_repeated_groups_is_tested_by_group() -> None:
    """Four groups, one of which holds most pairs: all of them right in three, none in the large one."""
    groups = ["a", "b", "c"] + ["d"] * 97
    before = Table(groups, {"accuracy": np.full(100, 0.5)})
    comparison = compare("accuracy", before, Table(groups, {"accuracy": np.array([1.0] * 3 + [0.0] * 97)}))
    assert comparison.constant
    assert (comparison.before.n, comparison.after.n, comparison.after.value) == (4, 4, 0.75)
    assert (comparison.difference.value, comparison.difference.test) == (0.25, "score test by group against one half")
    moved = compare("accuracy", Table(groups, {"accuracy": np.array([0.0] * 3 + [1.0] * 97)}), Table(
        groups, {"accuracy": np.array([1.0] * 3 + [0.0] * 97)}))  # fmt: skip
    assert (moved.difference.value, moved.outcome) == (0.5, "no detectable change")


def test_an_unmeasured_metric_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="accuracy, brier"):
        metric("acuracy")


def test_nan_never_passes_a_check() -> None:
    assert below("layout-equals-rows", float("nan"), 1e-4).passed is False


def test_f05_an_accuracy_below_one_half_is_worse_and_not_broken() -> None:
    """84 pairs, 26 of them right: a weak model after a few steps, from a start that is one half by construction."""
    groups = [str(n) for n in range(84)]
    after = Table(groups, {"accuracy": np.array([1.0] * 26 + [0.0] * 58)})
    comparison = compare("accuracy", Table(groups, {"accuracy": np.full(84, 0.5)}), after)
    assert decide(comparison, []).word == "worse"


@pytest.mark.parametrize(("right", "word"), [(180, "worse"), (225, "improved"), (240, "improved"), (350, "improved")])
def test_f05_a_rise_to_clearly_below_one_half_is_worse(right: int, word: str) -> None:
    """From 100 of 500 pairs: 180 are clearly below one half (p < 1e-9), 225 not by chance of one in a hundred."""
    groups = [str(n) for n in range(500)]
    before, after = (Table(groups, {"accuracy": np.array([1.0] * n + [0.0] * (500 - n))}) for n in (100, right))
    half = against_half(after.columns["accuracy"], groups)
    verdict = decide(compare("accuracy", before, after), [], half=half)
    assert verdict.word == word
    assert ("below one half" in verdict.reason) == (word == "worse")
