"""Two public reports in miniature (FAILURES, "Five reports"): each fault alone is named, all together are refused."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from treeward.checks.check import ChecksFailed
from treeward.data import world
from treeward.evaluation import policies
from treeward.methods import preferences
from treeward.models.weights import set_dropout
from treeward.runner import train as job
from treeward.runner.options import DPORun
from treeward.runner.settings import build, merge
from treeward.runner.train import Finished, train
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
    return train(build(DPORun, merge(merge(SMALL, source), over)))


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
    """F08: the prompt stands in the chosen response again."""
    return [row | {"chosen": f"{row['prompt']}{row['chosen']}"} for row in rows]


def held_out_from_training(rows: list[Row]) -> list[Row]:
    """F50: the first training rows are the evaluation."""
    own = [row for row in rows if row["split"] == "train"]
    return [*own, *(row | {"split": "test"} for row in own[:60])]


FAST = {"lr": 0.1}
"""F42: a thousand times too fast."""
REVIEWS: dict[str, tuple[Callable[[list[Row]], list[Row]], dict[str, Any]]] = {
    "F08": (echoing, {}), "F50": (held_out_from_training, {}), "F42": (list, FAST),
}  # fmt: skip


def test_the_twin_of_the_reviews_is_silent(tmp_path: Path) -> None:
    receipt = run(tmp_path, reviews()).receipt
    assert [check["id"] for check in receipt["checks"] if check["passed"] is False] == []


@pytest.mark.parametrize("fault", list(REVIEWS))
def test_each_fault_of_dpo_on_generated_reviews_is_named(fault: str, tmp_path: Path) -> None:
    pack, over = REVIEWS[fault]
    others = {*REVIEWS} - {fault}
    found = named(tmp_path, pack(reviews()), **over)
    assert fault in found
    assert not found & others


def gamed(path: Path) -> dict[str, Any]:
    """F32: the score counts one word, and a judge that training never used counts it against the review."""
    (path / "judge.py").write_text("def against(prompt, response):\n    return -response.split().count('the')\n")
    return {"evaluation": {"scorer": "count:the", "judges": [f"{path / 'judge.py'}:against"], "prompts": 32}}


def test_f32_the_score_of_generated_reviews_rises_while_a_judge_falls(tmp_path: Path) -> None:
    rows = [row | {"chosen": " the" * (2 + number % 4)} for number, row in enumerate(reviews())]
    receipt = run(tmp_path, rows, **merge(gamed(tmp_path), {"steps": 30, "lr": 3e-3})).receipt
    assert receipt["difference"]["low"] > 0
    assert receipt["verdict"] == "worse"
    assert receipt["reason"].startswith("F32 FAILED")


def test_dpo_on_generated_reviews_is_refused_with_all_its_faults_at_once(tmp_path: Path) -> None:
    rows = held_out_from_training(echoing(reviews()))
    assert {"F08", "F42", "F50"} <= named(tmp_path, rows, **merge(gamed(tmp_path), FAST))


def dialogues() -> list[Row]:
    """The same reviews as transcripts."""
    return [
        {side: f"\n\nHuman: {row['prompt']}\n\nAssistant:{row[side]}" for side in ("chosen", "rejected")}
        | {"split": row["split"]}
        for row in reviews()
    ]


def prompt_in_the_sum(patch: Patch) -> None:
    """F03: the chosen side's sum holds the prompt's log-probability too."""
    honest = preferences.Ratios.of.__func__

    def summed(cls: Any, model: Any, forest: Any, reference: Any) -> Any:
        found = honest(cls, model, forest, reference)
        more = torch.zeros_like(found.x)
        more[0::2] = -50.0
        return replace(found, logps=found.logps + more, x=found.x + more)

    patch.setattr(preferences.Ratios, "of", classmethod(summed))


@contextmanager
def in_train_mode(model: Any, dropout: bool = True) -> Iterator[None]:
    model.train()
    yield
    model.eval()


def dropout_left_on(patch: Patch) -> None:
    """F21: dropout acts while log-probabilities are taken, since a step runs in train mode."""
    honest = job.verify

    def forgetful(model: Any, *given: Any) -> Any:
        found = honest(model, *given)
        set_dropout(model, 0.3)
        return found

    patch.setattr(job, "verify", forgetful)
    patch.setattr(TreeModule, "training_mode", in_train_mode)


def last_batch_alone(patch: Patch) -> None:
    """F49: the evaluation keeps its last batch."""
    honest = policies.implicit

    def short(policy: Any, reference: Any, trees: Any) -> Any:
        return honest(policy, reference, trees[-3:])

    patch.setattr(policies, "implicit", short)


SHORT = {"data": {"max_response": 1}}
"""F11: chosen and rejected differ only after the limit."""
DIALOGUES: dict[str, tuple[Callable[[Patch], None] | None, dict[str, Any]]] = {
    "F03": (prompt_in_the_sum, {}), "F11": (None, SHORT), "F21": (dropout_left_on, {}),
    "F49": (last_batch_alone, {}),
}  # fmt: skip


def test_the_twin_of_the_dialogues_is_silent(tmp_path: Path) -> None:
    receipt = run(tmp_path, dialogues()).receipt
    assert [check["id"] for check in receipt["checks"] if check["passed"] is False] == []
    assert [check["passed"] for check in receipt["checks"] if check["id"] == "F49"] == [True]


@pytest.mark.parametrize("fault", list(DIALOGUES))
def test_each_fault_of_dpo_from_scratch_on_dialogues_is_named(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack, over = DIALOGUES[fault]
    if pack is not None:
        pack(monkeypatch)
    assert fault in named(tmp_path, dialogues(), **over)


def test_dpo_from_scratch_on_dialogues_is_refused_with_its_faults_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is measured is looked at only after all that can be said without measuring."""
    for pack, _ in DIALOGUES.values():
        if pack is not None:
            pack(monkeypatch)
    assert {"F03", "F11", "F21"} <= named(tmp_path, dialogues(), **SHORT)
