"""What a command may run and reach: Python files that its own words name, and no network for local files."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from treeward.cli.main import run

MARK = "import pathlib; pathlib.Path('ran').touch()\ndef f(prompt, response): return len(response)\n"
TINY = "{num_hidden_layers: 1, hidden_size: 16, intermediate_size: 16, num_attention_heads: 2, num_key_value_heads: 2}"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "judge.py").write_text(MARK)


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert run(words) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("treeward:")]
    assert len(lines) == 1, lines
    return lines[0]


@pytest.mark.parametrize(
    ("verb", "values"),
    [
        ("dpo", {"evaluation": {"scorer": "judge.py:f"}}),
        ("dpo", {"evaluation": {"judges": ["length", "./judge.py:f"]}}),
        ("pairs", {"scorer": "judge.py:f"}),
        ("pairs", {"scorer": "gold", "rounds": 1, "dpo": {"evaluation": {"scorer": "judge.py:f"}}}),
    ],
)
def test_a_recipe_does_not_choose_code(verb: str, values: object, capsys: pytest.CaptureFixture[str]) -> None:
    Path("foreign.yaml").write_text(yaml.safe_dump({"command": verb, **dict(values)}))  # type: ignore[call-overload]
    for words in ([], *([["--sweep", "seed=1,2"]] if verb == "dpo" else [])):
        message = refused(capsys, verb, "foreign.yaml", *words)
        assert "'foreign.yaml' would run the Python file" in message
        assert "judge.py:f'" in message
        assert "name it on this command line, or add --allow-code" in message
    assert not Path("ran").exists()


def test_code_runs_where_the_command_line_names_or_allows_it(capsys: pytest.CaptureFixture[str]) -> None:
    Path("foreign.yaml").write_text("command: dpo\nevaluation: {scorer: 'judge.py:f'}\ndata: {limit: 60}\n")
    small = ["--model.config", TINY]
    for words in (["--allow-code"], ["--evaluation.scorer", "judge.py:f"]):
        assert run(["dpo", "foreign.yaml", *small, *words, "--dry-run"]) == 2  # the data is too small: F48
        assert "F48" in capsys.readouterr().err
        assert Path("ran").exists()
        Path("ran").unlink()


def test_resume_of_a_foreign_run_does_not_run_its_code(capsys: pytest.CaptureFixture[str]) -> None:
    Path("run").mkdir()
    Path("run/config.yaml").write_text("command: dpo\nevaluation: {scorer: 'judge.py:f'}\ndata: {limit: 60}\n")
    message = refused(capsys, "resume", "run")
    assert "'run' would run the Python file 'judge.py:f'" in message
    assert not Path("ran").exists()
    assert "change nothing" in refused(capsys, "resume", "run", "--evaluation.scorer", "length")
    run(["resume", "run", "--evaluation.scorer", "judge.py:f"])
    assert Path("ran").exists()


@pytest.mark.parametrize("name", ["../..", "..", "/tmp/x", "a/b", "a\\b", ".", "a\0b", "x" * 300])
def test_a_name_stays_in_runs(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("r.yaml").write_text(yaml.safe_dump({"name": name}))
    assert "it must be the name of one folder in runs/" in refused(capsys, "sft", "r.yaml")
    assert not Path("runs").exists()


def test_a_missing_model_directory_is_never_looked_for_on_the_hub(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("treeward.models.loading.hub_reachable", lambda: pytest.fail("the hub was asked for"))
    Path("models").mkdir()
    Path("file").touch()
    for path in ("./models/x", "models/x", "models/x/y", "../x", "~/nowhere"):
        assert "is not a directory" in refused(capsys, "sft", "--model.path", path)
    assert "'file' is a file" in refused(capsys, "sft", "--model.path", "file")


def test_a_recipe_that_multiplies_itself_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    layers = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{name}: &{name} [{','.join([f'*{last}'] * 10)}]\n" for last, name in zip("abcdef", "bcdefg", strict=True)
    )
    Path("bomb.yaml").write_text(layers)
    assert "more than 10000 values" in refused(capsys, "dpo", "bomb.yaml", "--print-config")
    Path("twice.yaml").write_text("steps: 1\nsteps: 2\n")
    assert "'steps' is given twice" in refused(capsys, "dpo", "twice.yaml", "--print-config")
    Path("alias.yaml").write_text("steps: &n 3\nseed: *n\n")
    assert run(["dpo", "alias.yaml", "--print-config"]) == 0


GUARD = """
import socket
def refuse(*arguments, **named):
    open(%r, "a").write(repr(arguments)[:200] + "\\n")
    raise AssertionError(f"the network was asked for {arguments}")
socket.socket.connect = socket.socket.connect_ex = socket.socket.sendto = refuse
socket.getaddrinfo = socket.gethostbyname = socket.create_connection = refuse
"""

SCRIPT = f"""
import json, sys
from pathlib import Path
import torch
from treeward.cli.main import run
from treeward.models.loading import ModelConfig
from treeward.models.reward_model import RewardModel

small = dict(num_hidden_layers=1, hidden_size=16, intermediate_size=16, num_attention_heads=2, num_key_value_heads=2)
judge = RewardModel.from_config(ModelConfig(path="world", config=small))
torch.nn.init.normal_(judge.packed.model.score.weight)
judge.save(Path("judge"))
small = ["--model.config", "{TINY}"]
skip = ["--skip-check", "[F42, F48]", "--data.limit", "60", "--steps", "2"]
few = ["--evaluation.prompts", "2"]
codes = []
for words in (
    ["inspect", "rows", "--out", "seen"],
    ["inspect", "rows/rows.jsonl", "--tokenizer", "judge", "--out", "seen-2"],
    ["sft", *small, *skip, *few, "--require", "any", "--out", "run"],
    ["reward", *small, *skip, "--dry-run"],
    ["dpo", *small, *skip, *few, "--data.source", "world", "--dry-run"],
    ["sample", "--model.path", "run/model", "--prompt", "the plot is", "--samples", "1", "--max-new-tokens", "2"],
    ["score", "--model.path", "judge", "--data", "rows/rows.jsonl", "--out", "scores.jsonl"],
    ["report", "run"],
):
    codes.append((words[0], run(words)))
print(json.dumps(codes))
"""


def test_no_command_asks_the_network_for_local_files(tmp_path: Path) -> None:
    """Every socket is forbidden, and no offline flag is set, in a process of its own."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(GUARD % str(tmp_path / "asked"))
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "README.md").write_text("---\nconfigs:\n- data_files: hf://datasets/nobody/x.jsonl\n---\n")
    rows = [{"prompt": f"the plot {n} is", "chosen": " good .", "rejected": " dull ."} for n in range(20)]
    (tmp_path / "rows" / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    kept = {name: value for name, value in os.environ.items() if "OFFLINE" not in name}
    path = os.pathsep.join([str(tmp_path / "site"), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=tmp_path, env=kept | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    asked = (tmp_path / "asked").read_text() if (tmp_path / "asked").exists() else ""
    assert not asked, asked
    assert done.returncode == 0, done.stderr[-2000:]
    codes = json.loads(done.stdout.splitlines()[-1])
    # A run of two steps learns nothing, and its verdict is not what is tested here.
    assert [code for verb, code in codes if verb != "sft"] == [0] * 7, (codes, done.stderr[-2000:])
    assert (tmp_path / "run" / "receipt.json").exists()


def test_reading_a_file_asks_for_no_socket_in_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    from treeward.data import sources

    def refuse(*arguments: object, **named: object) -> None:
        pytest.fail(f"the network was asked for {arguments}")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "x"}\n')
    assert sources.read_rows("rows.jsonl") == [{"prompt": "x"}]
