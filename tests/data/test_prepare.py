"""From a source to token trees: splits by group, pairing, truncation, the account; in memory and on disk."""

import json
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from treeward.data import prepare as preparing
from treeward.data import sources, world
from treeward.data.formats import Purpose
from treeward.data.prepare import DataConfig, Reading, prepare, prepare_to
from treeward.data.splits import Part, edges, part_at, unit

WORLD = world.tokenizer()


def part_of(group: str, seed: int, validation: float, test: float) -> Part:
    """The part of a group with expected shares, from its hash alone."""
    return part_at(unit(group, seed), edges((), validation, test))


def written(path: Path, rows: list[dict[str, Any]]) -> str:
    """These rows as a jsonl file."""
    (path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path / "rows.jsonl")


def pairs(count: int) -> list[dict[str, Any]]:
    """World pairs without the column that only the world has."""
    return [{k: row[k] for k in ("prompt", "chosen", "rejected")} for row in world.pairs(1, count)]


@pytest.mark.slow
def test_the_world_is_split_by_prompt_and_wholly_accounted_for() -> None:
    data = prepare(DataConfig(), WORLD, "pairs")
    assert data.account.rows == 4000
    assert data.account.used + sum(data.account.dropped.values()) == 4000
    assert data.account.used == sum(len(part) for part in data.parts.values())
    for part, trees in data.parts.items():
        assert {part_of(tree.group, 0, 0.1, 0.1) for tree in trees} == {part}
        assert len(trees) == len(data.texts[part])
    assert data.best_accuracy == pytest.approx(sum(r["best_accuracy"] for r in world.pairs(0)) / 4000)


def test_parts_do_not_depend_on_the_order_of_rows(tmp_path: Path) -> None:
    rows = pairs(300)
    sides = []
    for order in (rows, rows[::-1]):
        data = prepare(DataConfig(source=written(tmp_path, order)), WORLD, "pairs")
        sides.append({part: {(t.prompt, t.branches) for t in trees} for part, trees in data.parts.items()})
    assert sides[0] == sides[1]
    assert all(sides[0].values())


def test_a_repeated_prompt_lies_on_one_side(tmp_path: Path) -> None:
    rows = [
        {**row, "prompt": f"  {row['prompt'].upper()} " if n % 2 else row["prompt"]}
        for n, row in enumerate(pairs(40) * 4)
    ]
    data = prepare(DataConfig(source=written(tmp_path, rows), validation=0.3, test=0.3), WORLD, "prompts")
    groups = [{tree.group for tree in trees} for trees in data.parts.values()]
    assert all(groups)
    assert sum(map(len, groups)) == len(set.union(*groups)) == len({r["prompt"] for r in pairs(40)})


def test_a_split_column_goes_before_the_shares(tmp_path: Path) -> None:
    names = ["train", "dev", "eval", None]
    rows = [{**row, "split": names[n % 4]} for n, row in enumerate(pairs(80))]
    data = prepare(DataConfig(source=written(tmp_path, rows), validation=0.0, test=0.0), WORLD, "pairs")
    lost = data.account.dropped.total()
    assert len(data.parts["validation"]) in range(20 - lost, 21)
    assert len(data.parts["test"]) in range(20 - lost, 21)
    assert len(data.parts["train"]) in range(40 - lost, 41)
    assert data.account.used + lost == 80


def test_labelled_texts_are_split_first_and_then_paired(tmp_path: Path) -> None:
    adjectives = list(world.ADJECTIVE)
    rows = [{"text": f"the {a} is {j} .", "label": n % 2} for a in world.ASPECT for n, j in enumerate(adjectives)]
    config = DataConfig(source=written(tmp_path, rows), validation=0.2, test=0.2)
    data = prepare(config, WORLD, "pairs")
    label = {row["text"]: row["label"] for row in rows}
    for part, trees in data.texts.items():
        texts = [response.text for tree in trees for response in tree.responses]
        assert len(texts) == len(set(texts)) > 40
        assert {part_of(text, 0, 0.2, 0.2) for text in texts} == {part}
        assert all([label[r.text] for r in tree.responses] == [1, 0] for tree in trees)
    unpaired = data.account.dropped["text without a partner of the other label"]
    assert 2 * data.account.used + unpaired == len(rows)


def test_pairs_equal_after_truncation_are_dropped_and_counted(tmp_path: Path) -> None:
    same = {"prompt": "the plot is", "chosen": " very very very good .", "rejected": " very very very bad ."}
    other = {"prompt": "the cast is", "chosen": " good .", "rejected": " bad ."}
    config = DataConfig(source=written(tmp_path, [same, other]), max_response=3, validation=0.0, test=0.0)
    data = prepare(config, WORLD, "pairs")
    assert data.account.dropped == {"identical after truncation": 1}
    assert data.account.cut == {"response 0": 1, "response 1": 1}
    assert [text.prompt for text in data.texts["train"]] == ["the cast is"]
    assert (data.account.rows, data.account.used) == (2, 1)


def test_a_ranking_loses_the_branches_that_a_better_one_equals(tmp_path: Path) -> None:
    """`good` twice in the data; two that differ only after three tokens; a ranking of which one branch is left."""
    twice = {"prompt": "the plot is", "responses": [" good .", " bad .", " good ."], "scores": [3, 2, 1]}
    late = [" very very very good .", " bad .", " very very very bad ."]
    cut = {"prompt": "the cast is", "responses": late, "scores": [1, 2, 3]}
    gone = {"prompt": "the end is", "responses": late[::2], "scores": [1, 2]}
    config = DataConfig(source=written(tmp_path, [twice, cut, gone]), max_response=3, validation=0.0, test=0.0)
    data = prepare(config, WORLD, "ranked")
    assert [[r.text for r in text.responses] for text in data.texts["train"]] == [
        [" good .", " bad ."], [" very very very bad .", " bad ."]
    ]  # fmt: skip
    assert [tree.ratings for tree in data.train] == [((3.0,), (2.0,)), ((3.0,), (2.0,))]
    assert data.account.dropped == {"identical after truncation": 1}
    assert data.account.cut["identical after truncation"] == 1
    assert data.account.cut["response that stands in its ranking twice"] == 1


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


def test_margins_and_weights_are_read_and_reported(tmp_path: Path) -> None:
    good = {"prompt": "the plot is", "chosen": " good .", "rejected": " bad ."}
    rows = [good | {"margin": 0.3}, good | {"prompt": "the cast is", "weight": 2}, good | {"weight": 1, "margin": None}]
    config = DataConfig(source=written(tmp_path, rows), validation=0.0, test=0.0)
    data = prepare(config, WORLD, "pairs")
    assert {(tree.margin, tree.weight) for tree in data.train} == {(0.3, 1.0), (None, 2.0), (None, 1.0)}
    assert str(data.account).endswith("; margin read in 1 rows; weight read in 1 rows")
    (single,) = [tree for tree in prepare(config, WORLD, "sft").train if tree.weight == 2]
    assert single.margin is None


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [("margin", 3, r"has a margin of 3.0; it must lie in \[0, 1\]"), ("margin", "wide", "row 1: .*'wide'"),
     ("weight", -1, "has a weight of -1.0"), ("weight", "heavy", "row 1: .*'heavy'")],
)  # fmt: skip
def test_a_margin_or_weight_that_is_none_is_refused(column: str, value: object, message: str, tmp_path: Path) -> None:
    row = {"prompt": "the plot is", "chosen": " good .", "rejected": " bad .", column: value}
    with pytest.raises(ValueError, match=message):
        prepare(DataConfig(source=written(tmp_path, [row]), validation=0.0, test=0.0), WORLD, "pairs")


def test_dropped_rows_are_counted_by_reason(tmp_path: Path) -> None:
    good = {"prompt": "the plot is", "chosen": " good .", "rejected": " bad ."}
    rows = [good, {**good, "chosen": " "}, {**good, "rejected": " good ."}, {**good, "prompt": ""}]
    data = prepare(DataConfig(source=written(tmp_path, rows)), WORLD, "pairs")
    assert data.account.dropped == {"empty response": 1, "identical pair": 1, "empty prompt": 1}


@pytest.mark.parametrize(("purpose", "branches"), [("pairs", 2), ("sft", 1), ("prompts", 0)])
def test_a_purpose_sets_the_number_of_branches(purpose: Purpose, branches: int) -> None:
    data = prepare(DataConfig(limit=30), WORLD, purpose)
    assert {len(tree.branches) for trees in data.parts.values() for tree in trees} == {branches}


def test_the_held_out_part_is_the_test_part_else_what_the_validation_part_gives() -> None:
    both = prepare(DataConfig(limit=200), WORLD, "pairs")
    assert both.held_out is both.parts["test"]
    one = prepare(DataConfig(limit=200, test=0.0), WORLD, "pairs")
    assert one.held_out == []
    assert one.apart(chooses=False, seed=0).held_out == one.parts["validation"]


def test_columns_are_renamed(tmp_path: Path) -> None:
    rows = [{"question": "the plot is", "good": " good .", "bad": " bad ."}]
    names = {"prompt": "question", "chosen": "good", "rejected": "bad"}
    data = prepare(DataConfig(source=written(tmp_path, rows), columns=names), WORLD, "pairs")
    assert data.account.used == 1
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
    data = prepare(DataConfig(source=written(tmp_path, rows)), WORLD, "sft")
    assert data.account.used == 1
    assert data.account.dropped == {"empty prompt": 1}


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


def faulty_pairs(n: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [
        {"prompt": f"the {a} is", "chosen": f" very {j} .", "rejected": " bad .", "split": None}
        for a in world.ASPECT for j in world.ADJECTIVE
    ][:n]  # fmt: skip
    rows[3]["chosen"] = " "
    rows[5]["rejected"] = rows[5]["chosen"]
    rows[7]["split"] = "validation"
    return rows


@pytest.mark.parametrize("shares", ["expected", "exact"])
def test_chunks_on_disk_are_what_is_made_in_memory(
    shares: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparing, "CHUNK", 7)
    config = DataConfig(source=written(tmp_path, faulty_pairs(60)), shares=shares, test=0.2, max_response=4)
    account = prepare_to(tmp_path / "kept", config, WORLD, "pairs")
    assert prepare(DataConfig(source=str(tmp_path / "kept")), WORLD, "pairs") == prepare(config, WORLD, "pairs")
    assert (account.rows, account.dropped) == (60, {"empty response": 1, "identical pair": 1})


@pytest.mark.slow
def test_two_processes_write_the_same_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparing, "CHUNK", 20)
    config = DataConfig(limit=90)
    for n in (1, 2):
        prepare_to(tmp_path / str(n), config, WORLD, "pairs", n)
    for file in sorted((tmp_path / "1").iterdir()):
        if file.suffix == ".jsonl":
            assert file.read_text() == (tmp_path / "2" / file.name).read_text()
    facts = [json.loads((tmp_path / str(n) / "prepared.json").read_text()) for n in (1, 2)]
    assert facts[0] == facts[1]
    assert facts[0]["best_accuracy"] == pytest.approx(prepare(config, WORLD, "pairs").best_accuracy)


def test_joined_rows_are_prepared_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparing, "CHUNK", 2)
    rows = [{"text": f"the {a} is {j} .", "label": n % 2} for a in world.ASPECT for n, j in enumerate(world.ADJECTIVE)]
    config = DataConfig(source=written(tmp_path, rows), format="text")
    prepare_to(tmp_path / "kept", config, WORLD, "pairs")
    assert prepare(DataConfig(source=str(tmp_path / "kept")), WORLD, "pairs") == prepare(config, WORLD, "pairs")


@pytest.mark.slow
def test_rows_are_read_no_further_than_the_processes_can_hold() -> None:
    """With endless rows: two processes hold `WAITING` chunks each, and one more is handed out before one is taken."""
    rows = tuple(sources.read_rows("world:3"))
    renderer = preparing.Renderer(Reading.of(rows, DataConfig(), "pairs"), WORLD)
    requested: list[int] = []

    def chunks() -> Iterator[preparing.Chunk]:
        for n in count():
            requested.append(n)
            yield n, rows

    done = preparing._rendered_chunks(renderer, chunks(), 2)
    for n in range(4):
        assert next(done).account.rows == 3
        assert len(requested) == n + 1 + 2 * preparing.WAITING
    done.close()  # type: ignore[attr-defined]


def test_a_bad_row_in_a_later_chunk_is_named_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparing, "CHUNK", 7)
    rows = [{**row, "split": "elsewhere" if n == 23 else None} for n, row in enumerate(faulty_pairs(40))]
    with pytest.raises(ValueError, match=r"rows.jsonl', row 24: .*elsewhere"):
        prepare_to(tmp_path / "kept", DataConfig(source=written(tmp_path, rows)), WORLD, "pairs")
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]
    with pytest.raises(ValueError, match="processes is 0"):
        prepare_to(tmp_path / "kept", DataConfig(), WORLD, "pairs", 0)


def test_source_rows_are_read_anew_and_stop_at_the_limit(tmp_path: Path) -> None:
    source = written(tmp_path, [{"prompt": str(n)} for n in range(10)])
    for limit, n in ((None, 10), (4, 4), (7, 7), (30, 10)):
        rows_read = sources.open_source(source, limit=limit)
        assert len(rows_read) == n
        for _ in range(2):
            assert [row["prompt"] for row in rows_read] == [str(n) for n in range(n)]


def test_a_limit_that_leaves_one_label_is_named_in_the_error(tmp_path: Path) -> None:
    rows = [{"text": f"the plot is {j} .", "label": int(n < 10)} for n, j in enumerate(world.ADJECTIVE)]
    with pytest.raises(ValueError, match=r"the first 8 rows have one label only: raise data\.limit"):
        prepare(DataConfig(source=written(tmp_path, rows), limit=8), WORLD, "pairs")
