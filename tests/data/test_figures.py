"""Lengths, histograms and the word floor, by hand."""

import math
import random

import numpy as np
import pytest
from scipy.sparse import csr_array

from treeward.data.figures import Lengths, bars, describe, features, fit, floor, longer_wins, measure, quantiles, words
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
    result = describe(COUNTED, NONE, FOUR)
    assert [result[f"prompt_share_{s}"] for s in ("under_64", "64_127", "over_127")] == [0.25, 0.5, 0.25]
    assert [result[f"chosen_share_{s}"] for s in ("under_64", "64_127", "over_127")] == [0.25, 0.5, 0.25]
    assert [result[f"share_{s}"] for s in ("under_64", "64_127", "over_127")] == [0.25, 0.25, 0.5]
    assert result["length_of"] == "response"
    assert result["mean_length"] == result["response_mean"] == (70 + 10 + 128 + 128 + 64 + 200 + 5 + 300) / 8
    assert result["whole_mean"] == result["response_mean"] + (10 + 64 + 127 + 128) / 4


def test_what_a_limit_of_64_cuts() -> None:
    result = describe(COUNTED, NONE, FOUR, [64])
    expected = {
        "cut_prompts": 2, "cut_prompts_share": 0.5, "cut_responses": 5, "cut_responses_share": 0.625,
        "cut_chosen": 2, "cut_chosen_share": 0.5, "cut_rejected": 3, "cut_rejected_share": 0.75,
        "cut_paths": 7, "cut_paths_share": 0.875, "rows_over": 4, "prompt_fills": 3, "identical_at": 1,
        "mean_response_cut_to": 49.875, "mean_prompt_cut_to": (10 + 64 * 3) / 4,
    }  # fmt: skip
    assert {key: result[f"{key}_64"] for key in expected} == expected


def test_length_and_preference_without_ratings() -> None:
    sides = np.array([[3, 1], [1, 3], [2, 2], [4, 2]])
    lengths = Lengths(np.ones(4, dtype=np.int64), sides, np.zeros(4, dtype=np.int64))
    result = describe(lengths, NONE, FOUR)
    assert (result["longer_wins"], result["longer_wins_n"]) == (0.625, 4)
    assert (result["longer_wins_unequal"], result["longer_wins_unequal_n"]) == (pytest.approx(2 / 3), 3)
    assert result["length_correlation"] == pytest.approx(1 / math.sqrt(7.5 * 2))
    assert result["length_correlation_kind"].startswith("point-biserial")


def test_f73_longer_wins_counts_prompts() -> None:
    """Twelve prompts of ten pairs each, all of one kind: what is known is known of twelve. The ten pairs of the last
    prompt count as much as one pair would."""
    difference = np.repeat([1] * 7 + [-1] * 4 + [0], 10)
    result = longer_wins(difference, np.repeat(np.arange(12), 10))
    alone = longer_wins(difference[::10], np.arange(12))
    assert (result["longer_wins"], result["longer_wins_n"], result["longer_wins_unequal_n"]) == (0.625, 12, 11)
    assert result["longer_wins_high"] - result["longer_wins_low"] > 0.45
    assert [result[f"longer_wins_{end}"] for end in ("low", "high")] == pytest.approx(
        [alone[f"longer_wins_{end}"] for end in ("low", "high")]
    )


def test_constant_lengths_have_no_correlation() -> None:
    lengths = Lengths(np.ones(2, dtype=np.int64), np.full((2, 2), 3), np.zeros(2, dtype=np.int64))
    result = describe(lengths, np.array([1.0, 2.0]), FOUR[:2])
    assert result["length_correlation"] is None
    assert (result["longer_wins"], result["longer_wins_unequal"], result["longer_wins_unequal_n"]) == (0.5, None, 0)


def test_words_where_no_tokenizer_is_named() -> None:
    trees = [Tree("one two", ["a b c", "a b d e"]), Tree([{"role": "user", "content": "one"}], ["a", "b"])]
    result = measure(trees, 2, None)
    assert result.prompt.tolist() == [2, 1]
    assert result.responses.tolist() == [[3, 4], [1, 1]]
    assert result.shared.tolist() == [2, 0]
    assert result.templated is None


def test_quantiles_of_nothing_are_unknown() -> None:
    assert quantiles([])["mean"] is None
    assert quantiles([1, 2, 3, 4, 5])["median"] == 3
    assert quantiles([1, 2, 3, 4, 5])["q25"] == 2


def test_bars_hold_every_value_in_whole_steps() -> None:
    result = bars(np.array([*range(1000), 10**6]))
    assert result is not None
    assert sum(result["counts"]) == 1001
    assert result["edges"][-1] < 1100
    assert set(np.diff(result["edges"])) == {25.0}
    assert result["counts"][1:-1] == [25] * (len(result["counts"]) - 2)


def test_bars_of_ratings_stand_on_their_steps() -> None:
    result = bars(np.array([0.2, 0.4, 0.4, 0.6, 0.6, 0.6, 1.0]))
    assert result is not None
    assert result["counts"] == [1, 2, 3, 0, 1]
    assert result["edges"] == pytest.approx([0.1, 0.3, 0.5, 0.7, 0.9, 1.1])


@pytest.mark.parametrize("values", [[3.0, 3.0], [0.0]])
def test_bars_of_one_value(values: list[float]) -> None:
    result = bars(np.array(values))
    assert result is not None
    assert result["counts"] == [len(values)]
    assert bars(np.array([])) is None


def test_words_and_features() -> None:
    counts = words("Good, good DOG's")
    assert counts == {"good": 2, ",": 1, "dog": 1, "'": 1, "s": 1}
    texts = ["Good, good DOG's", "cat"]
    result = features(texts, {"dog": 0, "good": 1})
    assert result.toarray() == pytest.approx(np.array([[math.log(2), math.log(3)], [0, 0]]))
    vocabulary: dict[str, int] = {}
    assert features(texts, vocabulary, grow=True).shape == (2, 6)
    assert list(vocabulary) == ["good", ",", "dog", "'", "s", "cat"]


def test_the_weight_solves_the_stationary_equation() -> None:
    """Two pairs, one word, d = ln 2: 3 w = 2 ln 2 sigma(-w ln 2)."""
    (weight,) = fit(csr_array([[math.log(2)], [math.log(2)]]), l2=3.0)
    assert 3 * weight == pytest.approx(2 * math.log(2) / (1 + math.exp(weight * math.log(2))), abs=1e-5)
    assert weight == pytest.approx(0.2141, abs=1e-3)


def test_a_separable_set_is_separated() -> None:
    draw = random.Random(0)
    pairs = [(f"good w{draw.randrange(9)}", f"bad w{draw.randrange(9)}") for _ in range(60)]
    result = floor(pairs[:40], pairs[40:], range(20))
    assert result is not None
    assert result.accuracy.value == 1.0
    assert (result.accuracy.n, result.pairs) == (20, 40)


def test_shuffled_labels_are_at_chance() -> None:
    draw = random.Random(1)

    def text() -> str:
        return " ".join(f"w{draw.randrange(60)}" for _ in range(12))

    pairs = [(text(), text()) for _ in range(900)]
    result = floor(pairs[:600], pairs[600:], range(300))
    assert result is not None
    assert result.accuracy.low < 0.5 < result.accuracy.high


def test_f73_the_floor_counts_prompts() -> None:
    test = [("good", "bad")] * 60 + [("bad", "good")] * 20
    alone, grouped = (
        floor([("good", "bad")] * 9, test, groups) for groups in (range(80), [n // 20 for n in range(80)])
    )
    assert alone is not None
    assert grouped is not None
    assert (alone.accuracy.value, alone.accuracy.n, grouped.accuracy.value, grouped.accuracy.n) == (0.75, 80, 0.75, 4)
    assert grouped.accuracy.low < alone.accuracy.low - 0.2


def test_unknown_words_are_ties() -> None:
    result = floor([("a", "b")], [("c", "d"), ("e", "f")], [0, 1])
    assert result is not None
    assert (result.accuracy.value, result.words) == (0.5, 0)


def test_without_held_out_pairs_there_is_no_floor() -> None:
    assert floor([("a", "b")], [], []) is None
    assert floor([], [("a", "b")], [0]) is None
