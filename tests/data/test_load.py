"""Text trees without a tokenizer, and the columns of a row that scorers see."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from treeward.data import load, store, world
from treeward.data.inspect import read_contents
from treeward.data.prepare import DataConfig, prepare
from treeward.data.prompts import openings
from treeward.errors import UserError
from treeward.trees.text import Response, Tree

WORLD = world.tokenizer()


def written(folder: Path, rows: list[dict[str, Any]]) -> str:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def only(source: str, **options: Any) -> Tree:
    (tree,) = load(source, validation=0.0, test=0.0, **options).train
    return tree


def test_prompts_with_an_answer_that_scorers_see(tmp_path: Path) -> None:
    rows = [{"prompt": f"how much is {n} + 1 ?", "answer": str(n + 1)} for n in range(60)]
    data = load(written(tmp_path, rows), keep=["answer"])
    parts = {"train": data.train, "validation": data.validation, "test": data.test}
    trees = [tree for part in parts.values() for tree in part]
    assert {(tree.prompt, tree.row["answer"]) for tree in trees if tree.row} == {
        (r["prompt"], r["answer"]) for r in rows
    }
    assert all(tree.responses == () for tree in trees)
    assert repr(data) == (
        f"Dataset({len(data.train)} train, {len(data.validation)} validation, {len(data.test)} test; prompts; "
        "format prompts; row: answer)"
    )
    config = DataConfig(source=written(tmp_path, rows), keep=("answer",))
    token_trees = prepare(config, WORLD, "prompts").parts
    assert {part: [tree.group for tree in trees] for part, trees in parts.items()} == {
        part: [tree.group for tree in trees] for part, trees in token_trees.items()
    }, "load splits as training does"


@pytest.mark.parametrize(
    ("row", "options", "tree"),
    [
        ({"prompt": "p", "chosen": "a", "rejected": "b", "topic": "x"}, {}, Tree("p", ["a", "b"], row={"topic": "x"})),
        ({"prompt": "p", "answer": "a"}, {}, Tree("p", ["a"])),
        ({"question": "p", "answer": "a"}, {"keep": "answer"}, Tree("p", row={"answer": "a"})),
        ({"prompt": "p", "tests": ["t"]}, {}, Tree("p", row={"tests": ["t"]})),
        ({"prompt": "p", "good": "a", "bad": "b"}, {}, Tree("p", row={"good": "a", "bad": "b"})),
        ({"prompt": "p", "completion": "a"}, {"keep": ["completion"]}, Tree("p", ["a"], row={"completion": "a"})),
        ({"prompt": "p", "completion": "a"}, {"format": "prompts"}, Tree("p", row={"completion": "a"})),
        ({"prompt": "p", "completion": "a", "label": True}, {}, Tree("p", [Response("a", score=1.0)])),
        ({"prompt": "p", "completion": "a", "label": "sport"}, {}, Tree("p", ["a"], row={"label": "sport"})),
        ({"prompt": "p", "completion": "a", "label": 1}, {"keep": ["label"]}, Tree("p", ["a"], row={"label": 1})),
        ({"text": "t", "label": 0}, {}, Tree("", [Response("t", score=0.0)], group="t")),
        (
            {"prompt": "p", "responses": ["a", "b"], "scores": [1, 2]},
            {},
            Tree("p", [Response("b", grades=(2.0,)), Response("a", grades=(1.0,))]),
        ),
        ({"x": "p", "y": "a"}, {"columns": {"prompt": "x", "completion": "y"}}, Tree("p", ["a"])),
    ],
)
def test_each_format_gives_its_responses_and_the_row(
    row: dict[str, Any], options: dict[str, Any], tree: Tree, tmp_path: Path
) -> None:
    assert only(written(tmp_path, [row]), **options) == tree


def test_ratings_of_one_prompt_become_one_tree(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "response": f"a{n}", "score": n, "id": n, "set": "x"} for n in range(3)]
    tree = only(written(tmp_path, rows))
    assert [response.text for response in tree.responses] == ["a2", "a1", "a0"]
    assert tree.row == {"set": "x"}, "the columns that all its rows share"


def test_a_kept_column_is_never_taken_for_something_else(tmp_path: Path) -> None:
    pair = {"prompt": "p", "chosen": "a", "rejected": "b"}
    rows = [{**pair, "prompt": f"p {n}", "label": 1 + n % 2, "part": "train" if n % 2 else "test"} for n in range(9)]
    source = written(tmp_path, rows)
    with pytest.raises(UserError, match="'label' looks like a winner"):
        load(source)
    with pytest.raises(UserError, match="'part' looks like a split"):
        load(source, keep=["label"])
    data = load(source, keep=["label", "part"])
    assert {tuple(tree.row or ()) for tree in data.train} == {("label", "part")}
    for purpose in ("pairs", "sft", "prompts", "unpaired"):
        config = DataConfig(source=source, keep=("label", "part"), validation=0.0, test=0.0)
        account = prepare(config, WORLD, purpose).account  # type: ignore[arg-type]
        assert account.layout in ("format preference", "format prompts")
        assert not {"label", "part"} & set(account.unread)


def test_public_layouts_leave_kept_columns_alone(tmp_path: Path) -> None:
    row = {"question": "p", "response_j": "a", "response_k": "b"}
    assert only(written(tmp_path, [row])) == Tree("p", ["a", "b"])
    assert only(written(tmp_path, [row]), keep=["response_j"]).responses == ()


def test_what_cannot_be_loaded_is_refused(tmp_path: Path) -> None:
    source = written(tmp_path, [{"prompt": "p", "chosen": "a", "rejected": "b"}])
    with pytest.raises(UserError, match=r"data\.keep names 'answer'; the data has chosen, prompt, rejected"):
        load(source, keep=["answer"])
    with pytest.raises(UserError, match="columns body, title fit no format"):
        load(written(tmp_path, [{"title": "?", "body": "!"}]))
    with pytest.raises(UserError, match="nothing is left of 1 rows made 0 prompts; dropped: 1 empty prompt"):
        load(written(tmp_path, [{"prompt": ""}]))
    with pytest.raises(UserError, match=r"rows\.jsonl', row 2: column 'prompt' is the number 5"):
        load(written(tmp_path, [{"prompt": "p"}, {"prompt": 5}]))
    with pytest.raises(UserError, match=r"data\.format is 'jsonl'; it may be answers"):
        load(source, format="jsonl")
    config = DataConfig(limit=30)
    store.save(tmp_path / "saved", prepare(config, WORLD, "pairs"), WORLD, asdict(config), "pairs")
    with pytest.raises(UserError, match="is prepared data; load the source"):
        load(tmp_path / "saved")


def test_the_sources_own_splits_are_kept_and_leaks_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"prompt": "p", "split": "train"}, {"prompt": "P ", "split": "test"}, {"prompt": "q", "split": "dev"}]
    data = load(written(tmp_path, rows))
    assert [len(part) for part in (data.train, data.validation, data.test)] == [1, 1, 1]
    assert "put 1 prompts both into training and held out" in caplog.text


def test_token_trees_carry_the_row_and_so_does_prepared_data(tmp_path: Path) -> None:
    rows = [{"prompt": f"the plot {n} is", "chosen": " good .", "rejected": " bad .", "answer": n} for n in range(20)]
    config = DataConfig(source=written(tmp_path, rows), validation=0.0, test=0.0, keep=("chosen",))
    data = prepare(config, WORLD, "pairs")
    assert [tree.row for tree in data.train] == [{"answer": n, "chosen": " good ."} for n in range(20)]
    store.save(tmp_path / "saved", data, WORLD, asdict(config), "pairs")
    again = prepare(DataConfig(source=str(tmp_path / "saved")), WORLD, "pairs")
    assert [tree.row for tree in again.train] == [tree.row for tree in data.train]
    opened = openings(config, WORLD, (1, 1))
    assert [prompt.row for prompt in opened.prompts] == [
        {"rejected": " bad .", "answer": n, "chosen": " good ."} for n in range(20)
    ]


def test_inspection_reads_prompts_with_kept_columns(tmp_path: Path) -> None:
    source = written(tmp_path, [{"prompt": "p", "answer": "a", "tests": []}])
    contents = read_contents(DataConfig(source=source, keep=("answer", "tests"), validation=0.0))
    assert (contents.purpose, contents.format) == ("prompts", "prompts")
    tests = written(tmp_path, [{"prompt": "p", "tests": []}])
    with pytest.raises(UserError, match=r"fit no format.*to read the prompts alone, --data\.format prompts"):
        read_contents(DataConfig(source=tests))
    assert read_contents(DataConfig(source=tests, format="prompts")).purpose == "prompts"
