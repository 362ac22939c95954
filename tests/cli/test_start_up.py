"""What starts without torch: help of every command, lists, pages from run directories, inspection."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from treeward.cli.help import PAGES

PAIRS = [{"prompt": f"w{n} w3", "chosen": f"w{n} w9", "rejected": f"w{n}"} for n in range(3, 43)]
PROGRAM = """
import json, sys
import treeward, treeward.stats.intervals, treeward.report.frontier, treeward.report.page
from treeward.cli.main import run
for words in json.loads(sys.argv[1]):
    assert run(words) == 0, words
    heavy = {"torch", "peft", "datasets", *(["transformers"] if "looked" not in words else [])}
    assert not heavy & sys.modules.keys(), words
"""


def test_help_lists_pages_and_inspection_import_no_torch(tmp_path: Path, tiny_tokenizer: Any) -> None:
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    tiny_tokenizer.save_pretrained(tmp_path / "tiny")
    lines = [
        ["--help"],
        ["--version"],
        *([verb, "--help"] for verb in PAGES),
        ["dpo", "--help", "--loss.kind", "simpo"],
        ["recipes"],
        ["recipes", "copy", "world-dpo"],
        ["runs"],
        ["inspect", "pairs.jsonl", "--tokenizer", "./tiny", "--tokenizer", "world", "--out", "looked"],
        ["report", "looked"],
    ]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(lines)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_reader_that_stops_reading_causes_no_traceback() -> None:
    """As in `treeward --help | head -1`."""
    program = subprocess.Popen([sys.executable, "-m", "treeward", "--help"], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)  # fmt: skip
    assert program.stdout is not None
    program.stdout.close()
    assert program.stderr is not None
    assert program.stderr.read() == ""
    assert program.wait() == 141
