"""Lengths, limits and length bias, each number written out by hand."""

import math

import numpy as np
import pytest

from treeward.data.lengths import Lengths, bars, describe, longer_wins, measure, quantiles
from treeward.trees.text import Tree

NONE = np.full(4, math.nan)
FOUR = np.arange(4)
"""Four pairs of a prompt each."""
COUNTED = Lengths(
    np.array([10, 64, 127, 128]),
    np.array([[70, 10], [128, 128], [64, 200], [5, 300]]),
    np.array([64, 0, 3, 4]),
)


def test_shares_have_their_borders_at_64_and_127() -> None:
    found = describe(COUNTED, NONE, FOUR)
    assert [found[f"prompt_share_{s}"] for s in ("under_64", "64_127", "over_127")] == [0.25, 0.5, 0.25]
    assert [found[f"chosen_share_{s}"] for s in ("under_64", "64_127", "over_127")] == [0.25, 0.5, 0.25]
    assert [found[f"share_{s}"] for s in ("under_64", "64_127", "over_127")] == [0.25, 0.25, 0.5]
    assert found["length_of"] == "response"
    assert found["mean_length"] == found["response_mean"] == (70 + 10 + 128 + 128 + 64 + 200 + 5 + 300) / 8
    assert found["whole_mean"] == found["response_mean"] + (10 + 64 + 127 + 128) / 4


def test_what_a_limit_of_64_cuts() -> None:
    found = describe(COUNTED, NONE, FOUR, [64])
    expected = {
        "cut_prompts": 2, "cut_prompts_share": 0.5, "cut_responses": 5, "cut_responses_share": 0.625,
        "cut_chosen": 2, "cut_chosen_share": 0.5, "cut_rejected": 3, "cut_rejected_share": 0.75,
        "cut_paths": 7, "cut_paths_share": 0.875, "rows_over": 4, "prompt_fills": 3, "identical_at": 1,
        "mean_response_cut_to": 49.875, "mean_prompt_cut_to": (10 + 64 * 3) / 4,
    }  # fmt: skip
    assert {key: found[f"{key}_64"] for key in expected} == expected


def test_length_and_preference_without_ratings() -> None:
    sides = np.array([[3, 1], [1, 3], [2, 2], [4, 2]])
    lengths = Lengths(np.ones(4, dtype=np.int64), sides, np.zeros(4, dtype=np.int64))
    found = describe(lengths, NONE, FOUR)
    assert (found["longer_wins"], found["longer_wins_n"]) == (0.625, 4)
    assert (found["longer_wins_unequal"], found["longer_wins_unequal_n"]) == (pytest.approx(2 / 3), 3)
    assert found["length_correlation"] == pytest.approx(1 / math.sqrt(7.5 * 2))
    assert found["length_correlation_kind"].startswith("point-biserial")


def test_f73_longer_wins_counts_prompts() -> None:
    """Twelve prompts of ten pairs each, all of one kind: what is known is known of twelve. The ten pairs of the last
    prompt count as much as one pair would."""
    difference = np.repeat([1] * 7 + [-1] * 4 + [0], 10)
    found = longer_wins(difference, np.repeat(np.arange(12), 10))
    alone = longer_wins(difference[::10], np.arange(12))
    assert (found["longer_wins"], found["longer_wins_n"], found["longer_wins_unequal_n"]) == (0.625, 12, 11)
    assert found["longer_wins_high"] - found["longer_wins_low"] > 0.45
    assert [found[f"longer_wins_{end}"] for end in ("low", "high")] == pytest.approx(
        [alone[f"longer_wins_{end}"] for end in ("low", "high")]
    )


def test_constant_lengths_have_no_correlation() -> None:
    lengths = Lengths(np.ones(2, dtype=np.int64), np.full((2, 2), 3), np.zeros(2, dtype=np.int64))
    found = describe(lengths, np.array([1.0, 2.0]), FOUR[:2])
    assert found["length_correlation"] is None
    assert (found["longer_wins"], found["longer_wins_unequal"], found["longer_wins_unequal_n"]) == (0.5, None, 0)


def test_words_where_no_tokenizer_is_named() -> None:
    trees = [Tree("one two", ["a b c", "a b d e"]), Tree([{"role": "user", "content": "one"}], ["a", "b"])]
    found = measure(trees, 2, None)
    assert found.prompt.tolist() == [2, 1]
    assert found.responses.tolist() == [[3, 4], [1, 1]]
    assert found.shared.tolist() == [2, 0]
    assert found.templated is None


def test_quantiles_of_nothing_are_unknown() -> None:
    assert quantiles([])["mean"] is None
    assert quantiles([1, 2, 3, 4, 5])["median"] == 3
    assert quantiles([1, 2, 3, 4, 5])["q25"] == 2


def test_bars_hold_every_value_in_whole_steps() -> None:
    found = bars(np.array([*range(1000), 10**6]))
    assert found is not None
    assert sum(found["counts"]) == 1001
    assert found["edges"][-1] < 1100
    assert set(np.diff(found["edges"])) == {25.0}
    assert found["counts"][1:-1] == [25] * (len(found["counts"]) - 2)


def test_bars_of_ratings_stand_on_their_steps() -> None:
    found = bars(np.array([0.2, 0.4, 0.4, 0.6, 0.6, 0.6, 1.0]))
    assert found is not None
    assert found["counts"] == [1, 2, 3, 0, 1]
    assert found["edges"] == pytest.approx([0.1, 0.3, 0.5, 0.7, 0.9, 1.1])


@pytest.mark.parametrize("values", [[3.0, 3.0], [0.0]])
def test_bars_of_one_value(values: list[float]) -> None:
    found = bars(np.array(values))
    assert found is not None
    assert found["counts"] == [len(values)]
    assert bars(np.array([])) is None
