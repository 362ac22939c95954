"""A reward that misses its purpose: the score rises, a judge falls, and the run is worse."""

import json
from pathlib import Path

import pytest

from treeward.cli.main import run
from treeward.data import world
from treeward.models.loading import ModelConfig
from treeward.models.policy import Policy

ARGUMENTS = [
    "sft", "world-sft", "--data.source", "world-texts:800", "--model.config.num_hidden_layers", "1",
    "--steps", "40", "--evaluation.prompts", "30",
    "--evaluation.samples", "2", "--evaluation.max_new_tokens", "12",
    "--evaluation.metric", "score", "--evaluation.scorer", "count:the",
    "--evaluation.aa", "true",
]  # fmt: skip


def test_f32_a_judge_that_falls_while_the_score_rises_makes_the_run_worse(tmp_path: Path) -> None:
    file = tmp_path / "judges.py"
    file.write_text(
        "def against(prompt, response):\n    return -response.split().count('the')\n\n"
        "def beside(prompt, response):\n    return float('the' in response.split())\n"
    )
    judges = f"[{file}:against, {file}:beside]"
    assert run([*ARGUMENTS, "--evaluation.judges", judges, "--out", str(tmp_path / "run")]) == 3
    receipt = json.loads((tmp_path / "run" / "receipt.json").read_text())
    assert receipt["difference"]["low"] > 0
    assert receipt["verdict"] == "worse"
    assert receipt["reason"].startswith("judges-agree (F32) FAILED")
    assert "against" in receipt["reason"]
    checks = [check for check in receipt["checks"] if check["slug"] == "judges-agree"]
    assert [(f"judge {file}:{name} " in check["detail"], check["passed"]) for name, check in
            zip(("against", "beside"), checks, strict=True)] == [(True, False), (True, True)]  # fmt: skip
    assert receipt["metrics"][f"judge:{file}:against"]["difference"]["high"] < 0
    assert receipt["win_rate"]["score"]["low"] > 0.5 > receipt["win_rate"][f"judge:{file}:against"]["high"]
    assert receipt["aa"]["score"]["low"] <= receipt["aa"]["score"]["value"] <= receipt["aa"]["score"]["high"]
    rows = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    changes = [row["score_after"] - row["score_before"] for row in rows]
    assert changes == sorted(changes)
    page = (tmp_path / "run" / "report.html").read_text()
    for heading in (
        "Diversity of the samples",
        "Win rate against the start",
        "Against best-of-n of the start",
        "should not differ",
    ):
        assert heading in page


@pytest.mark.parametrize("rewarded", [True, False])
def test_f24_a_policy_rewarded_for_one_word_alone_is_worse(rewarded: bool, tmp_path: Path) -> None:
    """The chosen side says "the" and nothing else, at ten times the usual rate; its twin has the world's own pairs."""
    Policy.from_config(ModelConfig(config={"num_hidden_layers": 1})).save(tmp_path / "start" / "model")
    rows = world.pairs(0, 300)
    if rewarded:
        rows = [{**row, "chosen": " the" * (6 + number % 6)} for number, row in enumerate(rows)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["dpo", "--model.path", str(tmp_path / "start" / "model"), "--data.source", str(tmp_path / "pairs.jsonl"),
             "--steps", "30", "--lr", "3e-3", "--skip-check", "[F09, F48]", "--evaluation.scorer", "count:the",
             "--evaluation.prompts", "12", "--evaluation.samples", "2", "--evaluation.max_new_tokens", "12",
             "--reference.store", "off", "--require", "any", "--out", str(tmp_path / "run")]  # fmt: skip
    assert run(words) == 0
    receipt = json.loads((tmp_path / "run" / "receipt.json").read_text())
    failed = [check["slug"] for check in receipt["checks"] if check["id"] == "F24" and check["passed"] is False]
    if rewarded:
        assert receipt["difference"]["low"] > 0
        assert receipt["verdict"] == "worse"
        assert receipt["reason"].split(" FAILED")[0].endswith("(F24)")
    else:
        assert receipt["verdict"] != "broken"
    assert bool(failed) == rewarded


def test_a_judge_that_is_the_scorer_is_refused(tmp_path: Path) -> None:
    assert run([*ARGUMENTS, "--evaluation.judges", "[count:the]", "--out", str(tmp_path / "run")]) == 2
    assert run([*ARGUMENTS, "--evaluation.metric", "judge:length", "--out", str(tmp_path / "run")]) == 2
    assert not (tmp_path / "run").exists()
