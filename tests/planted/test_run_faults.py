"""Faults planted in whole runs: the receipt says broken, or that nothing was learned."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from treeward.cli.main import run
from treeward.data import world
from treeward.runs.directory import alone

SHORT = ["--data.limit", "600", "--evaluation.prompts", "3", "--evaluation.samples", "1",
         "--evaluation.max_new_tokens", "8"]  # fmt: skip


def receipt_of(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((path / "receipt.json").read_text())
    return found


def failed(receipt: dict[str, Any]) -> set[str]:
    return {check["id"] for check in receipt["checks"] if check["passed"] is False}


def test_f28_infinite_loss_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from treeward.training import loop

    honest = loop.accumulate

    def poisoned(*arguments: Any) -> dict[str, float]:
        return {**honest(*arguments), "loss": float("nan")}

    monkeypatch.setattr(loop, "accumulate", poisoned)
    assert run(["sft", "world-sft", *SHORT, "--steps", "3", "--out", str(tmp_path / "run")]) == 4
    receipt = receipt_of(tmp_path / "run")
    assert receipt["verdict"] == "broken"
    assert "F28" in failed(receipt)


def test_f28_weights_that_cannot_be_sampled_from_are_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from treeward.training.state import TrainState

    def ruined(self: TrainState) -> None:
        self.index += 1
        with torch.no_grad():
            self.parameters[0].fill_(float("nan"))

    monkeypatch.setattr(TrainState, "advance", ruined)
    assert run(["sft", "world-sft", *SHORT, "--steps", "2", "--out", str(tmp_path / "run")]) == 4
    receipt = receipt_of(tmp_path / "run")
    assert receipt["verdict"] == "broken"
    (found,) = (check for check in receipt["checks"] if check["id"] == "F28")
    assert "what stands as after is the start" in found["detail"]


def test_f55_a_live_run_is_not_resumed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run"
    run(["sft", "world-sft", *SHORT, "--steps", "1", "--out", str(path)])
    (path / "receipt.json").unlink()
    with alone(path):
        assert run(["resume", str(path)]) == 2
    assert f"is being written by process {os.getpid()}" in capsys.readouterr().err
    assert not (path / "receipt.json").exists()


def test_f37_rate_zero_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from treeward.training.state import TrainState

    def idle(self: TrainState) -> None:
        self.index += 1

    monkeypatch.setattr(TrainState, "advance", idle)
    assert run(["sft", "world-sft", *SHORT, "--steps", "2", "--out", str(tmp_path / "run")]) == 4
    assert {"F37", "F44"} <= failed(receipt_of(tmp_path / "run"))


def test_f53_saved_weights_that_are_not_the_trained_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from treeward.models import adapters

    honest = adapters.save

    def stale(adapter: Any, module: Any, directory: Path, name: str = "model") -> None:
        with torch.no_grad():
            kept = module.model.norm.weight.clone()
            module.model.norm.weight.mul_(1.5)
            honest(adapter, module, directory, name)
            module.model.norm.weight.copy_(kept)

    monkeypatch.setattr(adapters, "save", stale)
    assert run(["sft", "world-sft", *SHORT, "--steps", "2", "--out", str(tmp_path / "run")]) == 4
    assert failed(receipt_of(tmp_path / "run")) == {"I12"}


def test_f23_reference_that_moved_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from treeward.runner import tasks
    from treeward.training.state import TrainState

    task: list[Any] = []
    honest_init = tasks.SFTTask.__init__

    def watched(self: Any, config: Any) -> None:
        honest_init(self, config)
        task.append(self)

    honest = TrainState.advance

    def dragging(self: TrainState) -> None:
        honest(self)
        with torch.no_grad():
            next(task[0].reference.packed.parameters()).add_(0.01)

    monkeypatch.setattr(tasks.SFTTask, "__init__", watched)
    monkeypatch.setattr(TrainState, "advance", dragging)
    assert run(["sft", "world-sft", *SHORT, "--steps", "2", "--out", str(tmp_path / "run")]) == 4
    assert failed(receipt_of(tmp_path / "run")) == {"F23"}


def test_f23_a_named_reference_that_moved_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from treeward.models.policy import Policy
    from treeward.runner import tasks

    Policy.load("world", seed=1).save(tmp_path / "other" / "model")
    honest = tasks.DPOTask.steps

    def dragging(self: Any, *arguments: Any) -> Any:
        for step in honest(self, *arguments):
            with torch.no_grad():
                next(self.reference.packed.parameters()).add_(0.01)
            yield step

    monkeypatch.setattr(tasks.DPOTask, "steps", dragging)
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
    assert run([*words, "--out", str(tmp_path / "run")]) == 4
    assert failed(receipt_of(tmp_path / "run")) == {"F23"}


def test_f28_a_clip_that_stops_the_gradient_of_many_pairs_is_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1 % of the pairs over the run may be clipped; chi-PO's own clip and the straight tail are said alone."""
    from treeward.runner import tasks

    honest = tasks.DPOTask.steps

    def clipped(self: Any, *arguments: Any) -> Any:
        for step in honest(self, *arguments):
            step.metrics["loss/clipped"] = 0.03 * (step.index == 2)
            yield step

    monkeypatch.setattr(tasks.DPOTask, "steps", clipped)
    words = ["dpo", "--data.source", "world:400", "--data.test", "0.2", *SHORT[2:], "--steps", "2", "--lr", "1e-3",
             "--batch-size", "16", "--loss.clip", "2", "--require", "any"]  # fmt: skip
    assert run([*words, "--out", str(tmp_path / "clip")]) == 4
    receipt = receipt_of(tmp_path / "clip")
    assert failed(receipt) == {"F28"}
    assert "share of pairs whose gradient loss.clip stops 0.015 (limit 0.01)" in receipt["reason"]
    assert run([*words, "--divergence.kind", "chi-squared-mixed", "--out", str(tmp_path / "chi")]) == 0
    said = [check for check in receipt_of(tmp_path / "chi")["checks"] if check["id"] == "F28"]
    assert [(check["passed"], check["value"], check["limit"]) for check in said] == [
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
    words = ["reward", "world-reward", "--data.source", str(tmp_path / "longer.jsonl"), "--epochs", "3"]
    assert run([*words, "--out", str(tmp_path / "run")]) == 3
    receipt = receipt_of(tmp_path / "run")
    assert receipt["verdict"] == "no detectable change"
    assert "F16" in receipt["reason"]


def test_f05_labels_swapped_in_training_alone_are_broken(tmp_path: Path) -> None:
    rows = world.pairs(0, 3000)
    for number, row in enumerate(rows):
        row["split"] = "test" if number % 5 == 0 else "train"
        if row["split"] == "train":
            row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
    (tmp_path / "swapped.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["reward", "world-reward", "--data.source", str(tmp_path / "swapped.jsonl"), "--epochs", "4"]
    assert run([*words, "--skip-check", "[F04]", "--out", str(tmp_path / "run")]) == 4
    assert "F05" in receipt_of(tmp_path / "run")["reason"]
