"""F17: a model is read at the budgets that it was trained with, and another value is reported."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from treeward.cli.main import run
from treeward.data import store, world
from treeward.data.prepare import DataConfig, prepare
from treeward.data.render import token_tree
from treeward.models.artifact import Budgets
from treeward.models.reward_model import RewardModel
from treeward.runner.budgets import trained_with
from treeward.trees.text import Tree

SHORT = [
    "--model.config.num_hidden_layers", "1",
    "--data.limit", "400", "--steps", "3", "--require", "any", "--model.device", "cpu", "--model.precision", "fp32",
    "--evaluation.prompts", "2", "--evaluation.samples", "2", "--evaluation.max-new-tokens", "4",
]  # fmt: skip
LONG = " the plot is good and the cast is very bad and the music is dull ."


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of a reward model with prompts of at most 6 and responses of at most 8 tokens, and of such a policy."""
    folder = tmp_path_factory.mktemp("budgets")
    for verb in ("reward", "sft"):
        flags = SHORT if verb == "sft" else SHORT[:10]
        words = [verb, f"world-{verb}", *flags, "--data.max-prompt", "6", "--data.max-response", "8"]
        assert run([*words, "--out", str(folder / verb)]) in (0, 4), verb
    return folder


def scores(file: Path) -> list[float]:
    return [score for line in file.read_text().splitlines() for score in json.loads(line)["scores"]]


def test_budgets_of_training_are_kept_with_the_model(trained: Path) -> None:
    for verb in ("reward", "sft"):
        facts = json.loads((trained / verb / "model" / "treeward.json").read_text())
        assert facts["budgets"] == {"max_prompt": 6, "max_response": 8}


def test_score_cuts_as_in_training_unless_told_otherwise(
    trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "this old film by a team :", "response": LONG}) + "\n")
    words = ["score", "--model.path", str(trained / "reward"), "--data", str(tmp_path / "rows.jsonl"), "--model.device",
             "cpu", "--model.precision", "fp32"]  # fmt: skip
    assert run([*words, "--out", str(tmp_path / "cut.jsonl")]) == 0
    assert "data: max_prompt 6, max_response 8, as the model was trained" in caplog.messages
    assert run([*words, "--data.max-response", "512", "--out", str(tmp_path / "whole.jsonl")]) == 0
    assert "data.max_response is 512; the model was trained with 8" in caplog.messages
    model = RewardModel.load(str(trained / "reward"), device="cpu", precision="fp32")
    tree = Tree("this old film by a team :", [LONG])
    by_hand = [model.score([token_tree(tree, model.tokenizer, 6, longest)]) for longest in (8, 512)]
    assert scores(tmp_path / "cut.jsonl") == pytest.approx(by_hand[0].tolist(), abs=1e-5)
    assert scores(tmp_path / "whole.jsonl") == pytest.approx(by_hand[1].tolist(), abs=1e-5)
    assert not torch.allclose(*by_hand, atol=1e-4)
    assert model.score([tree]).tolist() == pytest.approx(by_hand[0].tolist(), abs=1e-5)


@pytest.mark.parametrize("verb", ["evaluate", "sample", "pairs"])
def test_the_other_commands_take_them_too(
    verb: str, trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO")
    monkeypatch.chdir(tmp_path)
    more = {
        "evaluate": ["--evaluation.prompts", "2", "--evaluation.max-new-tokens", "4"],
        "sample": ["--samples", "1", "--max-new-tokens", "4", "--data.source", "world"],
        "pairs": ["--prompts", "8", "--max-new-tokens", "4", "--skip-check", "I17"],
    }
    words = [verb, "--model.path", str(trained / "sft"), "--data.limit", "100", *more[verb]]
    assert run(words) in (0, 2)
    assert "data: max_prompt 6, max_response 8, as the model was trained" in caplog.messages
    caplog.clear()
    run([*words, "--data.max-prompt", "7", "--data.max-response", "8"])
    assert "data.max_prompt is 7; the model was trained with 6" in caplog.messages
    assert not any("max_response is" in message or "as the model was" in message for message in caplog.messages)


def test_prepared_data_says_its_own_budgets(tmp_path: Path) -> None:
    store.save(
        tmp_path / "kept", prepare(DataConfig(limit=40, max_response=9), world.tokenizer(), "pairs"),
        world.tokenizer(), asdict(DataConfig(limit=40, max_response=9)), "pairs",
    )  # fmt: skip
    assert trained_with(DataConfig(source=str(tmp_path / "kept"))) == Budgets(512, 9)
    assert trained_with(DataConfig(max_prompt=7)) == Budgets(7, 512)
