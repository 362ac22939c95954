"""Judged data: HelpSteer's markers and attributes, graded lists, and the shapes that each purpose needs."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from treeward.data import world
from treeward.data.formats import FORMATS, detect, graded, helpsteer, preference, spoken_turns
from treeward.data.prepare import DataConfig, prepare
from treeward.data.shapes import shaped
from treeward.trees.text import Response, Tree

FLAT = "Who wrote it?\n<extra_id_1>Assistant\nJane Austen.\nIn 1813.\n<extra_id_1>User\nAnd where?"
TURNS = [
    {"role": "user", "content": "Who wrote it?"},
    {"role": "assistant", "content": "Jane Austen.\nIn 1813."},
    {"role": "user", "content": "And where?"},
]


def test_flattened_turns_become_messages() -> None:
    assert spoken_turns(FLAT) == TURNS
    assert spoken_turns("no markers <extra_id_1> here") == [{"role": "user", "content": "no markers <extra_id_1> here"}]


def test_helpsteer2_binarized_columns() -> None:
    def side(answer: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": FLAT}, {"role": "assistant", "content": answer}]

    row = {
        "prompt": FLAT,
        "chosen": side("Bath."),
        "chosen_rating": 3.4,
        "rejected": side("No."),
        "rejected_rating": 2.0,
    }
    assert detect(row, row, "pairs") == "preference"
    (tree,) = preference(row)
    assert list(tree.prompt) == TURNS
    assert [(r.text, r.ratings) for r in tree.responses] == [("Bath.", (3.4,)), ("No.", (2.0,))]


def test_raw_helpsteer2_attributes() -> None:
    row: dict[str, Any] = {"prompt": FLAT, "response": "Bath.", "helpfulness": 4, "correctness": 3, "coherence": 4,
                           "complexity": 1, "verbosity": 0}  # fmt: skip
    assert detect(row, row, "pairs") == "helpsteer"
    (tree,) = helpsteer(row)
    assert list(tree.prompt) == TURNS
    assert tree.responses[0].ratings == (4.0, 3.0, 4.0, 1.0, 0.0)


def test_graded_lists() -> None:
    row = {"prompt": "q", "responses": ["a", "b"], "scores": [{"x": 1, "y": 4}, {"y": 2, "x": 3}]}
    assert detect(row, row, "graded") == "graded"
    assert [r.ratings for r in graded(row)[0].responses] == [(1.0, 4.0), (3.0, 2.0)]
    with pytest.raises(ValueError, match="2 responses but 1 scores"):
        graded({**row, "scores": [1]})
    with pytest.raises(ValueError, match="rates without names, and the rows before it rate x, y"):
        graded({**row, "scores": [{"x": 1, "y": 4}, 2]})


def rated(*grades: float, prompt: str = "q") -> list[Tree]:
    return [Tree(prompt, [Response(f"a{n}", grades=(g,))]) for n, g in enumerate(grades)]


def test_single_responses_to_a_prompt_are_one_tree() -> None:
    dropped: Counter[str] = Counter()
    found = shaped([*rated(1.0, 3.0), *rated(2.0, prompt="other")], "graded", dropped)
    assert [[r.text for r in tree.responses] for tree in found] == [["a1", "a0"], ["a0"]]
    assert not dropped


def test_rankings_stand_best_first_and_what_cannot_be_ranked_is_counted() -> None:
    dropped: Counter[str] = Counter()
    trees = [*rated(1.0, 3.0, 2.0), *rated(2.0, 2.0, prompt="even"), *rated(2.0, prompt="alone")]
    (found,) = shaped(trees, "ranked", dropped)
    assert [r.grades for r in found.responses] == [(3.0,), (2.0,), (1.0,)]
    assert dropped == {"nothing to rank": 1, "one response alone": 1}


def test_every_pair_of_a_list_that_differs_becomes_a_pair() -> None:
    found = shaped(rated(1.0, 3.0, 1.0), "pairs", Counter())
    assert [[r.text for r in tree.responses] for tree in found] == [["a1", "a0"], ["a1", "a2"]]


def test_a_given_pair_keeps_its_order_whatever_its_ratings() -> None:
    pair = Tree("q", [Response("a", score=1.0), Response("b", score=2.0)])
    assert shaped([pair], "pairs", Counter()) == [pair]


def test_a_pair_without_ratings_ranks_by_its_order() -> None:
    (found,) = shaped([Tree("q", ["a", "b"])], "ranked", Counter())
    assert [r.text for r in found.responses] == ["a", "b"]


def test_unrated_trees_cannot_be_graded() -> None:
    dropped: Counter[str] = Counter()
    assert shaped([Tree("q", ["a", "b"])], "graded", dropped) == []
    assert dropped == {"without a rating": 1}


def test_the_graded_world_is_prepared_for_every_judged_purpose() -> None:
    config = DataConfig(source="world-graded:200")
    tokenizer = world.tokenizer()
    by_grade = prepare(config, tokenizer, "graded")
    assert all(len(tree.ratings) == len(tree.branches) for tree in by_grade.train)
    pairs = prepare(config, tokenizer, "pairs")
    assert all(tree.grades[0] > tree.grades[1] for tree in pairs.train)
    assert prepare(config, tokenizer, "ranked").train == pairs.train


def test_the_worlds_graders_are_as_noisy_as_is_said() -> None:
    rows = world.graded(0, 3000)
    off = [
        (score - world.gold(row["prompt"], side)) / world.rating_noise(side)
        for row in rows for side, score in zip(row["responses"], row["scores"], strict=True)
    ]  # fmt: skip
    mean = sum(off) / len(off)
    assert abs(mean) < 0.05
    assert sum((x - mean) ** 2 for x in off) / len(off) == pytest.approx(1.0, abs=0.06)


@pytest.mark.parametrize("name", ["world:0", "world:many", "world-graded:-3"])
def test_a_senseless_count_of_the_world_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="after the colon stands a number"):
        prepare(DataConfig(source=name), world.tokenizer(), "pairs")


def test_every_format_is_reachable_by_name() -> None:
    assert {"graded", "helpsteer"} <= set(FORMATS)


@pytest.mark.data
def test_the_raw_graded_sets_load_by_renaming_columns(data_root: Path, real_tokenizer: Any) -> None:
    config = DataConfig(
        source=str(data_root / "graded" / "sfhot.json"), columns={"prompt": "source", "response": "system_output"}
    )
    found = prepare(config, real_tokenizer("gpt2"), "graded")
    ratings = [rating for part in found.parts.values() for tree in part for rating in tree.ratings]
    assert len(ratings) == 875
    assert {len(rating) for rating in ratings} == {3}
    assert min(map(min, ratings)) >= 1.0
    assert max(map(max, ratings)) <= 6.0
