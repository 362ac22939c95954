"""The run directory: claimed once, whole files, JSON without NaN."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from treeward.runs import directory
from treeward.runs.directory import RunDirectory, alone, created, finite, free_path


def test_next_free_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert free_path("a", None) == Path("runs/a")
    Path("runs/a").mkdir(parents=True)
    Path("runs/a-2").mkdir()
    assert free_path("a", None) == Path("runs/a-3")


def test_a_named_directory_that_exists_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"never overwritten: name another$"):
        free_path("a", str(tmp_path))


def test_a_stopped_run_can_be_resumed_and_an_ended_one_cannot(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("")
    with pytest.raises(ValueError, match=r"name another, or `treeward resume .*`$"):
        free_path("a", str(tmp_path))
    (tmp_path / "receipt.json").write_text("")
    with pytest.raises(ValueError, match=r"name another$"):
        free_path("a", str(tmp_path))


def test_a_name_that_is_taken_meanwhile_gives_way_to_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    free_path_before, taken = directory.free_path, []

    def late(name: str, out: str | None, option: str = "--out") -> Path:
        path = free_path_before(name, out, option)
        if not taken:
            taken.append(path)
            path.mkdir(parents=True)
        return path

    monkeypatch.setattr(directory, "free_path", late)
    assert created("a", None).path == Path("runs/a-2")
    taken.clear()
    with pytest.raises(ValueError, match=r"--out 'b' exists"):
        created("a", "b")


def test_two_cannot_work_in_one_directory(tmp_path: Path) -> None:
    with (
        alone(tmp_path),
        pytest.raises(ValueError, match=f"is being written by process {os.getpid()}; wait for it"),
        alone(tmp_path),
    ):
        pass
    with alone(tmp_path):
        pass


def test_a_killed_process_leaves_no_lock(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from treeward.runs.directory import alone\n"
        "with alone(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:  # fmt: skip
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(ValueError, match=f"process {other.pid}"), alone(tmp_path):
            pass
        other.kill()
        other.wait()
    with alone(tmp_path):
        pass


def test_nan_and_infinity_become_null(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run")
    run.write_json("x.json", {"a": math.nan, "b": [math.inf, 1.5], "c": (1, 2)})
    assert json.loads((run.path / "x.json").read_text()) == {"a": None, "b": [None, 1.5], "c": [1, 2]}
    assert finite({"n": 3, "s": "text"}) == {"n": 3, "s": "text"}


def test_a_half_written_last_line_is_left_out(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run")
    run.append("m.jsonl", {"step": 1})
    with (run.path / "m.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')
    assert run.lines("m.jsonl") == [{"step": 1}]
    assert run.lines("absent.jsonl") == []


def test_incomplete_checkpoints_do_not_count(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run")
    for step in (100, 20):
        run.checkpoint(step).mkdir(parents=True)
        (run.checkpoint(step) / "state.json").write_text("{}")
    run.checkpoint(300).mkdir()
    assert [path.name for path in run.checkpoints()] == ["step-000020", "step-000100"]


def test_writing_leaves_no_temporary_file(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run")
    run.write("a.txt", "one")
    run.write("a.txt", "two")
    assert [(path.name, path.read_text()) for path in run.path.iterdir()] == [("a.txt", "two")]
