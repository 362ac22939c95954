"""From a source to token trees: splits by group, pairing inside a split, truncation, and a complete account."""

import json
from pathlib import Path
from typing import Any

import pytest

from treeward.data import world
from treeward.data.prepare import DataConfig, Purpose, prepare
from treeward.data.splits import part_of

WORLD = world.tokenizer()


def written(path: Path, rows: list[dict[str, Any]]) -> str:
    """These rows as a jsonl file."""
    (path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path / "rows.jsonl")


def pairs(count: int) -> list[dict[str, Any]]:
    """World pairs without the column that only the world has."""
    return [{k: row[k] for k in ("prompt", "chosen", "rejected")} for row in world.pairs(1, count)]


def test_the_world_is_split_by_prompt_and_wholly_accounted_for() -> None:
    found = prepare(DataConfig(), WORLD, "pairs")
    assert found.account.rows == 4000
    assert found.account.used + sum(found.account.dropped.values()) == 4000
    assert found.account.used == sum(len(part) for part in found.parts.values())
    for part, trees in found.parts.items():
        assert {part_of(tree.group, 0, 0.1, 0.1) for tree in trees} == {part}
        assert len(trees) == len(found.texts[part])
    assert found.best_accuracy == pytest.approx(sum(r["best_accuracy"] for r in world.pairs(0)) / 4000)


def test_parts_do_not_depend_on_the_order_of_rows(tmp_path: Path) -> None:
    rows = pairs(300)
    sides = []
    for order in (rows, rows[::-1]):
        found = prepare(DataConfig(source=written(tmp_path, order)), WORLD, "pairs")
        sides.append({part: {(t.prompt, t.branches) for t in trees} for part, trees in found.parts.items()})
    assert sides[0] == sides[1]
    assert all(sides[0].values())


def test_a_repeated_prompt_lies_on_one_side(tmp_path: Path) -> None:
    rows = [
        {**row, "prompt": f"  {row['prompt'].upper()} " if n % 2 else row["prompt"]}
        for n, row in enumerate(pairs(40) * 4)
    ]
    found = prepare(DataConfig(source=written(tmp_path, rows), validation=0.3, test=0.3), WORLD, "prompts")
    groups = [{tree.group for tree in trees} for trees in found.parts.values()]
    assert all(groups)
    assert sum(map(len, groups)) == len(set.union(*groups)) == len({r["prompt"] for r in pairs(40)})


def test_a_split_column_goes_before_the_shares(tmp_path: Path) -> None:
    names = ["train", "dev", "eval", None]
    rows = [{**row, "split": names[n % 4]} for n, row in enumerate(pairs(80))]
    found = prepare(DataConfig(source=written(tmp_path, rows), validation=0.0, test=0.0), WORLD, "pairs")
    lost = found.account.dropped.total()
    assert len(found.parts["validation"]) in range(20 - lost, 21)
    assert len(found.parts["test"]) in range(20 - lost, 21)
    assert len(found.parts["train"]) in range(40 - lost, 41)
    assert found.account.used + lost == 80


def test_labelled_texts_are_split_first_and_then_paired(tmp_path: Path) -> None:
    adjectives = list(world.ADJECTIVE)
    rows = [{"text": f"the {a} is {j} .", "label": n % 2} for a in world.ASPECT for n, j in enumerate(adjectives)]
    config = DataConfig(source=written(tmp_path, rows), validation=0.2, test=0.2)
    found = prepare(config, WORLD, "pairs")
    label = {row["text"]: row["label"] for row in rows}
    for part, trees in found.texts.items():
        said = [response.text for tree in trees for response in tree.responses]
        assert len(said) == len(set(said)) > 40
        assert {part_of(text, 0, 0.2, 0.2) for text in said} == {part}
        assert all([label[r.text] for r in tree.responses] == [1, 0] for tree in trees)
    unpaired = found.account.dropped["text without a partner of the other label"]
    assert 2 * found.account.used + unpaired == len(rows)


def test_pairs_equal_after_truncation_are_dropped_and_counted(tmp_path: Path) -> None:
    same = {"prompt": "the plot is", "chosen": " very very very good .", "rejected": " very very very bad ."}
    other = {"prompt": "the cast is", "chosen": " good .", "rejected": " bad ."}
    config = DataConfig(source=written(tmp_path, [same, other]), max_response=3, validation=0.0, test=0.0)
    found = prepare(config, WORLD, "pairs")
    assert found.account.dropped == {"identical after truncation": 1}
    assert found.account.cut == {"response 0": 1, "response 1": 1}
    assert [text.prompt for text in found.texts["train"]] == ["the cast is"]
    assert (found.account.rows, found.account.used) == (2, 1)


def test_a_ranking_loses_the_branches_that_a_better_one_equals(tmp_path: Path) -> None:
    """`good` twice in the data; two that differ only after three tokens; a ranking of which one branch is left."""
    twice = {"prompt": "the plot is", "responses": [" good .", " bad .", " good ."], "scores": [3, 2, 1]}
    late = [" very very very good .", " bad .", " very very very bad ."]
    cut = {"prompt": "the cast is", "responses": late, "scores": [1, 2, 3]}
    gone = {"prompt": "the end is", "responses": late[::2], "scores": [1, 2]}
    config = DataConfig(source=written(tmp_path, [twice, cut, gone]), max_response=3, validation=0.0, test=0.0)
    found = prepare(config, WORLD, "ranked")
    assert [[r.text for r in text.responses] for text in found.texts["train"]] == [
        [" good .", " bad ."], [" very very very bad .", " bad ."]
    ]  # fmt: skip
    assert [tree.ratings for tree in found.train] == [((3.0,), (2.0,)), ((3.0,), (2.0,))]
    assert found.account.dropped == {"identical after truncation": 1}
    assert found.account.cut["identical after truncation"] == 1
    assert found.account.cut["response that stands in its ranking twice"] == 1


def labelled_texts(**columns: Any) -> list[dict[str, Any]]:
    return [{"text": f"the {a} is good .", "label": n % 2, **columns} for n, a in enumerate(world.ASPECT)]


def test_labelled_texts_keep_a_subset_that_both_sides_share(tmp_path: Path) -> None:
    rows = labelled_texts(subset="films")
    config = DataConfig(source=written(tmp_path, rows), validation=0.0, test=0.0)
    assert {tree.subset for tree in prepare(config, WORLD, "pairs").train} == {"films"}
    written(tmp_path, [row | {"subset": str(row["label"])} for row in rows])
    assert {tree.subset for tree in prepare(config, WORLD, "pairs").train} == {""}


def test_weights_of_texts_that_are_joined_are_refused_where_they_would_be_lost(tmp_path: Path) -> None:
    config = DataConfig(source=written(tmp_path, labelled_texts(weight=2)), validation=0.0, test=0.0)
    with pytest.raises(ValueError, match=rf"'weight' weighs {len(world.ASPECT)} single texts, .* in pairs"):
        prepare(config, WORLD, "pairs")
    assert {tree.weight for tree in prepare(config, WORLD, "unpaired").train} == {2.0}
    rated = [{"prompt": "the plot is", "response": f" {a} .", "scores": n, "weight": 2, "subset": "films"}
             for n, a in enumerate(("good", "bad"))]  # fmt: skip
    written(tmp_path, rated)
    (tree,) = prepare(config, WORLD, "pairs").train
    assert (tree.weight, tree.subset) == (2.0, "films")
    written(tmp_path, [rated[0], rated[1] | {"weight": 1, "subset": "books"}])
    with pytest.raises(ValueError, match="'weight' is 2 and 1 for responses to 'the plot is'"):
        prepare(config, WORLD, "pairs")


def test_margins_and_weights_are_read_and_said(tmp_path: Path) -> None:
    good = {"prompt": "the plot is", "chosen": " good .", "rejected": " bad ."}
    rows = [good | {"margin": 0.3}, good | {"prompt": "the cast is", "weight": 2}, good | {"weight": 1, "margin": None}]
    config = DataConfig(source=written(tmp_path, rows), validation=0.0, test=0.0)
    found = prepare(config, WORLD, "pairs")
    assert {(tree.margin, tree.weight) for tree in found.train} == {(0.3, 1.0), (None, 2.0), (None, 1.0)}
    assert str(found.account).endswith("; margin read in 1 rows; weight read in 1 rows")
    (single,) = [tree for tree in prepare(config, WORLD, "sft").train if tree.weight == 2]
    assert single.margin is None


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [("margin", 3, r"has a margin of 3.0; it lies in \[0, 1\]"), ("margin", "wide", "row 1: .*'wide'"),
     ("weight", -1, "has a weight of -1.0"), ("weight", "heavy", "row 1: .*'heavy'")],
)  # fmt: skip
def test_a_margin_or_weight_that_is_none_is_refused(column: str, value: object, said: str, tmp_path: Path) -> None:
    row = {"prompt": "the plot is", "chosen": " good .", "rejected": " bad .", column: value}
    with pytest.raises(ValueError, match=said):
        prepare(DataConfig(source=written(tmp_path, [row]), validation=0.0, test=0.0), WORLD, "pairs")


def test_dropped_rows_are_counted_by_reason(tmp_path: Path) -> None:
    good = {"prompt": "the plot is", "chosen": " good .", "rejected": " bad ."}
    rows = [good, {**good, "chosen": " "}, {**good, "rejected": " good ."}, {**good, "prompt": ""}]
    found = prepare(DataConfig(source=written(tmp_path, rows)), WORLD, "pairs")
    assert found.account.dropped == {"empty response": 1, "identical pair": 1, "empty prompt": 1}


@pytest.mark.parametrize(("purpose", "branches"), [("pairs", 2), ("sft", 1), ("prompts", 0)])
def test_a_purpose_sets_the_number_of_branches(purpose: Purpose, branches: int) -> None:
    found = prepare(DataConfig(limit=30), WORLD, purpose)
    assert {len(tree.branches) for trees in found.parts.values() for tree in trees} == {branches}


def test_the_held_out_part_is_the_test_part_else_what_the_validation_part_gives() -> None:
    both = prepare(DataConfig(limit=200), WORLD, "pairs")
    assert both.held_out is both.parts["test"]
    one = prepare(DataConfig(limit=200, test=0.0), WORLD, "pairs")
    assert one.held_out == []
    assert one.apart(chooses=False, seed=0).held_out == one.parts["validation"]


def test_columns_are_renamed(tmp_path: Path) -> None:
    rows = [{"question": "the plot is", "good": " good .", "bad": " bad ."}]
    names = {"prompt": "question", "chosen": "good", "rejected": "bad"}
    found = prepare(DataConfig(source=written(tmp_path, rows), columns=names), WORLD, "pairs")
    assert found.account.used == 1
    with pytest.raises(ValueError, match=r"data\.columns names 'worst'; the data has bad, good, question"):
        prepare(DataConfig(source=written(tmp_path, rows), columns={**names, "rejected": "worst"}), WORLD, "pairs")


@pytest.mark.parametrize(
    ("rows", "named", "message"),
    [
        ([{"prompt": "p", "chosen": "a"}], {"format": "preference"}, "row 1: it has no column 'rejected'"),
        ([{"text": "good", "label": 1, "split": "elsewhere"}], {}, "column 'split' holds 'elsewhere'"),
        ([{"text": "good"}], {}, "row 1: column 'label' is null"),
        ([{"prompt": "p", "chosen": " ", "rejected": "b"}], {}, "left of 1 rows made 0 pairs; .* 1 empty response"),
        ([{"answer": "x"}], {}, "the columns answer fit no format"),
    ],
)  # fmt: skip
def test_data_that_cannot_be_used_is_refused(
    rows: list[dict[str, Any]], named: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        prepare(DataConfig(source=written(tmp_path, rows), **named), WORLD, "pairs")


def test_one_row_with_an_empty_prompt_does_not_stop_the_others(tmp_path: Path) -> None:
    rows = [{"prompt": "the plot is", "completion": " good ."}, {"prompt": "", "completion": " bad ."}]
    found = prepare(DataConfig(source=written(tmp_path, rows)), WORLD, "sft")
    assert found.account.used == 1
    assert found.account.dropped == {"empty prompt": 1}


@pytest.mark.parametrize(
    "fields",
    [
        {"validation": -0.1}, {"test": -0.1}, {"validation": 0.5, "test": 0.5}, {"max_prompt": 0},
        {"max_response": 0}, {"limit": 0},
    ],
)  # fmt: skip
def test_bad_settings_are_refused_by_name(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="|".join(rf"data\.{name}" for name in fields)):
        DataConfig(**fields)
