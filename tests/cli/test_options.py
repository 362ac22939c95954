"""Options as users write them: lists in every form, TRL's names, a model that is not named."""

import re
from pathlib import Path

import pytest
import yaml

from treeward.checks.check import require, result
from treeward.cli.main import run
from treeward.errors import ChecksFailed
from treeward.methods import METHODS, find
from treeward.runner import trl_names
from treeward.runner.evaluate import EvaluateRun
from treeward.runner.fields import keys as keys_of
from treeward.runner.pairs import PairsRun
from treeward.runner.sample import SampleRun

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line of stderr on a command line that exits with 2."""
    assert run(words) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("treeward:")]
    assert len(lines) == 1, lines
    return lines[0]


@pytest.mark.parametrize("words", [
    ["--skip-check", "F48,F42"], ["--skip-check", "[F48, F42]"], ["--skip-check", "F48", "--skip-check", "F42"],
    ["--skip_check", "F48", "--skip-check=F42"],
])  # fmt: skip
def test_ids_of_checks_are_read_in_every_form(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["dpo", *words, "--print-config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["skip_check"] == ["F48", "F42"]


def test_a_bare_id_is_a_list_of_one_also_in_a_recipe(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("command: dpo\nskip_check: F48\n")
    for words in (["dpo", "--skip-check", "F48"], ["dpo", "mine.yaml"]):
        assert run([*words, "--print-config"]) == 0
        assert yaml.safe_load(capsys.readouterr().out)["skip_check"] == ["F48"]


def test_the_hint_of_a_failed_check_works_when_pasted(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["sft", "world-sft", "--data.limit", "60", "--dry-run"]
    assert run(words) == 2
    hint = next(line for line in capsys.readouterr().err.splitlines() if "to proceed anyway, add:" in line)
    pasted = hint.partition("add: ")[2].split()
    assert pasted == ["--skip-check", "enough-groups"]
    assert run([*words, *pasted]) == 0


def test_an_id_that_names_no_check_is_refused_with_the_nearest() -> None:
    checks = [result("enough-groups", passed=False), result("layout-equals-rows", passed=True)]
    with pytest.raises(ValueError, match="skip_check 'f48' names no check of this run, did you mean 'F48'"):
        require(checks, ["f48"])
    assert require(checks, ["F48"])[0].passed is None
    with pytest.raises(ChecksFailed) as caught:
        require(checks)
    assert not caught.value.acceptable


def test_data_alone_is_its_source(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["dpo", "--model.path", "m", "--data", "f.jsonl", "--data.columns", "{chosen: good}",
                "--print-config"]) == 0  # fmt: skip
    data = yaml.safe_load(capsys.readouterr().out)["data"]
    assert (data["source"], data["columns"]) == ("f.jsonl", {"chosen": "good"})


@pytest.mark.parametrize(("option", "ours"), [
    ("--learning-rate", "--lr"), ("--beta", "--loss.beta"), ("--per-device-train-batch-size", "--batch-size"),
    ("--num-train-epochs", "--epochs"), ("--max-length", "--data.max-prompt and --data.max-response"),
    ("--output-dir", "--out"), ("--model_name_or_path", "--model.path"), ("--dataset-name", "--data.source"),
    ("--loss-type", "--loss.kind"), ("--loss.label_smoothing", "--loss.flip"), ("--bf16", "--model.precision bf16"),
])  # fmt: skip
def test_a_name_of_trl_is_answered_with_ours(option: str, ours: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert f" is {ours} here" in refusal(capsys, "dpo", option, "1")


def test_a_flag_of_trl_without_a_value_is_answered_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--bf16 needs a value; TRL's bf16 is --model.precision bf16 here" in refusal(capsys, "dpo", "--bf16")


def test_an_option_of_another_command_is_not_suggested(capsys: pytest.CaptureFixture[str]) -> None:
    assert "loss.beta" not in refusal(capsys, "sft", "--beta", "1")


def test_a_name_of_another_group_is_found(capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean 'data.max_response'" in refusal(capsys, "dpo", "--max-response", "5")


def test_a_field_of_another_kind_is_named_as_such(capsys: pytest.CaptureFixture[str]) -> None:
    line = refusal(capsys, "dpo", "--loss.kind", "ipo", "--loss.flip", "0.1")
    assert "unknown key 'loss.flip' of this kind (another loss.kind has it); known are beta" in line


@pytest.mark.parametrize(("words", "key"), [(["--model", "x"], "model.path"), (["--loss", "ipo"], "loss.kind")])
def test_a_group_given_as_a_value_names_its_first_field(
    words: list[str], key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert f"it is a group of fields: set {key} or another" in refusal(capsys, "dpo", *words)


@pytest.mark.parametrize("verb", ["sample", "evaluate", "score"])
def test_a_word_that_belongs_to_no_option_is_refused(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"{verb} does not take 'extra'" in refusal(capsys, verb, "extra", "--model.path", "world")


def test_every_option_that_is_suggested_exists() -> None:
    configs = [*(find(name).Config for name in METHODS), PairsRun, SampleRun, EvaluateRun]
    keys = {key for config in configs for key in keys_of(config)}
    keys |= {"resume", "model.lora"}
    assert {option.split()[0] for row in trl_names.NAMES for option in row.ours} <= keys
    theirs = [name for row in trl_names.NAMES for name in row.theirs]
    assert len(theirs) == len(set(theirs))


def test_the_table_of_the_docs_is_the_one_that_suggestions_come_from() -> None:
    text = (DOCS / "from-trl.md").read_text(encoding="utf-8")
    assert trl_names.table() in text, "write the output of `python -m treeward.runner.trl_names` into docs/from-trl.md"


@pytest.mark.parametrize("words", [
    ["sample", "--prompt", "x"], ["evaluate"], ["pairs", "--data.source", "x.jsonl", "--scorer", "length"], ["pairs"],
    ["score", "--data", "x.jsonl"], ["dpo", "--data.source", "x.jsonl"], ["sft", "--data", "x.jsonl"],
    ["reward", "--data.source", "x.jsonl", "--model.precision", "fp32"],
    ["dpo", "--data.source", "x.jsonl", "--sweep", "loss.beta=0.1,0.2"],
    ["sft", "--sweep", "data.source=world,x.jsonl"],
])  # fmt: skip
def test_a_command_without_a_model_asks_for_one(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert re.search(r"model\.path is not given: name a model with --model\.path", refusal(capsys, *words))


def test_training_on_the_world_or_from_random_weights_needs_no_model(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    for words in (["sft"], ["dpo", "--data.source", "world:500"],
                  ["dpo", "--data.source", "x.jsonl", "--model.init", "random"]):  # fmt: skip
        assert run([*words, "--print-config"]) == 0
        assert yaml.safe_load(capsys.readouterr().out)["model"]["path"] == "world"
    assert sum("the embedded model world, with random weights" in text for text in caplog.messages) == 3
