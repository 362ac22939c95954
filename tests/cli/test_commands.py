"""The command line as a user meets it: help, printed configurations, short real runs."""

import json
from pathlib import Path

import pytest
import yaml

from treeward.cli.main import run
from treeward.stats.formatting import interval

WORLD = ["--model.path", "world"]
SHORT = ["--data.limit", "400", "--steps", "6", "--model.config.num_hidden_layers", "1"]
SAMPLED = [*SHORT, "--evaluation.prompts", "3", "--evaluation.samples", "2"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_print_config_is_reloadable(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ["dpo", "world-dpo", "--loss.kind", "ipo", "--loss.beta", "0.3", "--data.limit=7", "--print-config"]
    assert run(words) == 0
    printed = capsys.readouterr().out
    config = yaml.safe_load(printed)
    assert config["loss"] == {"kind": "ipo", "beta": 0.3}
    assert config["data"]["limit"] == 7
    (tmp_path / "again.yaml").write_text(printed)
    assert run(["dpo", "again.yaml", "--print-config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out) == config
    assert run([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == config


def test_recipe_of_another_command_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["sft", "world-dpo"]) == 2
    assert "treeward dpo" in capsys.readouterr().err


def test_dry_run_checks_and_writes_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run(["reward", "world-reward", "--data.limit", "400", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "layout-equals-rows (I05) passed" in printed
    assert "estimate: about" in printed
    assert not list(tmp_path.glob("runs/*"))


def test_json_of_a_training_command_is_its_receipt_with_the_path(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["reward", "world-reward", *SHORT, "--require", "any", "--json"]
    assert run([*words, "--out", str(tmp_path / "rm")]) == 0
    printed = json.loads(capsys.readouterr().out)
    receipt = json.loads((tmp_path / "rm" / "receipt.json").read_text())
    assert printed == {"path": str(tmp_path / "rm"), **receipt}
    assert run(["evaluate", "--model.path", str(tmp_path / "rm" / "model"), "--data.limit", "400", "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)
    assert measured["metrics"]["accuracy"]["value"] == receipt["after"]["value"]
    rows = [{"prompt": "the plot is", "chosen": " good .", "rejected": " dull ."}]
    (tmp_path / "rows.jsonl").write_text(json.dumps(rows[0]) + "\n")
    words = ["score", "--model.path", str(tmp_path / "rm" / "model"), "--data", str(tmp_path / "rows.jsonl"), "--json"]
    assert run([*words, "--out", str(tmp_path / "scores.jsonl")]) == 0
    scored = json.loads(capsys.readouterr().out)
    assert (scored["rows"], scored["responses"], scored["out"]) == (1, 2, str(tmp_path / "scores.jsonl"))
    assert scored["accuracy"]["n"] == 1


def test_json_of_a_dry_run_and_of_a_sweep(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run(["reward", "world-reward", "--data.limit", "400", "--dry-run", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert {"id": "I05", "passed": True}.items() <= next(c for c in printed["checks"] if c["id"] == "I05").items()
    assert printed["estimate"].startswith("about")
    words = ["reward", "world-reward", *SHORT, "--require", "any", "--sweep", "seed=0,1", "--json"]
    assert run([*words, "--out", str(tmp_path / "sweep")]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert list(printed["runs"]) == ["seed=0", "seed=1"]
    assert all(Path(run["path"], "receipt.json").exists() for run in printed["runs"].values())


def test_runs_take_the_next_free_name_and_write_all_files(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for _ in range(2):
        run(["reward", "world-reward", *SHORT, "--require", "any"])
    first, second = tmp_path / "runs" / "world-reward", tmp_path / "runs" / "world-reward-2"
    for name in ("config.yaml", "environment.json", "metrics.jsonl", "evaluation.jsonl", "receipt.json", "report.html"):
        assert (first / name).stat().st_size > 0
        assert (second / name).stat().st_size > 0
    receipt = json.loads((first / "receipt.json").read_text())
    assert receipt["before"] == {"value": 0.5, "low": 0.5, "high": 0.5, "n": receipt["after"]["n"], "constant": True,
                                 "reliable": True}  # fmt: skip
    checked = {check["id"] for check in receipt["checks"]}
    assert {"I02", "I04", "I05", "I06", "I07", "I08", "I11", "I12", "F10", "F42"} <= checked
    assert receipt["verdict"] in capsys.readouterr().out


def test_no_improvement_is_exit_3_unless_any_verdict_is_accepted(tmp_path: Path) -> None:
    words = ["reward", "world-reward", *SHORT, "--steps", "2", "--lr", "7e-5", "--skip-check", "[F42]"]
    assert run([*words, "--out", str(tmp_path / "a")]) == 3
    assert json.loads((tmp_path / "a" / "receipt.json").read_text())["verdict"] == "no detectable change"
    assert run([*words, "--require", "any", "--out", str(tmp_path / "b")]) == 0


def test_sample_prints_json_lines(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["sample", *WORLD, "--prompt", "this new film by a team : the plot is", "--samples", "2"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [set(row) for row in rows] == [{"prompt", "response", "ended", "tokens"}] * 2


def test_evaluate_of_a_policy_against_its_start(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """KL of a policy to itself is zero; without a start there is none."""
    run(["sft", "world-sft", *SAMPLED, "--require", "any", "--out", str(tmp_path / "sft")])
    capsys.readouterr()
    words = ["evaluate", "--model.path", str(tmp_path / "sft" / "model"), "--data.limit", "400",
             "--evaluation.prompts", "3", "--evaluation.max_new_tokens", "6"]  # fmt: skip
    assert run([*words, "--start", str(tmp_path / "sft" / "model"), "--out", str(tmp_path / "measured")]) == 0
    assert "kl         0 [–, –] (interval unreliable), n=3" in capsys.readouterr().out
    assert json.loads((tmp_path / "measured" / "intervals.json").read_text())["kl"]["value"] == 0
    assert run(words) == 0
    assert not any(line.startswith("kl") for line in capsys.readouterr().out.splitlines())


def test_evaluate_of_a_reward_model(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run(["reward", "world-reward", *SHORT, "--require", "any", "--out", str(tmp_path / "rm")])
    receipt = json.loads((tmp_path / "rm" / "receipt.json").read_text())
    capsys.readouterr()
    assert run(["evaluate", "--model.path", str(tmp_path / "rm" / "model"), "--data.limit", "400"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("accuracy"))
    assert f" {interval(receipt['after'])}, n=" in line


def test_evaluate_of_one_reward_model_against_another(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A model against itself differs by exactly 0; against another the gap is that of the two accuracies."""
    for name, steps in (("short", "2"), ("long", "12")):
        run(["reward", "world-reward", *SHORT, "--steps", steps, "--require", "any", "--out", str(tmp_path / name)])
    intervals = {}
    for start in ("long", "short"):
        words = ["evaluate", "--model.path", str(tmp_path / "long" / "model"), "--data.limit", "400",
                 "--start", str(tmp_path / start / "model"), "--out", str(tmp_path / f"against-{start}")]  # fmt: skip
        capsys.readouterr()
        assert run(words) == 0
        printed = capsys.readouterr().out
        assert "ece" in printed
        assert "mcnemar" in printed
        intervals[start] = json.loads((tmp_path / f"against-{start}" / "intervals.json").read_text())
    assert intervals["long"]["accuracy"]["difference"]["value"] == 0.0
    receipts = [
        json.loads((tmp_path / name / "receipt.json").read_text())["after"]["value"] for name in ("long", "short")
    ]
    assert intervals["short"]["accuracy"]["difference"]["value"] == pytest.approx(receipts[0] - receipts[1], abs=1e-9)
