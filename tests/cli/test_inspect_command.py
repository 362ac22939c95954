"""`treeward inspect` as a user meets it: table, figures, page, saved splits that training reads, one-line errors."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from treeward.cli.main import run
from treeward.data.prepare import DataConfig, prepare
from treeward.methods import find
from treeward.report.inspection import write_inspection
from treeward.runner import settings

PAIRS = [{"prompt": f"w{n} w3", "chosen": f"w{n} w9 w9", "rejected": f"w{n}", "chosen_rating": 3, "rejected_rating": 1}
         for n in range(3, 43)]  # fmt: skip


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def source(tmp_path: Path) -> str:
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    return "pairs.jsonl"


@pytest.fixture
def tokenizer(tmp_path: Path, tiny_tokenizer: Any) -> str:
    tiny_tokenizer.save_pretrained(tmp_path / "tiny")
    return "./tiny"


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert run(["inspect", *words]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("treeward:")]
    assert len(lines) == 1, lines
    return lines[0]


def test_table_figures_and_page(source: str, tokenizer: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", source, "--tokenizer", tokenizer, "--tokenizer", "world", "--out", "looked"]) == 0
    printed = capsys.readouterr().out
    for words in ("rows and splits", "lengths in tokens of tiny", "lengths in tokens of world", "word floor"):
        assert words in printed
    figures = json.loads(Path("looked/inspect.json").read_text())
    assert (figures["rows"], figures["mean_rating_gap"], figures["longer_wins"]) == (40, 2.0, 1.0)
    assert [tokens["tokenizer"] for tokens in figures["tokens"]] == ["tiny", "world"]
    assert figures["chosen_mean"] == figures["tokens"][0]["chosen_mean"] == 4.0
    assert all(not isinstance(value, dict | list) for key, value in figures.items() if key != "tokens")
    assert all(not isinstance(value, dict | list) for tokens in figures["tokens"] for value in tokens.values())
    names = ["histograms.json", "inspect.html", "inspect.json", "length_differences.png", "lengths-2.png",
             "lengths.png", "rating_gaps.png"]  # fmt: skip
    assert sorted(path.name for path in Path("looked").iterdir()) == names


def test_the_page_is_self_contained_and_says_what_the_table_says(source: str) -> None:
    assert run(["inspect", source, "--out", "looked"]) == 0
    page = Path("looked/inspect.html").read_text()
    assert not re.findall(r"(?:src|href)\s*=\s*[\"'](?!#)", page)
    assert not re.findall(r"@import|url\((?!#)", page)
    assert page.count("<svg") == 5
    assert "lengths in words" in page.lower()
    Path("looked/inspect.html").unlink()
    assert write_inspection(Path("looked")).read_text() == page


def test_report_writes_the_page_again(source: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", source, "--out", "looked"]) == 0
    page = Path("looked/inspect.html").read_text()
    Path("looked/inspect.html").unlink()
    capsys.readouterr()
    assert run(["report", "looked"]) == 0
    assert capsys.readouterr().out == "looked/inspect.html\n"
    assert Path("looked/inspect.html").read_text() == page
    Path("nothing").mkdir()
    assert run(["report", "nothing"]) == 2
    assert "neither receipt.json nor inspect.json" in capsys.readouterr().err


def test_default_places_are_the_next_free_names(source: str) -> None:
    for _ in range(2):
        assert run(["inspect", source]) == 0
    assert sorted(path.name for path in Path("runs").iterdir()) == ["inspect", "inspect-2"]


def test_unknown_figures_are_null(tmp_path: Path) -> None:
    Path("one.jsonl").write_text(json.dumps({"prompt": "a", "chosen": "b", "rejected": "c"}))
    assert run(["inspect", "one.jsonl", "--out", "looked"]) == 0
    text = Path("looked/inspect.json").read_text()
    assert "NaN" not in text
    figures = json.loads(text)
    assert figures["mean_rating_gap"] is None
    assert figures["length_correlation"] is None


def test_the_models_embedding_rows(source: str, tokenizer: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("small").mkdir()
    Path("small/config.json").write_text(json.dumps({"model_type": "gpt2", "vocab_size": 30}))
    assert run(["inspect", source, "--tokenizer", tokenizer, "--model", "./small", "--out", "looked"]) == 0
    assert "F09: 34 ids of tiny lie beyond the model's 30 embedding rows" in capsys.readouterr().out
    assert json.loads(Path("looked/inspect.json").read_text())["ids_beyond_model"] == 34


def test_saved_splits_are_what_training_reads(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", "world", "--data.limit", "400", "--save", "kept", "--out", "looked"]) == 0
    looked = json.loads(Path("looked/inspect.json").read_text())
    kept = json.loads(Path("kept/prepared.json").read_text())
    assert kept["rows"] == {part: looked[f"{part}_rows"] for part in ("train", "validation", "test")}
    words = ["reward", "world-reward", "--data.source", "kept", "--steps", "6", "--require", "any"]
    assert run([*words, "--out", "trained"]) == 0
    receipt = json.loads(Path("trained/receipt.json").read_text())
    assert receipt["data"]["rows"] == 400
    assert receipt["after"]["n"] == kept["rows"]["test"]
    capsys.readouterr()
    assert run([*words, "--data.max_response", "9", "--out", "other"]) == 2
    assert "was prepared with 512" in capsys.readouterr().err
    assert not Path("other").exists()


def test_bad_input_is_one_line_and_leaves_nothing(
    source: str, tokenizer: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    Path("empty.jsonl").write_text("")
    Path("odd.jsonl").write_text(json.dumps({"title": "?", "body": "!"}))
    Path("same.jsonl").write_text(json.dumps({"prompt": "a", "chosen": "b", "rejected": "b"}))
    before = sorted(tmp_path.rglob("*"))
    assert "does not exist" in refused(capsys, "none.jsonl")
    assert "is empty" in refused(capsys, "empty.jsonl")
    assert "fit no format" in refused(capsys, "odd.jsonl")
    assert "nothing is left of 1 rows: 1 identical pair" in refused(capsys, "same.jsonl")
    assert "one DATA" in refused(capsys)
    assert "one DATA" in refused(capsys, source, source)
    assert "is not a directory" in refused(capsys, source, "--tokenizer", "./nowhere")
    assert "no config.json" in refused(capsys, source, "--model", "./tiny")
    assert "add --tokenizer" in refused(capsys, source, "--save", "kept")
    assert "two places" in refused(capsys, source, "--tokenizer", tokenizer, "--save", "a", "--out", "a/b")
    assert "did you mean 'tokenizer'" in refused(capsys, source, "--tokeniser", "x")
    assert "data.columns names 'best'" in refused(capsys, source, "--data.columns.chosen", "best")
    assert sorted(tmp_path.rglob("*")) == before


def test_named_places_that_exist_are_left_alone(
    source: str, tokenizer: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    Path("taken").mkdir()
    Path("taken/mine.txt").write_text("keep")
    assert "--out 'taken' exists" in refused(capsys, source, "--out", "taken")
    assert "--save 'taken' exists" in refused(capsys, source, "--tokenizer", tokenizer, "--save", "taken")
    assert [path.name for path in Path("taken").iterdir()] == ["mine.txt"]
    assert not Path("runs").exists()


def test_a_recipe_with_stand_ins(source: str, tokenizer: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["inspect", "helpsteer2-inspect", "--data.source", source, "--data.split", "null", "--tokenizer", tokenizer]
    assert run([*words, "--model", "null", "--out", "seen"]) == 0
    assert json.loads(Path("seen/inspect.json").read_text())["rows"] == len(PAIRS)
    assert "recipe 'world-sft' is for `treeward sft`, not inspect" in refused(capsys, "world-sft")


@pytest.mark.parametrize(
    ("rows", "command"),
    [
        (PAIRS, "reward"),
        ([{"instruction": f"w{n} w3", "input": "", "output_1": "w9", "output_2": f"w{n} w4", "preference": 1 + n % 2}
          for n in range(5, 45)], "reward"),
        ([{"question": f"w{n} w3", "answer": "w9 w8"} for n in range(3, 43)], "sft"),
    ],
)  # fmt: skip
def test_a_recipe_reads_the_data_as_the_inspection_did(
    rows: list[dict[str, Any]], command: str, tokenizer: str, tiny_tokenizer: Any
) -> None:
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run(["inspect", "rows.jsonl", "--tokenizer", tokenizer, "--recipe", "made.yaml", "--data.seed", "3"]) == 0
    recipe = settings.recipe("made.yaml")
    assert recipe.pop("command") == command
    assert "# model: {path:" in Path("made.yaml").read_text()
    config = settings.build(find(command).Config, recipe | {"model": {"path": "world"}}).data
    inspected = DataConfig(source="rows.jsonl", seed=3)
    assert (config.source, config.seed, config.validation, config.test) == ("rows.jsonl", 3, 0.1, 0.1)
    assert (config.max_prompt, config.max_response) == (8, 8)
    for read in (config, inspected):
        prepared = prepare(read, tiny_tokenizer, "pairs" if command == "reward" else "sft")
        assert sum(map(len, prepared.parts.values())) == 40
        if read is config:
            expected = prepared.parts
    assert prepared.parts == expected


def test_a_recipe_that_cannot_be_written_is_refused(source: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("prompts.jsonl").write_text(json.dumps({"prompt": "w3"}))
    Path("taken.yaml").write_text("mine")
    assert "--recipe 'taken.yaml' exists" in refused(capsys, source, "--recipe", "taken.yaml")
    assert "must end in .yaml" in refused(capsys, source, "--recipe", "recipe.txt")
    assert "the data is prompts alone" in refused(capsys, "prompts.jsonl", "--recipe", "new.yaml")
    assert not Path("new.yaml").exists()
    assert not Path("runs").exists()
