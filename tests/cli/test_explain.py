"""`treeward explain`: by slug, by id, all of them; without torch."""

import json
import subprocess
import sys

import pytest

from treeward.checks.registry import REGISTRY
from treeward.cli.main import run


def test_a_slug_prints_meaning_and_fix(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["explain", "layout-equals-rows"]) == 0
    kind = REGISTRY["layout-equals-rows"]
    printed = capsys.readouterr().out
    assert printed.startswith("layout-equals-rows (I05), before the first step; guards against F07, F22")
    assert kind.meaning in printed
    assert kind.fix in printed


def test_an_id_prints_all_its_checks(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["explain", "f11"]) == 0
    printed = capsys.readouterr().out
    assert all(slug in printed for slug, kind in REGISTRY.items() if kind.id == "F11")
    assert "F24" not in printed


def test_alone_it_lists_every_check(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["explain"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines] == [[kind.slug, kind.id, kind.stage] for kind in REGISTRY.values()]


def test_an_unknown_name_is_refused_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["explain", "layout-equal-row"]) == 2
    assert "did you mean 'layout-equals-rows'?" in capsys.readouterr().err


def test_it_imports_no_torch() -> None:
    program = """
import json, sys
from treeward.cli.main import run
for words in json.loads(sys.argv[1]):
    assert run(words) == 0, words
assert not {"torch", "numpy", "transformers"} & set(sys.modules), "heavy import"
"""
    lines = [["explain"], ["explain", "F48"], ["explain", "--help"]]
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(lines)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
