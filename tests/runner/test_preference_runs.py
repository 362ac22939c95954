"""`treeward dpo` from configuration to receipt: losses of each kind, divergences, labelled rows, weights."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from treeward.methods.dpo import DPO, DPORun
from treeward.runner import run as runner
from treeward.runner.run import Finished
from treeward.runner.settings import build, dump, merge, override

LN2 = math.log(2)
SHORT: dict[str, Any] = {
    "data": {"source": "world:400", "test": 0.2}, "steps": 3, "batch_size": 16, "lr": 1e-3, "require": "any",
    "model": {"config": {"num_hidden_layers": 1}}, "evaluation": {"prompts": 2, "samples": 2, "max_new_tokens": 8},
}  # fmt: skip


def run(folder: Path, **over: Any) -> tuple[Finished, list[dict[str, float]]]:
    """A short run on the world, and its metrics by step."""
    done = runner.run(build(DPORun, merge(SHORT, {**over, "out": str(folder / "run")})), DPO)
    return done, [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]


def checked(done: Finished) -> dict[str, Any]:
    """I02 of the receipt, which must have passed; the metric is held-out accuracy from a constant start."""
    receipt = done.receipt
    assert receipt["verdict"] != "broken"
    assert receipt["metric"] == "accuracy"
    assert (receipt["before"]["value"], receipt["before"]["constant"]) == (0.5, True)
    check: dict[str, Any] = next(check for check in receipt["checks"] if check["id"] == "I02")
    assert check["passed"] is True
    return check


@pytest.mark.parametrize(
    ("over", "start"),
    [
        ({"loss": {"kind": "ipo", "beta": 0.5}}, 1.0),
        ({"loss": {"kind": "kto"}}, 0.5),
        ({"loss": {"kind": "sigmoid"}, "divergence": {"kind": "jensen-shannon"}}, LN2),
        ({"loss": {"kind": "sigmoid", "clip": 2.0}, "divergence": {"kind": "chi-squared-mixed"}}, LN2),
        ({"loss": {"kind": "plackett-luce"}, "data": {"source": "world-graded:300"}}, LN2),
        ({"margin": 0.3}, math.log1p(math.exp(0.3))),
    ],
    ids=str,
)
def test_runs_begin_at_the_known_value_and_reach_their_receipt(over: Any, start: float, tmp_path: Path) -> None:
    done, steps = run(tmp_path, **over)
    assert f"expected {start:.6f}" in checked(done)["detail"]
    assert steps[0]["loss"] == pytest.approx(start, abs=1e-4)
    assert ("divergence/clamped" in steps[0]) == ("divergence" in over)
    assert len(steps) == 3


@pytest.mark.parametrize("loss", [{"kind": "orpo"}, {"kind": "simpo"}], ids=str)
def test_without_a_reference_the_first_value_comes_from_measured_log_probabilities(loss: Any, tmp_path: Path) -> None:
    done, steps = run(tmp_path, loss=loss)
    assert "expected" in checked(done)["detail"]
    assert steps[0]["logps/chosen"] < -10
    assert all(math.isfinite(value) for step in steps for value in step.values())


def test_a_sum_from_the_command_line(tmp_path: Path) -> None:
    terms = "[{weight: 2, loss: {kind: sigmoid, beta: 0.3}}, {weight: 0.1, loss: {kind: ipo, beta: 0.5}}]"
    values = merge(override("loss.kind", "sum"), override("loss.terms", terms))
    done, steps = run(tmp_path, **values)
    assert "expected 1.486294" in checked(done)["detail"]
    assert steps[0]["loss"] == pytest.approx(2 * LN2 + 0.1, abs=1e-4)


def test_kto_learns_from_labelled_rows(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"the plot is {word}", "completion": f" {word} {word} .", "label": word in ("good", "fine")}
        for n in range(300) for word in [("good", "bad", "dull", "fine", "weak")[n % 5]]
    ]  # fmt: skip
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({**row, "prompt": f"{row['prompt']} {n}"}) + "\n" for n, row in enumerate(rows)))
    done, steps = run(
        tmp_path,
        loss={"kind": "kto", "desirable": 1.2},
        data={"source": str(file)},
        steps=25,
        lr=3e-3,
        warmup=0.0,
        skip_check=["F48"],
    )
    checked(done)
    assert done.receipt["verdict"] == "improved"
    assert done.receipt["after"]["value"] == 1.0
    assert 0.5 <= steps[0]["loss"] <= 0.6
    assert steps[-1]["rewards/accuracies"] > 0.9


def test_weights_of_rows_reach_the_loss(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"the plot is {n}", "chosen": " good .", "rejected": " bad .", "weight": 3.0, "chosen_rating": 2,
         "rejected_rating": 1.5}
        for n in range(200)
    ]  # fmt: skip
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done, steps = run(tmp_path, data={"source": str(file)}, margin=0.4)
    assert steps[0]["loss"] == pytest.approx(3 * math.log1p(math.exp(0.2)), abs=1e-4)
    assert "expected 0.798139" in checked(done)["detail"]


def test_what_does_not_fit_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    for over, named in (
        ({"loss": {"kind": "ipo"}, "divergence": {"kind": "forward-kl"}}, "per-token mean log-ratios"),
        ({"loss": {"kind": "simpo"}, "margin": 0.1}, "has none"),
        ({"divergence": {"kind": "chi-squared"}}, "the normaliser does not cancel"),
        ({"divergence": {"kind": "total-variation"}}, "no gradient"),
        ({"divergence": {"kind": "alpha", "alpha": -1}}, "TRL's"),
        ({"loss": {"kind": "kto"}, "data": {"source": "world-graded:200"}}, "has no labels"),
        ({"loss": {"kind": "plackett-luce"}, "data": {"source": "world-texts"}}, "has no pairs"),
        ({"loss": {"kind": "sum", "terms": [{"loss": {"kind": "ipso"}}]}}, "did you mean 'ipo'"),
        ({"loss": {"kind": "sum", "terms": {"kind": "ipo"}}}, "it is a list"),
        ({"loss": {"kind": "sum", "terms": []}}, r"loss\.terms is empty"),
    ):
        with pytest.raises(ValueError, match=named):
            run(tmp_path, **over)
    assert not (tmp_path / "run").exists()


def test_a_sum_survives_a_round_trip() -> None:
    loss = {
        "kind": "sum",
        "terms": [{"weight": 0.5, "loss": {"kind": "dpop", "penalty": 9.0}}, {"loss": {"kind": "nca"}}],
    }
    config = build(DPORun, {"loss": loss})
    assert build(DPORun, dump(config)) == config
    assert dump(config)["loss"]["terms"][0] == {"weight": 0.5, "loss": {"kind": "dpop", "beta": 0.1, "penalty": 9.0}}
