"""A reward that is not what is wanted: the score rises, a judge falls, and the run is worse."""

import json
from pathlib import Path

from treeward.cli.main import run

ARGUMENTS = [
    "sft", "world-sft", "--data.limit", "800", "--steps", "40", "--evaluation.prompts", "24",
    "--evaluation.samples", "2", "--evaluation.max_new_tokens", "12",
    "--evaluation.metric", "score", "--evaluation.scorer", "count:the",
    "--evaluation.aa", "true",
]  # fmt: skip


def test_f32_a_judge_falls_while_the_score_rises(tmp_path: Path) -> None:
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
    assert receipt["reason"].startswith("F32 FAILED")
    assert "against" in receipt["reason"]
    found = {check["name"].rpartition(":")[2]: check["passed"] for check in receipt["checks"] if check["id"] == "F32"}
    assert found == {"against": False, "beside": True}
    assert receipt["metrics"][f"judge:{file}:against"]["difference"]["high"] < 0
    assert receipt["win_rate"]["score"]["low"] > 0.5 > receipt["win_rate"][f"judge:{file}:against"]["high"]
    assert receipt["aa"]["score"]["low"] <= receipt["aa"]["score"]["value"] <= receipt["aa"]["score"]["high"]
    rows = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    changes = [row["score_after"] - row["score_before"] for row in rows]
    assert changes == sorted(changes)
    page = (tmp_path / "run" / "report.html").read_text()
    for heading in ("Diversity of the samples", "Against the start", "best-of-n", "against itself", "judge "):
        assert heading in page


def test_a_judge_that_is_the_scorer_is_refused(tmp_path: Path) -> None:
    assert run([*ARGUMENTS, "--evaluation.judges", "[count:the]", "--out", str(tmp_path / "run")]) == 2
    assert run([*ARGUMENTS, "--evaluation.metric", "judge:length", "--out", str(tmp_path / "run")]) == 2
    assert not (tmp_path / "run").exists()
