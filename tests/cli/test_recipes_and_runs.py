"""`treeward recipes` and `treeward runs`."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from treeward.cli.main import run
from treeward.cli.runs import age
from treeward.runner.settings import recipe, recipe_text, recipes

BEFORE = {"value": 0.5, "low": 0.5, "high": 0.5, "n": 80, "constant": True, "reliable": True}
AFTER = {"value": 0.64, "low": 0.6, "high": 0.68, "n": 80, "constant": False, "reliable": True}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def make_run(path: Path, verdict: str | None, hours: float, steps: int = 0) -> None:
    """A run directory that was last written this many hours ago."""
    path.mkdir(parents=True)
    (path / "config.yaml").write_text("command: reward\n")
    (path / "metrics.jsonl").write_text("".join(json.dumps({"step": n + 1}) + "\n" for n in range(steps)))
    if verdict is not None:
        receipt: dict[str, Any] = {"command": "reward", "verdict": verdict, "reason": "r", "metric": "accuracy"}
        receipt |= {"before": BEFORE, "after": AFTER, "difference": {"value": 0.14, "p": 0.01}}
        (path / "receipt.json").write_text(json.dumps(receipt))
    for file in path.iterdir():
        written = file.stat().st_mtime - 3600 * hours
        os.utime(file, (written, written))


def test_recipes_are_listed_by_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["recipes"]) == 0
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    titles = [line for line in lines if not line.startswith(" ")]
    assert sorted(titles) == ["dpo", "inspect", "pairs", "reinforce", "reward", "sft", "warp"]
    line = next(line for line in lines if "hh-dpo-gpt2" in line)
    assert "openai-community/gpt2 on Anthropic/hh-rlhf" in line
    assert all(sum(line.split()[0] == name for line in lines) == 1 for name in recipes())


def test_recipes_as_json_have_command_model_data_and_expectation(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["recipes", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["recipes"]
    assert [row["name"] for row in rows] == recipes()
    assert all(row[key] for row in rows for key in ("command", "model", "data", "expect"))


def test_a_copied_recipe_is_the_same_and_nothing_is_overwritten(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run(["recipes", "copy", "world-dpo"]) == 0
    assert "treeward dpo world-dpo.yaml" in capsys.readouterr().out
    assert (tmp_path / "world-dpo.yaml").read_text() == recipe_text("world-dpo")
    assert recipe("world-dpo.yaml") == recipe("world-dpo")
    (tmp_path / "world-dpo.yaml").write_text("mine")
    assert run(["recipes", "copy", "world-dpo"]) == 2
    assert "exists; name another file" in capsys.readouterr().err
    assert (tmp_path / "world-dpo.yaml").read_text() == "mine"
    assert run(["recipes", "copy", "world-dpo", "other.yaml"]) == 0
    assert yaml.safe_load((tmp_path / "other.yaml").read_text())["command"] == "dpo"


@pytest.mark.parametrize(("words", "message"), [
    (["recipes", "copy", "wrld-dpo"], "did you mean 'world-dpo'"),
    (["recipes", "copy", "world-dpo", "file.txt"], "does not end in .yaml"),
    (["recipes", "copy"], "usage: treeward recipes"),
    (["recipes", "copy", "world-dpo", "no/where.yaml"], "cannot be written"),
    (["recipes", "world-dpo"], "usage: treeward recipes"),
    (["recipes", "--all", "x"], "does not take --all"),
    (["runs", "nowhere"], "'nowhere' is not a directory"),
    (["runs", "a", "b"], "one directory"),
])  # fmt: skip
def test_wrong_words_are_refused(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(words) == 2
    assert message in capsys.readouterr().err


def test_runs_are_listed_newest_first(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    make_run(tmp_path / "runs" / "old", "improved", 50)
    make_run(tmp_path / "runs" / "sweep" / "seed=0", "no detectable change", 3)
    make_run(tmp_path / "runs" / "stopped", None, 1, steps=7)
    assert run(["runs"]) == 0
    title, *lines = capsys.readouterr().out.splitlines()
    assert title.split()[:2] == ["run", "verdict"]
    assert [line.split()[0] for line in lines] == ["runs/stopped", "runs/sweep/seed=0", "runs/old"]
    assert "not ended, step 7" in lines[0]
    assert "no detectable change" in lines[1]
    assert "pair accuracy 0.5 by construction -> 0.640 [0.600, 0.680]" in lines[2]
    assert [line.split()[-2:] for line in lines] == [["1", "h"], ["3", "h"], ["2", "d"]]


def test_runs_as_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    make_run(tmp_path / "here" / "a", "improved", 1)
    make_run(tmp_path / "here" / "b", None, 0)
    assert run(["runs", "here", "--json"]) == 0
    second, first = json.loads(capsys.readouterr().out)["runs"]
    assert (first["path"], first["verdict"], first["after"]) == ("here/a", "improved", AFTER)
    assert (second["path"], second["verdict"], second["step"]) == ("here/b", None, None)
    assert first["age_seconds"] == pytest.approx(3600, abs=60)


def test_without_runs_the_list_is_empty(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["runs"]) == 0
    assert "no runs in 'runs'" in capsys.readouterr().out


def test_age_is_in_the_largest_unit() -> None:
    assert [age(seconds) for seconds in (5, 90, 7200, 200_000)] == ["5 s", "2 min", "2 h", "2 d"]
