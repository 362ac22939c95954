"""The word floor: separable sets are separated, shuffled labels are not, and the optimum is the equation's."""

import math
import random

import numpy as np
import pytest
from scipy.sparse import csr_array

from treeward.data.floor import features, fit, floor, words


def test_words_and_features() -> None:
    said = words("Good, good DOG's")
    assert said == {"good": 2, ",": 1, "dog": 1, "'": 1, "s": 1}
    texts = ["Good, good DOG's", "cat"]
    found = features(texts, {"dog": 0, "good": 1})
    assert found.toarray() == pytest.approx(np.array([[math.log(2), math.log(3)], [0, 0]]))
    known: dict[str, int] = {}
    assert features(texts, known, grow=True).shape == (2, 6)
    assert list(known) == ["good", ",", "dog", "'", "s", "cat"]


def test_the_weight_solves_the_stationary_equation() -> None:
    """Two pairs, one word, d = ln 2: 3 w = 2 ln 2 sigma(-w ln 2)."""
    (weight,) = fit(csr_array([[math.log(2)], [math.log(2)]]), l2=3.0)
    assert 3 * weight == pytest.approx(2 * math.log(2) / (1 + math.exp(weight * math.log(2))), abs=1e-5)
    assert weight == pytest.approx(0.2141, abs=1e-3)


def test_a_separable_set_is_separated() -> None:
    draw = random.Random(0)
    pairs = [(f"good w{draw.randrange(9)}", f"bad w{draw.randrange(9)}") for _ in range(60)]
    found = floor(pairs[:40], pairs[40:], range(20))
    assert found is not None
    assert found.accuracy.value == 1.0
    assert (found.accuracy.n, found.pairs) == (20, 40)


def test_shuffled_labels_are_at_chance() -> None:
    draw = random.Random(1)

    def text() -> str:
        return " ".join(f"w{draw.randrange(60)}" for _ in range(12))

    pairs = [(text(), text()) for _ in range(900)]
    found = floor(pairs[:600], pairs[600:], range(300))
    assert found is not None
    assert found.accuracy.low < 0.5 < found.accuracy.high


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
    found = floor([("a", "b")], [("c", "d"), ("e", "f")], [0, 1])
    assert found is not None
    assert (found.accuracy.value, found.words) == (0.5, 0)


def test_without_held_out_pairs_there_is_no_floor() -> None:
    assert floor([("a", "b")], [], []) is None
    assert floor([], [("a", "b")], [0]) is None
