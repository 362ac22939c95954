"""A run killed at any step and resumed is the run that was never stopped, bit for bit."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SMALL = [
    "--model.config.num_hidden_layers", "1", "--data.source", "world-texts:400",
    "--steps", "9", "--batch_size", "16", "--save-every", "2", "--evaluate-every", "3",
    "--evaluation.prompts", "2", "--evaluation.samples", "1", "--evaluation.max_new_tokens", "4", "--require", "any",
]  # fmt: skip


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "treeward", *words]


def finish(*words: str) -> None:
    done = subprocess.run(command(*words), capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr[-800:]


def results(run: Path) -> tuple[str, str, str]:
    names = ("metrics.jsonl", "model/model.safetensors", "evaluation.jsonl")
    first, second, third = (hashlib.sha256((run / name).read_bytes()).hexdigest() for name in names)
    return first, second, third


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, str]:
    run = tmp_path_factory.mktemp("whole") / "run"
    finish("sft", "world-sft", *SMALL, "--out", str(run))
    return results(run)


def stopped(run: Path, lines: int, how: signal.Signals, *words: str) -> int:
    """Run this command, by default the training itself, until that many steps are logged, then send the signal; returns
    the exit code.
    """
    words = words or ("sft", "world-sft", *SMALL, "--out", str(run))
    process = subprocess.Popen(command(*words), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    limit = time.monotonic() + 120
    while time.monotonic() < limit and process.poll() is None:
        if (run / "metrics.jsonl").exists() and (run / "metrics.jsonl").read_text().count("\n") >= lines:
            os.kill(process.pid, how)
            break
        time.sleep(0.002)
    return process.wait(timeout=60)


def test_stopped_and_resumed_equals_uninterrupted(tmp_path: Path, uninterrupted: tuple[str, str, str]) -> None:
    """Killed before its first checkpoint, resumed and stopped by Ctrl-C, resumed and killed again, and finished."""
    run = tmp_path / "run"
    assert stopped(run, 1, signal.SIGKILL) == -signal.SIGKILL
    assert not list((run / "checkpoints").glob("step-*"))
    assert stopped(run, 3, signal.SIGINT, "resume", str(run)) == 130
    assert list((run / "checkpoints").glob("step-*"))
    assert stopped(run, 8, signal.SIGKILL, "resume", str(run)) == -signal.SIGKILL
    assert not (run / "receipt.json").exists()
    finish("resume", str(run))
    assert results(run) == uninterrupted
