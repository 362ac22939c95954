"""Progress of a run: what a log without a terminal shows, and where a resumed run goes on."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from rich.console import Console

from treeward.cli.main import run
from treeward.runner import progress
from treeward.runner import run as job

SHORT = [
    "--data.limit",
    "400",
    "--steps",
    "4",
    "--evaluate-every",
    "2",
    "--require",
    "any",
    "--model.config.num_hidden_layers",
    "1",
]


def test_a_line_has_rate_time_left_and_the_figures_as_they_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "QUIET_SECONDS", -1.0)
    figures: dict[str, float] = {}
    for step in progress.follow(range(4), 8, "dpo", 4, figures):
        figures["loss"] = 0.5 + step
        if step == 2:
            figures["validation accuracy"] = 0.61
    first, _, third, last = capsys.readouterr().err.splitlines()
    assert first.startswith("dpo: 5/8, ")
    assert first.endswith("; loss 0.5")
    assert third.endswith("; loss 2.5, validation accuracy 0.61")
    assert last.startswith("dpo: 8/8, ")
    assert "/s, 0 s left; loss 3.5" in last


@pytest.mark.parametrize("terminal", [True, False])
def test_while_others_work_a_terminal_has_a_table_and_a_log_has_lines(
    terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    printed = io.StringIO()
    monkeypatch.setattr(progress, "console", Console(file=printed, force_terminal=terminal, width=80))
    monkeypatch.setattr(progress, "REDRAW_SECONDS", -1.0)
    monkeypatch.setattr(progress, "QUIET_SECONDS", -1.0)
    steps = ["none"]
    with progress.redrawn(lambda: f"picture-{steps[-1]}", lambda: f"line-{steps[-1]}") as show:
        for step in ("one", "two"):
            steps.append(step)
            show()
    shown = list(dict.fromkeys(re.findall(r"(?:picture|line)-\w+", printed.getvalue())))
    assert shown[-2:] == (["picture-one", "picture-two"] if terminal else ["line-one", "line-two"])


def test_without_figures_a_line_ends_with_the_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "QUIET_SECONDS", -1.0)
    assert list(progress.follow("ab", 2, "chunks")) == ["a", "b"]
    assert capsys.readouterr().err.splitlines()[-1].endswith("0 s left")


def test_a_run_shows_its_loss_and_metric_and_a_resumed_one_its_step(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(progress, "QUIET_SECONDS", -1.0)

    @contextmanager
    def pressed() -> Iterator[list[bool]]:
        yield [True]

    with monkeypatch.context() as patched:
        patched.setattr(job, "interruptible", pressed)
        assert run(["reward", "world-reward", *SHORT, "--out", str(tmp_path / "run")]) == 130
    assert run(["resume", str(tmp_path / "run")]) == 0
    assert "resuming from step 1 of 4" in caplog.messages
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("reward: ")]
    assert [line.partition(",")[0] for line in lines] == ["reward: 2/4", "reward: 3/4", "reward: 4/4"]
    assert all("; loss 0." in line and ", validation accuracy 0." in line for line in lines)
