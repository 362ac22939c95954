"""Faults of the verdict: reused validation data, too few prompts, wrong labels, bad scores, a full disk."""

import errno
import importlib
import json
import os
import pathlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from treeward.cli.main import run
from treeward.methods.reward import Reward
from treeward.runs.directory import RunDirectory
from treeward.training.loop import Loop

TINY = ["--model.config.num_hidden_layers", "1", "--model.device", "cpu", "--batch-size", "16", "--lr", "1e-3",
        "--require", "any"]  # fmt: skip


def receipt_of(path: Path) -> dict[str, Any]:
    receipt: dict[str, Any] = json.loads((path / "receipt.json").read_text())
    return receipt


def failed(receipt: dict[str, Any]) -> set[str]:
    return {check["id"] for check in receipt["checks"] if check["passed"] is False}


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "evaluation.jsonl").read_text().splitlines()]


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[set[str]]:
    """The groups of every measurement of a reward run, in order: the start, each validation, the end."""
    seen: list[set[str]] = []
    honest = Reward.measure

    def noted(self: Reward, trees: Any) -> Any:
        seen.append({tree.group for tree in trees})
        return honest(self, trees)

    monkeypatch.setattr(Reward, "measure", noted)
    return seen


def reward(out: Path, *words: str) -> int:
    world = ["--model.path", "world", "--data.source", "world:300"]
    return run(["reward", *world, *TINY, "--steps", "20", *words, "--out", str(out)])


def test_f72_no_verdict_on_the_groups_that_chose_the_checkpoint(
    tmp_path: Path, measured: list[set[str]], capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Without a test part, one half of the validation groups chooses the checkpoint, the other gives the verdict."""
    words = ["--data.test", "0", "--data.validation", "0.3", "--evaluate-every", "1"]
    assert reward(tmp_path / "run", *words) == 0
    start, *choices, end = measured
    assert len(choices) == 20
    assert start == end == {row["group"] for row in rows_of(tmp_path / "run")}
    assert all(choice == choices[0] and not choice & end for choice in choices)
    assert abs(len(choices[0]) - len(end)) <= 1
    facts = receipt_of(tmp_path / "run")["data"]["verdict"]
    assert facts == {"groups": len(end), "chosen_on": len(choices[0]), "part": "half of validation"}
    for text in (caplog.text, capsys.readouterr().out):
        assert f"{len(end)} validation groups give the verdict, the other {len(choices[0])} select" in text


def test_f72_clean_a_given_test_part_is_not_changed(
    tmp_path: Path, measured: list[set[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert reward(tmp_path / "run", "--data.test", "0.2", "--data.validation", "0.1", "--evaluate-every", "10") == 0
    start, *choices, end = measured
    assert start == end
    assert len(choices) == 2
    assert not choices[0] & end
    assert receipt_of(tmp_path / "run")["data"]["verdict"]["part"] == "test"
    assert "give the verdict" not in capsys.readouterr().out


def test_f72_where_nothing_is_chosen_all_validation_groups_give_the_verdict(
    tmp_path: Path, measured: list[set[str]]
) -> None:
    words = ["--data.test", "0", "--data.validation", "0.2", "--evaluate-every", "20"]
    assert reward(tmp_path / "run", *words) == 0
    assert len(measured) == 2
    facts = receipt_of(tmp_path / "run")["data"]["verdict"]
    assert facts == {"groups": len(measured[0]), "chosen_on": 0, "part": "validation"}
    assert not (tmp_path / "run" / "checkpoints" / "best.safetensors").exists()


def test_f72_half_of_a_small_validation_part_is_too_few(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert reward(tmp_path / "run", "--data.test", "0", "--data.validation", "0.15", "--evaluate-every", "1") == 2
    printed = capsys.readouterr().err
    assert "enough-groups (F48) FAILED" in printed
    assert "raise data.validation, or set data.test" in printed
    assert not (tmp_path / "run").exists()


def test_f72_a_given_split_whose_validation_shares_groups_with_test(
    tmp_path: Path, measured: list[set[str]], caplog: pytest.LogCaptureFixture
) -> None:
    """Ten test prompts are in validation as well: the checkpoint is not chosen on them."""
    from treeward.data import world

    rows = list({row["prompt"].lower(): row for row in world.pairs(0, 320)}.values())
    for number, row in enumerate(rows):
        row["split"] = ("train", "train", "train", "validation", "test")[number % 5]
    rows += [{**row, "split": "validation"} for row in rows if row["split"] == "test"][:10]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--data.source", str(tmp_path / "rows.jsonl"), "--evaluate-every", "10"]
    assert reward(tmp_path / "run", *words) == 0
    start, *choices, end = measured
    assert start == end
    assert not choices[0] & end
    assert "10 validation groups are in the test part too" in caplog.text


def test_f44_clean_keeping_the_weights_of_the_first_step_is_not_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A head that starts at zero gives the backbone no gradient in step one, whose weights may yet be the best."""
    from treeward.stats.tables import Measurement, Table

    original, count = Reward.measure, iter(range(9))

    def falling(self: Reward, trees: Any) -> Measurement:
        measurement, number = original(self, trees), next(count)
        if number not in (1, 2, 3):
            return measurement
        pairs = measurement.tables["pairs"]
        columns = {**pairs.columns, "accuracy": 0 * pairs.columns["accuracy"] + 0.9 - number / 10}
        return Measurement({**measurement.tables, "pairs": Table(pairs.groups, columns)})

    monkeypatch.setattr(Reward, "measure", falling)
    words = ["--data.test", "0.2", "--data.validation", "0.1", "--steps", "3", "--evaluate-every", "1"]
    assert reward(tmp_path / "run", *words) == 0
    receipt = receipt_of(tmp_path / "run")
    assert not failed(receipt)
    assert "model.model.norm.weight" in receipt["movement"]["parameters_unmoved"], "of the weights that are kept"


DPO = ["dpo", "--data.source", "world:300", "--data.test", "0.2", *TINY, "--steps", "2", "--evaluation.samples", "2",
       "--evaluation.max-new-tokens", "6", "--reference.store", "off"]  # fmt: skip


def test_f48_counts_the_prompts_that_the_verdict_uses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*DPO, "--evaluation.scorer", "gold", "--evaluation.prompts", "2"]
    assert run([*words, "--dry-run"]) == 2
    printed = capsys.readouterr().err
    assert "enough-groups (F48) FAILED: groups that the verdict is measured on 2 (limit 30)" in printed
    assert "raise evaluation.prompts" in printed
    assert run([*words, "--skip-check", "[F48]", "--out", str(tmp_path / "run")]) == 0
    receipt = receipt_of(tmp_path / "run")
    assert receipt["after"]["n"] == 2
    assert receipt["accepted"] == ["enough-groups"]
    assert "1 accepted: enough-groups" in capsys.readouterr().out


def test_f48_clean_a_metric_without_samples_uses_all_groups(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*DPO, "--evaluation.prompts", "2", "--out", str(tmp_path / "run")]) == 0
    receipt = receipt_of(tmp_path / "run")
    (check,) = [check for check in receipt["checks"] if check["id"] == "F48"]
    assert check["value"] == receipt["after"]["n"]
    assert check["value"] >= 30
    assert receipt["accepted"] == []
    assert "accepted" not in capsys.readouterr().out


@pytest.fixture(scope="module")
def swapped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """World pairs whose labels are reversed in the test part alone. Reversed in training alone measures the same."""
    from treeward.data import world

    rows = list({row["prompt"].lower(): row for row in world.pairs(0, 1200)}.values())
    for number, row in enumerate(rows):
        row["split"] = "test" if number % 3 == 0 else "train"
        if row["split"] == "test":
            row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
    file = tmp_path_factory.mktemp("rows") / "swapped.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def accuracy_of(monkeypatch: pytest.MonkeyPatch, held_out: float, training: float) -> list[int]:
    """Give the reward model these accuracies; returns how often the training part was measured."""
    import numpy as np

    from treeward.stats.tables import Measurement, Table

    honest, asked = Reward.measure, []

    def measure(self: Reward, trees: Any) -> Measurement:
        measurement = honest(self, trees)
        if not asked:  # the start is the head's, at zero
            asked.append(0)
            return measurement
        pairs = measurement.tables["pairs"]
        right = (np.arange(len(pairs.groups)) < held_out * len(pairs.groups)).astype(np.float64)
        return Measurement({**measurement.tables, "pairs": Table(pairs.groups, {**pairs.columns, "accuracy": right})})

    def pair_accuracy(self: Reward, trees: Any) -> Table:
        asked[0] += 1
        groups = [tree.group for tree in trees]
        return Table(groups, {"accuracy": (np.arange(len(groups)) < training * len(groups)).astype(np.float64)})

    monkeypatch.setattr(Reward, "measure", measure)
    monkeypatch.setattr(Reward, "pair_accuracy", pair_accuracy)
    return asked


@pytest.mark.parametrize(
    ("held_out", "training", "verdict", "training_tables"),
    [
        (0.2, 0.8, "broken", 1), (0.2, 0.52, "worse", 1), (0.2, 0.2, "worse", 1), (0.36, 0.9, "worse", 0),
        (0.8, 0.9, "improved", 0),
    ],
)  # fmt: skip
def test_f05_labels_that_differ_between_the_parts(
    held_out: float,
    training: float,
    verdict: str,
    training_tables: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Broken only where both parts are clear; the training part is measured only where the held-out one is clear."""
    calls = accuracy_of(monkeypatch, held_out, training)
    words = ["--data.test", "0.3", "--data.validation", "0", "--steps", "3"]
    assert reward(tmp_path / "run", *words) == (4 if verdict == "broken" else 0)
    receipt = receipt_of(tmp_path / "run")
    assert receipt["verdict"] == verdict, receipt["reason"]
    assert calls == [training_tables]
    assert ("F05" in failed(receipt)) == (verdict == "broken")


def test_f05_labels_reversed_in_one_part_alone_are_broken(swapped: Path, tmp_path: Path) -> None:
    words = ["reward", "world-reward", "--data.source", str(swapped), "--epochs", "6", "--skip-check", "[F04]",
             "--model.config.num_hidden_layers", "1"]  # fmt: skip
    assert run([*words, "--out", str(tmp_path / "run")]) == 4
    receipt = receipt_of(tmp_path / "run")
    assert failed(receipt) == {"F05"}
    assert "on the training part" in receipt["reason"]


SCORES = """
calls = 0

def late(prompt, response):
    global calls
    calls += 1
    return {value} if calls > {after} else float(len(response))

def early(prompt, response):
    return {value}
"""


@pytest.mark.parametrize("value", ["float('nan')", "float('inf')", "None", "1 / 0"])
def test_f35_a_score_that_is_no_number_only_after_training_is_broken(value: str, tmp_path: Path) -> None:
    """Thirty-two samples of the start are scored, then a sample of the trained policy gets no number."""
    (tmp_path / "judge.py").write_text(SCORES.format(value=value, after=40))
    words = [*DPO, "--evaluation.scorer", f"{tmp_path / 'judge.py'}:late", "--evaluation.prompts", "16",
             "--skip-check", "[F48]"]  # fmt: skip
    assert run([*words, "--out", str(tmp_path / "run")]) == 4
    receipt = receipt_of(tmp_path / "run")
    assert receipt["verdict"] == "broken"
    assert failed(receipt) == {"F35"}
    for named in ("judge.py:late", "response 1,", "the values after training are copies of those before"):
        assert named in receipt["reason"]
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()
    assert (tmp_path / "run" / "report.html").exists()


def test_f35_a_score_that_is_no_number_while_training_is_broken(tmp_path: Path) -> None:
    (tmp_path / "judge.py").write_text(SCORES.format(value="float('nan')", after=40))
    words = [*DPO, "--evaluation.scorer", f"{tmp_path / 'judge.py'}:late", "--evaluation.prompts", "16",
             "--skip-check", "[F48]", "--evaluate-every", "1"]  # fmt: skip
    assert run([*words, "--out", str(tmp_path / "run")]) == 4
    assert "F35" in receipt_of(tmp_path / "run")["reason"]


def test_f35_a_score_that_is_no_number_before_training_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "judge.py").write_text(SCORES.format(value="float('nan')", after=40))
    words = [*DPO, "--evaluation.scorer", f"{tmp_path / 'judge.py'}:early", "--evaluation.prompts", "16",
             "--skip-check", "[F48]"]  # fmt: skip
    assert run([*words, "--out", str(tmp_path / "run")]) == 2
    assert "judge.py:early' gave nan for response 1," in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_f28_a_reward_model_without_finite_scores_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    update = Loop.update

    def ruined(self: Loop) -> dict[str, torch.Tensor]:
        metrics = update(self)
        if self.index == 3:
            with torch.no_grad():
                self.parameters[0].fill_(float("nan"))
        return metrics

    monkeypatch.setattr(Loop, "update", ruined)
    assert reward(tmp_path / "run", "--data.test", "0.2", "--data.validation", "0", "--steps", "3") == 4
    receipt = receipt_of(tmp_path / "run")
    assert "F28" in failed(receipt)
    assert "chosen is nan" in receipt["reason"]


def test_evaluation_rows_of_a_labelled_pair_name_both_texts(tmp_path: Path) -> None:
    """Texts with slashes of their own, two in a pair: the row names both."""
    from treeward.data import world

    rows = [
        {"text": f"{row[side]} / take {n}", "label": label, "split": "test" if n % 3 == 0 else "train"}
        for n, row in enumerate(world.pairs(0, 150)) for side, label in (("chosen", 1), ("rejected", 0))
    ]  # fmt: skip
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert reward(tmp_path / "run", "--data.source", str(tmp_path / "texts.jsonl"), "--steps", "2") == 0
    labels = {row["text"]: row["label"] for row in rows}
    evaluation = rows_of(tmp_path / "run")
    assert len(evaluation) >= 30
    assert all([labels[side] for side in row["sides"]] == [1, 0] for row in evaluation)


def test_the_movement_of_a_head_that_starts_at_zero_is_from_zero(tmp_path: Path) -> None:
    assert reward(tmp_path / "run", "--data.test", "0.2", "--steps", "3") == 0
    moved = receipt_of(tmp_path / "run")["movement"]
    assert moved["by_module"]["score"] == "from zero"
    assert 0 < moved["by_module"]["model.layers.0"] < 1
    assert 0 < moved["relative_update"] < 1


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
RUST = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def fails_once(original: Any, problem: Exception, when: Callable[..., bool]) -> Any:
    """`original`, but the first call for which `when` holds raises; the disk has room again afterwards."""
    left = [problem]

    def call(*arguments: Any, **named: Any) -> Any:
        if left and when(*arguments):
            raise left.pop()
        return original(*arguments, **named)

    return call


def writes(*, weights: str = "", optimizer: str = "", text: str = "") -> dict[str, Any]:
    """The function through which a file goes, and when its path holds these words."""
    if weights:
        writer = "treeward.training.checkpoints.save_file"
        return {"target": writer, "when": lambda _, file, *rest: weights in str(file)}
    if optimizer:
        return {"target": "torch.save", "when": lambda _, file: optimizer in str(file.name)}
    return {"target": "pathlib.Path.write_text", "when": lambda file, _: text in str(file)}


@pytest.mark.parametrize(
    ("write", "problem", "done"),
    [
        (writes(weights="step-000004"), RUST, "after step 2"), (writes(optimizer="step-000004"), FULL, "after step 2"),
        (writes(weights="best"), RUST, "after step 4"), (writes(text="receipt"), FULL, "after step 4"),
        (writes(text="report"), FULL, "the receipt is written"),
    ],
)  # fmt: skip
def test_a_full_disk_is_one_line_and_the_last_checkpoint_is_kept(
    write: dict[str, Any],
    problem: Exception,
    done: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    module, _, name = write["target"].rpartition(".")
    owner = pathlib.Path if module == "pathlib.Path" else importlib.import_module(module)
    monkeypatch.setattr(owner, name, fails_once(getattr(owner, name), problem, write["when"]))
    out = tmp_path / "run"
    words = ["--data.test", "0.2", "--data.validation", "0.1", "--steps", "5", "--save-every", "2"]
    assert reward(out, *words) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"treeward: no space left on the disk of {str(out)!r}")
    assert done in line
    assert not [path for path in out.rglob(".*") if path.name != ".lock"], "nothing half-written is left"
    if "report" in done or "receipt is" in done:
        assert "treeward report" in line
        assert receipt_of(out)["verdict"] != "broken"
        return
    assert f"treeward resume {out}" in line
    assert run(["resume", str(out)]) == 0
    assert [path.name for path in RunDirectory(out).checkpoints()] == ["step-000004"]


def test_a_disk_that_is_full_from_the_start_leaves_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Path, "write_text", fails_once(Path.write_text, FULL, lambda file, _: "config" in str(file)))
    assert reward(tmp_path / "run", "--data.test", "0.2") == 2
    assert "no space left on the disk" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert reward(tmp_path / "run", "--data.test", "0.2", "--steps", "2") == 0
