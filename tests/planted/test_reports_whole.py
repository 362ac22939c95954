"""Two public reports in miniature: each fault is detected alone, and all of them are refused together."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from treeward.data import world
from treeward.errors import ChecksFailed
from treeward.evaluation import policies
from treeward.methods import dpo
from treeward.methods.dpo import DPO, DPORun
from treeward.models.weights import set_dropout
from treeward.runner import run as runner
from treeward.runner.run import Finished
from treeward.runner.settings import build, merge
from treeward.trees.forward import TreeModule

Row = dict[str, Any]
Patch = pytest.MonkeyPatch
SMALL: dict[str, Any] = {
    "steps": 2, "batch_size": 16, "lr": 1e-3, "require": "any", "reference": {"store": "off"},
    "model": {"config": {"num_hidden_layers": 1}}, "evaluation": {"prompts": 3, "samples": 2, "max_new_tokens": 8},
}  # fmt: skip


def run(path: Path, rows: list[Row], **over: Any) -> Finished:
    """DPO on these rows."""
    (path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"data": {"source": str(path / "rows.jsonl")}, "out": str(path / "run")}
    return runner.run(build(DPORun, merge(merge(SMALL, source), over)), DPO)


def named(path: Path, rows: list[Row], **over: Any) -> set[str]:
    """The ids of the failed checks, and of the failures that they guard against; nothing may have been written."""
    with pytest.raises(ChecksFailed) as caught:
        run(path, rows, **over)
    assert not (path / "run").exists()
    return {name for check in caught.value.checks for name in (check.id, *check.guards)}


def reviews() -> list[Row]:
    """Pairs of reviews, one a prompt, that name their split: every fifth is held out."""
    unique = {row["prompt"]: row for row in world.pairs(0, 800)}
    return [
        {"prompt": row["prompt"], "chosen": row["chosen"], "rejected": row["rejected"],
         "split": "train" if number % 5 else "test"}
        for number, row in enumerate(unique.values())
    ]  # fmt: skip


def echoing(rows: list[Row]) -> list[Row]:
    """F08: the chosen response begins with its prompt."""
    return [row | {"chosen": f"{row['prompt']}{row['chosen']}"} for row in rows]


def held_out_from_training(rows: list[Row]) -> list[Row]:
    """F50: the first training rows are held out as well."""
    training = [row for row in rows if row["split"] == "train"]
    return [*training, *(row | {"split": "test"} for row in training[:60])]


FAST = {"lr": 0.1}
"""F42: a thousand times too fast."""
REVIEWS: dict[str, tuple[Callable[[list[Row]], list[Row]], dict[str, Any]]] = {
    "F08": (echoing, {}), "F50": (held_out_from_training, {}), "F42": (list, FAST),
}  # fmt: skip


def test_clean_reviews_pass_all_checks(tmp_path: Path) -> None:
    receipt = run(tmp_path, reviews()).receipt
    assert [check["id"] for check in receipt["checks"] if check["passed"] is False] == []


@pytest.mark.parametrize("fault", list(REVIEWS))
def test_each_fault_of_dpo_on_generated_reviews_is_named(fault: str, tmp_path: Path) -> None:
    plant, over = REVIEWS[fault]
    others = {*REVIEWS} - {fault}
    failures = named(tmp_path, plant(reviews()), **over)
    assert fault in failures
    assert not failures & others


def exploited_score(path: Path) -> dict[str, Any]:
    """F32: the score counts one word, and a judge that training never used counts it against the review."""
    (path / "judge.py").write_text("def against(prompt, response):\n    return -response.split().count('the')\n")
    return {"evaluation": {"scorer": "count:the", "judges": [f"{path / 'judge.py'}:against"], "prompts": 32}}


def test_f32_the_score_of_generated_reviews_rises_while_a_judge_falls(tmp_path: Path) -> None:
    rows = [row | {"chosen": " the" * (2 + number % 4)} for number, row in enumerate(reviews())]
    receipt = run(tmp_path, rows, **merge(exploited_score(tmp_path), {"steps": 30, "lr": 3e-3})).receipt
    assert receipt["difference"]["low"] > 0
    assert receipt["verdict"] == "worse"
    assert receipt["reason"].startswith("judges-agree (F32) FAILED")


def test_dpo_on_generated_reviews_is_refused_with_all_its_faults_at_once(tmp_path: Path) -> None:
    rows = held_out_from_training(echoing(reviews()))
    assert {"F08", "F42", "F50"} <= named(tmp_path, rows, **merge(exploited_score(tmp_path), FAST))


def dialogues() -> list[Row]:
    """The same reviews as transcripts."""
    return [
        {side: f"\n\nHuman: {row['prompt']}\n\nAssistant:{row[side]}" for side in ("chosen", "rejected")}
        | {"split": row["split"]}
        for row in reviews()
    ]


def prompt_in_the_sum(patch: Patch) -> None:
    """F03: the chosen side's sum holds the prompt's log-probability too."""
    original = dpo.LogRatios.of.__func__

    def summed(cls: Any, model: Any, forest: Any, reference: Any) -> Any:
        ratios = original(cls, model, forest, reference)
        more = torch.zeros_like(ratios.x)
        more[0::2] = -50.0
        return replace(ratios, logps=ratios.logps + more, x=ratios.x + more)

    patch.setattr(dpo.LogRatios, "of", classmethod(summed))


@contextmanager
def in_train_mode(model: Any, dropout: bool = True) -> Iterator[None]:
    model.train()
    yield
    model.eval()


def dropout_left_on(patch: Patch) -> None:
    """F21: dropout acts while log-probabilities are taken, since a step runs in train mode."""
    original = runner.verify

    def forgetful(model: Any, *arguments: Any) -> Any:
        verification = original(model, *arguments)
        set_dropout(model, 0.3)
        return verification

    patch.setattr(runner, "verify", forgetful)
    patch.setattr(TreeModule, "training_mode", in_train_mode)


def only_the_last_batch(patch: Patch) -> None:
    """F49: the evaluation keeps its last batch."""
    original = policies.implicit

    def short(policy: Any, reference: Any, trees: Any) -> Any:
        return original(policy, reference, trees[-3:])

    patch.setattr(policies, "implicit", short)


SHORT = {"data": {"max_response": 1}}
"""F11: chosen and rejected differ only after the limit."""
DIALOGUES: dict[str, tuple[Callable[[Patch], None] | None, dict[str, Any]]] = {
    "F03": (prompt_in_the_sum, {}), "F11": (None, SHORT), "F21": (dropout_left_on, {}),
    "F49": (only_the_last_batch, {}),
}  # fmt: skip


def test_clean_dialogues_pass_all_checks(tmp_path: Path) -> None:
    receipt = run(tmp_path, dialogues()).receipt
    assert [check["id"] for check in receipt["checks"] if check["passed"] is False] == []
    assert [check["passed"] for check in receipt["checks"] if check["id"] == "F49"] == [True]


@pytest.mark.parametrize("fault", list(DIALOGUES))
def test_each_fault_of_dpo_from_scratch_on_dialogues_is_named(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant, over = DIALOGUES[fault]
    if plant is not None:
        plant(monkeypatch)
    assert fault in named(tmp_path, dialogues(), **over)


def test_dpo_from_scratch_on_dialogues_is_refused_with_its_faults_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Faults of the measurement (F49) are checked only where everything before the measurement passed."""
    for plant, _ in DIALOGUES.values():
        if plant is not None:
            plant(monkeypatch)
    assert {"F03", "F11", "F21"} <= named(tmp_path, dialogues(), **SHORT)
