"""What happens, as an exit code: our own faults keep their traceback and exit with 1."""

import subprocess
import sys
from pathlib import Path

import pytest

from treeward.cli import main, runs
from treeward.errors import UserError
from treeward.runner.progress import Interrupted

PROGRAM = """
import sys
from treeward.cli import runs
from treeward import __main__
def broken(verb, arguments):
    raise ValueError("zip() argument 2 is shorter than argument 1")
runs.run = broken
sys.argv = ["treeward", "runs"]
__main__.main()
"""


def test_an_internal_value_error_exits_with_1_and_its_traceback(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "ValueError: zip()" in done.stderr
    assert "treeward:" not in done.stderr


@pytest.mark.parametrize("fault", [ValueError("x"), RuntimeError("x"), OSError("x"), AssertionError("x")])
def test_what_is_no_fault_of_the_user_is_not_caught(fault: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(verb: str, arguments: object) -> int:
        raise fault

    monkeypatch.setattr(runs, "run", broken)
    with pytest.raises(type(fault)):
        main.run(["runs"])


@pytest.mark.parametrize(("problem", "code"), [
    (UserError("steps is 0; it must be above 0"), 2), (PermissionError("no"), 2), (Interrupted("stopped"), 130),
    (KeyboardInterrupt(), 130), (OSError(28, "No space left on device"), 2),
])  # fmt: skip
def test_other_ends_have_their_code_and_one_line(
    problem: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def ends(verb: str, arguments: object) -> int:
        raise problem

    monkeypatch.setattr(runs, "run", ends)
    assert main.run(["runs"]) == code
    assert len(capsys.readouterr().err.splitlines()) <= 1
