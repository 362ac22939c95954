"""Each script of examples/ runs as its docstring says."""

import json
import runpy
import sys
from pathlib import Path

import pytest

import treeward as tw
from treeward.cli.main import run

EXAMPLES = Path(__file__).parents[1] / "examples"
PROBLEMS = str(EXAMPLES / "problems.jsonl")
SHORT = ["--data.source", "world:300", "--data.test", "0.2", "--steps", "2", "--batch-size", "8", "--require", "any",
         "--evaluation.prompts", "2", "--evaluation.samples", "2", "--evaluation.max-new-tokens", "6",
         "--skip-check", "enough-groups"]  # fmt: skip


def script(name: str, *arguments: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """Run a script as a user would; returns its exit code."""
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    monkeypatch.chdir(EXAMPLES.parent)
    try:
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("policy") / "model"
    tw.Policy.load("world", device="cpu").save(path)
    return str(path)


def test_online_dpo(
    policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script("online_dpo.py", policy, PROBLEMS, str(tmp_path / "out"), monkeypatch=monkeypatch) == 0
    printed = capsys.readouterr().out
    assert "step 1: " in printed
    assert "loss 0.6931" in printed
    assert "score " in printed
    assert "kl " in printed
    assert tw.Policy.load(tmp_path / "out").packed is not None


def test_own_optimizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert script("own_optimizer.py", str(tmp_path / "log.csv"), monkeypatch=monkeypatch) == 0
    rows = (tmp_path / "log.csv").read_text().splitlines()
    assert rows[0] == "step,loss,grad_norm,lr"
    losses = [float(row.split(",")[1]) for row in rows[1:]]
    rates = [float(row.split(",")[3]) for row in rows[1:]]
    assert losses[-1] < losses[0]
    assert rates[0] == 0.5
    assert rates[-1] < 0.05


def test_custom_loss(policy: str, tmp_path: Path) -> None:
    """Its declared first value is checked."""
    loss = f"{EXAMPLES / 'custom_loss.py'}:focal"
    words = ["dpo", *SHORT, "--model.path", policy, "--lr", "1e-4", "--loss", loss, "--out", str(tmp_path / "run")]
    assert run(words) == 0
    receipt = json.loads((tmp_path / "run" / "receipt.json").read_text())
    first = next(check for check in receipt["checks"] if check["slug"] == "first-loss-known")
    assert first["passed"] is True
    row = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert row["loss"] == pytest.approx(0.25 * 0.693147, abs=1e-4)


@pytest.mark.parametrize("name", ["correct", "correct_batch"])
def test_custom_scorer_sees_the_row(name: str, policy: str, tmp_path: Path) -> None:
    words = ["pairs", "--model.path", policy, "--data.source", PROBLEMS, "--data.keep", "[answer]", "--samples", "3"]
    words += ["--prompts", "6", "--max-new-tokens", "8", "--skip-check", "I17,F63", "--out", str(tmp_path / "pairs")]
    assert run([*words, "--scorer", f"{EXAMPLES / 'custom_scorer.py'}:{name}"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "pairs" / "samples.jsonl").read_text().splitlines()]
    answers = {row["prompt"]: row["answer"] for row in map(json.loads, Path(PROBLEMS).read_text().splitlines())}
    for row in rows:
        expected = [
            float(answers[row["prompt"]] in text.split()) - 0.01 * len(text.split()) for text in row["responses"]
        ]
        assert row["scores"] == pytest.approx(expected, abs=1e-6)


def test_own_method_from_a_file_outside_the_package(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`treeward train --method FILE.py:NAME` goes through checks, validation and checkpoints to a receipt."""
    method = f"{EXAMPLES / 'own_method.py'}:ResponseNLL"
    words = ["train", "--method", method, "--steps", "3", "--data.limit", "400", "--out", str(tmp_path / "run")]
    assert run(words) == 0
    receipt = json.loads((tmp_path / "run" / "receipt.json").read_text())
    assert (receipt["verdict"], receipt["metric"], receipt["command"]) == ("improved", "nll", method)
    assert {"layout-equals-rows", "gradient-reaches-weights"} <= {check["slug"] for check in receipt["checks"]}
    capsys.readouterr()
    assert run(["train", "--method", method, "--help"]) == 0
    printed = capsys.readouterr().out
    assert "[0.003]" in printed
    assert "--batch-size" in printed
    assert run(["train", "--steps", "3"]) == 2
    assert "method is not given" in capsys.readouterr().err
    assert run(["train", "--method", f"{EXAMPLES / 'own_method.py'}:Objective", "--steps", "3"]) == 2
    assert "subclass of treeward.Method" in capsys.readouterr().err


def test_best_of_n_and_reading_a_receipt(
    policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["reward", "world-reward", "--data.limit", "400", "--steps", "6", "--require", "any"]
    assert run([*words, "--skip-check", "enough-groups", "--out", str(tmp_path / "reward")]) == 0
    capsys.readouterr()
    assert script("best_of_n.py", policy, str(tmp_path / "reward"), monkeypatch=monkeypatch) == 0
    printed = capsys.readouterr().out
    assert "best of 8, by reward model" in printed
    assert "best of 8, by gold" in printed
    receipt = json.loads((tmp_path / "reward" / "receipt.json").read_text())
    code = script("read_receipt.py", str(tmp_path / "reward"), monkeypatch=monkeypatch)
    assert code == (0 if receipt["verdict"] == "improved" else 1)
    assert capsys.readouterr().out.startswith(receipt["verdict"])


def test_story_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The openings do not contain their words, the reward counts them, and the command runs with it."""
    file = tmp_path / "prompts.jsonl"
    assert script("story_words.py", str(file), monkeypatch=monkeypatch) == 0
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    example = runpy.run_path(str(EXAMPLES / "story_words.py"))
    assert len({row["prompt"] for row in rows}) == 324
    assert not any(example["contained"](row["prompt"], row) for row in rows)
    both = example["contains_both"]
    row = {"words": ["tree", "ball"]}
    assert [both("", text, row) for text in (" The Balls and a tree.", " a ball", " treetop ball")] == [1.0, 0.0, 0.0]
    assert [example["share_contained"]("", text, row) for text in (" a tree, a ball", " a ball", "")] == [1.0, 0.5, 0.0]
    short = tmp_path / "short.py"
    short.write_text("def reward(prompt, response, row):\n    return len(set(response)) + len(row['words'])\n")
    arguments = [*SHORT, "--data.source", str(file), "--model.init", "random", "--reward", f"{short}:reward"]
    arguments += ["--unfinished", "keep", "--max-new-tokens", "6", "--lr", "1e-3", "--out", str(tmp_path / "run")]
    assert run(["reinforce", *arguments]) == 0
    assert json.loads((tmp_path / "run" / "receipt.json").read_text())["data"]["rows"] == 324


@pytest.mark.data
@pytest.mark.parametrize(("recipe", "start"), [("stories-words", "<s>"), ("stories-sentiment", "")])
def test_stories_recipes_run_on_the_public_checkpoint(
    recipe: str, start: str, data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """Openings without the start token of the model give a warning."""
    model, file = data_root / "models" / "stories260k", tmp_path / "words.jsonl"
    assert script("story_words.py", str(file), start, monkeypatch=monkeypatch) == 0
    words = f"--model.path {model} --data.source {file} --samples 2 --max-new-tokens 8 --save-every 2 --allow-code"
    words += f" --out {tmp_path / 'run'}"
    if recipe == "stories-sentiment":
        words += " --reward count:happy --skip-check first-samples-differ,enough-groups"
    given = [*SHORT[4:], *words.split()]
    assert run(["reinforce", f"examples/{recipe}.yaml", *given]) == 0
    assert any("start token '<s>'" in message for message in caplog.messages) == (start == "")
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 2
