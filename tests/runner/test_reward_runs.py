"""Whole reward runs: each head and loss to its receipt, ensembles, and what the artifact then says."""

import json
from pathlib import Path
from typing import Any

import pytest

from treeward.data.prepare import DataConfig
from treeward.losses.heads import Attributes, Categorical, Logistic, Ordinal, Scalar
from treeward.losses.reward import AllPairs, BradleyTerry, Graded, HalfTies, Joint, PlackettLuce
from treeward.methods.reward import Reward, RewardRun
from treeward.models.loading import ModelConfig
from treeward.models.reward_model import RewardModel
from treeward.runner import settings
from treeward.runner.members import train_members
from treeward.runner.run import run

SCALE = (-2.5, 2.0)
GRADED = DataConfig(source="world-graded:700", test=0.2)
ONE_LAYER = ModelConfig(config={"num_hidden_layers": 1})


def plan(folder: Path, **fields: Any) -> RewardRun:
    values: dict[str, Any] = {
        "model": ONE_LAYER,
        "data": GRADED,
        "steps": 6,
        "batch_size": 32,
        "lr": 2e-3,
        "require": "any",
        **fields,
    }
    return RewardRun(out=str(folder / "run"), **values)


@pytest.mark.parametrize(
    ("head", "loss"),
    [
        (Categorical(), None),
        (Ordinal(), HalfTies(entropy=0.01)),
        (Logistic(), Joint(graded=Graded(scale=SCALE))),
        (Categorical(), Graded(scale=SCALE)),
        (Scalar(), PlackettLuce()),
        (Scalar(), AllPairs()),
        (Categorical(), BradleyTerry(margin=0.3)),
    ],
)
def test_every_head_and_loss_reaches_its_receipt(head: Any, loss: Any, tmp_path: Path) -> None:
    finished = run(plan(tmp_path, head=head, loss=loss), Reward)
    receipt = finished.receipt
    assert receipt["verdict"] != "broken"
    assert receipt["metric"] == ("crps" if isinstance(loss, Graded) else "accuracy")
    accuracy = receipt["metrics"].get("accuracy", receipt)
    assert accuracy["before"]["value"] == 0.5
    assert accuracy["before"]["constant"] is True
    first = next(check for check in receipt["checks"] if check["id"] == "I02")
    assert first["passed"] is True
    assert receipt["calibration"]["ece"]["n"] > 50
    assert receipt["length"]["longer_wins"]["n"] > 50
    if isinstance(loss, Joint | Graded):
        assert receipt["graded"]["spearman"]["n"] > 50
        assert {"mae", "crps", "cross_entropy"} <= {receipt["metric"], *receipt["metrics"]}
    facts = json.loads((tmp_path / "run" / "model" / "treeward.json").read_text())
    assert facts["accuracy"] == {key: accuracy["after"][key] for key in ("value", "low", "high", "n", "reliable")}
    assert facts["normalisation"]["sd"] > 0
    assert facts["data"]["source"] == "world-graded:700"
    assert RewardModel.load(str(tmp_path / "run" / "model"), device="cpu").head == head


def test_attributes_learn_from_raw_grades(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"the plot is {word}", "response": f" {word} {word} .",
         "scores": {"x": float(n % 5), "y": 4.0 * (n % 5 == 2)}}
        for n in range(300) for word in [("good", "bad", "dull", "fine", "weak")[n % 5]]
    ]  # fmt: skip
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({**row, "prompt": f"{row['prompt']} {n}"}) + "\n" for n, row in enumerate(rows)))
    config = plan(
        tmp_path, head=Attributes(("x", "y"), 5, (1.0, 0.0)), loss=Graded(),
        data=DataConfig(source=str(file), test=0.2), steps=40,
    )  # fmt: skip
    receipt = run(config, Reward).receipt
    assert receipt["verdict"] == "improved"
    assert receipt["after"]["value"] < 0.3 < receipt["before"]["value"]
    assert receipt["graded"]["spearman"]["low"] > 0.5


def test_members_differ_and_are_joined(tmp_path: Path) -> None:
    finished = train_members(plan(tmp_path, members=2, data=DataConfig(source="world:600", test=0.2)))
    assert set(finished.combinations) == {"member 1", "mean", "worst case", "mean - variance", "WARM"}
    assert finished.combinations["member 1"]["against_member_1"]["value"] == 0.0
    members = [RewardModel.load(str(run.path / "model"), device="cpu") for run in finished.members]
    weights = [m.packed.model.get_input_embeddings().weight for m in members]
    averaged = RewardModel.load(str(finished.path / "model"), device="cpu").packed.model.get_input_embeddings().weight
    assert not weights[0].equal(weights[1])
    assert (averaged - (weights[0] + weights[1]) / 2).abs().max() < 1e-6
    said = json.loads((finished.path / "ensemble.json").read_text())
    assert said["mean_spread_in_sd"] > 0


def test_a_loss_that_cannot_teach_the_head_is_refused() -> None:
    for fields, named in (
        ({"loss": {"kind": "half-ties"}}, "needs a distribution"),
        ({"head": {"kind": "attributes"}, "loss": {"kind": "joint"}}, "compares one distribution"),
        ({"members": 0}, "members is 0"),
        ({"loss": {"kind": "bradlyterry"}}, "did you mean 'bradley-terry'"),
    ):
        with pytest.raises(ValueError, match=named):
            settings.build(RewardRun, fields)  # type: ignore[arg-type]
