"""Faults planted in whole runs: the verdict is broken, or no detectable change."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import AdamW

from treeward.cli.main import run
from treeward.cli.parse import parse
from treeward.cli.training import configured
from treeward.data import world
from treeward.methods import find
from treeward.methods.dpo import DPO
from treeward.methods.sft import SFT
from treeward.models.policy import Policy
from treeward.runner import run as runner
from treeward.runner.progress import TerminalReporter
from treeward.runs.directory import alone
from treeward.training.loop import Loop

SHORT = ["--data.limit", "600", "--model.config.num_hidden_layers", "1",
         "--evaluation.prompts", "3", "--evaluation.samples", "1",
         "--evaluation.max_new_tokens", "8"]  # fmt: skip


def receipt_of(path: Path) -> dict[str, Any]:
    receipt: dict[str, Any] = json.loads((path / "receipt.json").read_text())
    return receipt


def failed(receipt: dict[str, Any]) -> set[str]:
    return {check["id"] for check in receipt["checks"] if check["passed"] is False}


def test_f28_infinite_loss_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backward = Loop._backward

    def poisoned(self: Loop, trees: Any) -> dict[str, torch.Tensor]:
        return {**backward(self, trees), "loss": torch.tensor(float("nan"))}

    monkeypatch.setattr(Loop, "_backward", poisoned)
    assert run(["sft", "world-sft", *SHORT, "--steps", "3", "--out", str(tmp_path / "run")]) == 4
    receipt = receipt_of(tmp_path / "run")
    assert receipt["verdict"] == "broken"
    assert "F28" in failed(receipt)


def test_f28_weights_that_cannot_be_sampled_from_are_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ruined(self: AdamW, *arguments: Any) -> None:
        with torch.no_grad():
            self.param_groups[0]["params"][0].fill_(float("nan"))

    monkeypatch.setattr(AdamW, "step", ruined)
    assert run(["sft", "world-sft", *SHORT, "--steps", "2", "--out", str(tmp_path / "run")]) == 4
    receipt = receipt_of(tmp_path / "run")
    assert receipt["verdict"] == "broken"
    (check,) = (check for check in receipt["checks"] if check["id"] == "F28")
    assert "the values after training are copies of those before" in check["detail"]


def test_f55_a_run_of_a_live_process_is_not_resumed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run"
    run(["sft", "world-sft", *SHORT, "--steps", "1", "--out", str(path)])
    (path / "receipt.json").unlink()
    with alone(path):
        assert run(["resume", str(path)]) == 2
    assert f"is being written by process {os.getpid()}" in capsys.readouterr().err
    assert not (path / "receipt.json").exists()


def test_f37_rate_zero_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AdamW, "step", lambda self, *arguments: None)
    assert run(["sft", "world-sft", *SHORT, "--steps", "2", "--out", str(tmp_path / "run")]) == 4
    assert {"F37", "F44"} <= failed(receipt_of(tmp_path / "run"))


def test_f53_saved_weights_that_are_not_the_trained_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from treeward.models import loading

    original = loading.save_model

    def stale(adapter: Any, module: Any, directory: Path, name: str = "model") -> None:
        with torch.no_grad():
            trained = module.model.norm.weight.clone()
            module.model.norm.weight.mul_(1.5)
            original(adapter, module, directory, name)
            module.model.norm.weight.copy_(trained)

    monkeypatch.setattr(loading, "save_model", stale)
    assert run(["sft", "world-sft", *SHORT, "--steps", "2", "--out", str(tmp_path / "run")]) == 4
    assert failed(receipt_of(tmp_path / "run")) == {"I12"}


class Dragging(TerminalReporter):
    """Moves a reference model after each step."""

    def __init__(self) -> None:
        self.method: Any = None

    def build(self, kind: Any) -> Any:
        """A factory of the method, which is remembered."""

        def method_of(config: Any) -> Any:
            self.method = kind(config)
            return self.method

        return method_of

    def step(self, index: int, metrics: Any) -> None:
        objective_reference = getattr(self.method.objective, "reference", None)
        with torch.no_grad():
            next((objective_reference or self.method.start).packed.parameters()).add_(0.01)


def exit_code(words: list[str], reporter: Any = None, build: Any = None) -> int:
    """A training command in Python, with a reporter of our own."""
    config = configured(words[0], parse(words[1:], ()))
    return runner.run(config, build or find(words[0]), reporter=reporter).exit_code


def test_f23_reference_that_moved_is_broken(tmp_path: Path) -> None:
    words = ["sft", "world-sft", *SHORT, "--steps", "2", "--out", str(tmp_path / "run")]
    reporter = Dragging()
    assert exit_code(words, reporter, reporter.build(SFT)) == 4
    assert failed(receipt_of(tmp_path / "run")) == {"F23"}


def test_f23_a_named_reference_that_moved_is_broken(tmp_path: Path) -> None:
    Policy.load("world", seed=1).save(tmp_path / "other" / "model")
    words = [
        "dpo",
        "--data.source",
        "world:400",
        "--data.test",
        "0.2",
        *SHORT[2:],
        "--steps",
        "2",
        "--lr",
        "1e-3",
        "--batch-size",
        "16",
        "--reference.path",
        str(tmp_path / "other" / "model"),
        "--reference.store",
        "off",
    ]
    reporter = Dragging()
    assert exit_code([*words, "--out", str(tmp_path / "run")], reporter, reporter.build(DPO)) == 4
    assert failed(receipt_of(tmp_path / "run")) == {"F23"}


def test_f28_a_clip_that_stops_the_gradient_of_many_pairs_is_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1 % of the pairs over the run may be clipped; chi-PO's own clip and the straight tail are said alone."""
    honest = Loop.step

    def clipped(self: Loop, batch: Any) -> Any:
        step = honest(self, batch)
        step.metrics["loss/clipped"] = torch.tensor(0.03 * (step.index == 2), dtype=torch.float64)
        return step

    monkeypatch.setattr(Loop, "step", clipped)
    words = ["dpo", "--data.source", "world:400", "--data.test", "0.2", *SHORT[2:], "--steps", "2", "--lr", "1e-3",
             "--batch-size", "16", "--loss.clip", "2", "--require", "any"]  # fmt: skip
    assert run([*words, "--out", str(tmp_path / "clip")]) == 4
    receipt = receipt_of(tmp_path / "clip")
    assert failed(receipt) == {"F28"}
    assert "share of pairs without a gradient because of loss.clip 0.015 (limit 0.01)" in receipt["reason"]
    assert run([*words, "--divergence.kind", "chi-squared-mixed", "--out", str(tmp_path / "chi")]) == 0
    checks = [check for check in receipt_of(tmp_path / "chi")["checks"] if check["id"] == "F28"]
    assert [(check["passed"], check["value"], check["limit"]) for check in checks] == [
        (True, 0.0, None), (True, 0.015, None),
    ]  # fmt: skip


def test_shuffled_labels_are_no_detectable_change(tmp_path: Path) -> None:
    import random

    draw = random.Random(0)
    rows = world.pairs(0, 900)
    for row in rows:
        if draw.random() < 0.5:
            row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
        del row["best_accuracy"]
    (tmp_path / "shuffled.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["reward", "world-reward", "--data.source", str(tmp_path / "shuffled.jsonl"), "--epochs", "1"]
    assert run([*words, "--out", str(tmp_path / "run")]) == 3
    assert receipt_of(tmp_path / "run")["verdict"] == "no detectable change"


def test_f16_longer_wins_is_not_learning(tmp_path: Path) -> None:
    import random

    draw = random.Random(1)
    rows = []
    for number in range(700):
        prompt = f"{world.opening(draw)} {world.ASPECT[number % 12]}"
        sides = sorted((" ".join(draw.choices(world.ASPECT, k=n)) for n in draw.sample(range(3, 20), 2)), key=len)
        rows.append({"prompt": prompt, "chosen": sides[1], "rejected": sides[0]})
    (tmp_path / "longer.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["reward", "world-reward", "--data.source", str(tmp_path / "longer.jsonl"), "--epochs", "3",
             "--model.config.num_hidden_layers", "1"]  # fmt: skip
    assert run([*words, "--out", str(tmp_path / "run")]) == 3
    receipt = receipt_of(tmp_path / "run")
    assert receipt["verdict"] == "no detectable change"
    assert "F16" in receipt["reason"]
