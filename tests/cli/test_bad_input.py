"""Bad input is one line on stderr, exit code 2, and nothing left behind."""

import json
from pathlib import Path

import pytest

from treeward.cli.main import run

WORLD = ("--model.path", "world")


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line of stderr on a command line that exits with 2."""
    assert run(words) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("treeward:")]
    assert len(lines) == 1, lines
    return lines[0]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def test_unknown_command_and_recipe_name_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean 'dpo'" in refused(capsys, "dpoo")
    assert "did you mean 'world-dpo'" in refused(capsys, "dpo", "wrld-dpo")


def test_unknown_key_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean 'beta'" in refused(capsys, "dpo", "world-dpo", "--loss.bta", "0.2")
    assert "did you mean 'source'" in refused(capsys, "sft", "--data.sorce", "x")


def test_wrong_type_and_range(capsys: pytest.CaptureFixture[str]) -> None:
    assert "steps is 'many'" in refused(capsys, "sft", "--steps", "many")
    assert "loss.beta is -1" in refused(capsys, "dpo", "world-dpo", "--loss.beta", "-1")
    assert "loss.kind is 'ipoo', did you mean 'ipo'" in refused(capsys, "dpo", "--loss.kind", "ipoo")


@pytest.mark.parametrize(
    ("key", "value"),
    [("prompts", "0"), ("samples", "0"), ("max_new_tokens", "-3"), ("temperature", "0"), ("temperature", "-1")],
)
def test_an_evaluation_that_cannot_be_drawn_is_refused(
    key: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert f"evaluation.{key} is {value}" in refused(capsys, "dpo", "world-dpo", f"--evaluation.{key}", value)
    assert f"evaluation.{key} is {value}" in refused(capsys, "evaluate", *WORLD, f"--evaluation.{key}", value)


def test_f52_a_metric_is_known_by_name_before_anything_is_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    complaint = refused(capsys, "reward", "--print-config", "--evaluation.metric", "acuracy")
    assert "metric 'acuracy' is unknown; known are accuracy, brier" in complaint


@pytest.mark.parametrize(("key", "value"), [("scorer", "gold"), ("aa", "true"), ("judges", "[length]")])
def test_samples_of_a_reward_model_are_refused(key: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    complaint = refused(capsys, "reward", "world-reward", f"--evaluation.{key}", value)
    assert f"evaluation.{key} is " in complaint
    assert "a reward model is not sampled from" in complaint


def test_missing_and_empty_files(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "does not exist" in refused(capsys, "sft", *WORLD, "--data.source", str(tmp_path / "no.jsonl"))
    (tmp_path / "empty.jsonl").write_text("")
    assert "is empty" in refused(capsys, "sft", *WORLD, "--data.source", str(tmp_path / "empty.jsonl"))


def test_wrong_columns_are_listed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "odd.jsonl").write_text(json.dumps({"title": "?", "body": "!"}) + "\n")
    assert "body, title fit no format" in refused(capsys, "dpo", *WORLD, "--data.source", str(tmp_path / "odd.jsonl"))


def test_zero_rows_after_filtering(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    row = {"prompt": "a", "chosen": "b", "rejected": "b"}
    (tmp_path / "same.jsonl").write_text((json.dumps(row) + "\n") * 3)
    message = refused(capsys, "dpo", *WORLD, "--data.source", str(tmp_path / "same.jsonl"))
    assert "3 identical pair" in message


def test_foreign_tokenizer(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({f"w{n}": n for n in range(500)}, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=core, eos_token="w1", unk_token="w0").save_pretrained(tmp_path / "other")
    message = refused(capsys, "sft", "--model.tokenizer", str(tmp_path / "other"))
    assert "ids up to 499" in message
    assert "91 embedding rows" in message


def test_existing_run_directory_is_left_alone(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").write_text("keep")
    assert "exists" in refused(capsys, "sft", "world-sft", "--out", str(tmp_path / "taken"))
    assert (tmp_path / "taken" / "mine.txt").read_text() == "keep"


def test_unwritable_place(capsys: pytest.CaptureFixture[str]) -> None:
    assert "cannot be written" in refused(capsys, "sft", "world-sft", "--out", "/proc/nowhere/run")


def test_unreachable_hub_names_the_local_way(capsys: pytest.CaptureFixture[str]) -> None:
    assert "local directory or 'world'" in refused(capsys, "reward", "--model.path", "some-org/some-model")
    assert "local file or 'world'" in refused(capsys, "sft", *WORLD, "--data.source", "some-org/some-data")


def test_failed_check_leaves_no_run_directory(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run(["sft", "world-sft", "--data.limit", "60", "--out", str(tmp_path / "run")]) == 2
    assert "enough-groups (F48) FAILED" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_resume_of_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert "not a run directory" in refused(capsys, "resume", "nowhere")


def test_resume_of_a_run_of_pairs_names_the_command_that_continues_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "config.yaml").write_text("command: pairs\n")
    message = refused(capsys, "resume", "made")
    assert "a run of `treeward pairs`" in message
    assert "the same command is given again with --out made" in message
    (tmp_path / "made" / "report.json").write_text("{}")
    assert "has ended" in refused(capsys, "resume", "made")
