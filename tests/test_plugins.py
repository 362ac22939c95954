"""`FILE.py:NAME`: loading an object from a user's file, and what is wrong when it cannot be loaded."""

import dataclasses
import re
import sys
from pathlib import Path

import pytest

from treeward.errors import UserError
from treeward.plugins import load_name


def test_an_object_of_a_file_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("VALUE = 3\ndef double(x):\n    return 2 * x * VALUE\n")
    assert load_name(f"{tmp_path}/mine.py:double", "field")(5) == 30
    assert load_name(f"{tmp_path}/mine.py:VALUE", "field") == 3


def test_relative_paths_start_at_the_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text("VALUE = 4\n")
    monkeypatch.chdir(tmp_path)
    assert load_name("mine.py:VALUE", "field") == 4


def test_two_files_of_one_name_do_not_replace_each_other(tmp_path: Path) -> None:
    classes = []
    for number in (1, 2):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "loss.py").write_text(f"class Loss:\n    number = {number}\n")
        classes.append(load_name(f"{folder}/loss.py:Loss", "field"))
    assert [cls.number for cls in classes] == [1, 2]
    assert [sys.modules[cls.__module__].Loss for cls in classes] == classes


def test_a_file_may_define_dataclasses_with_postponed_annotations(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\nfrom typing import ClassVar\n"
        "@dataclass(frozen=True)\nclass Loss:\n    beta: float = 0.1\n    shared: ClassVar[int] = 1\n"
    )
    assert [f.name for f in dataclasses.fields(load_name(f"{tmp_path}/mine.py:Loss", "field"))] == ["beta"]


@pytest.mark.parametrize(
    ("text", "fix"),
    [
        ("loss", "write it as FILE.py:NAME"),
        ("{here}/none.py:loss", "there is no file"),
        ("{here}/bad.py:loss", r"cannot be run \(SyntaxError"),
        ("{here}/fails.py:loss", r"cannot be run \(RuntimeError: no luck\); correct the file"),
        ("{here}/leaves.py:loss", r"cannot be run \(SystemExit"),
        ("{here}/good.py:loss", "does not define 'loss'; name an object of that file"),
    ],
)
def test_what_is_wrong_is_named_with_the_field_and_the_fix(text: str, fix: str, tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("def loss(:\n")
    (tmp_path / "fails.py").write_text("raise RuntimeError('no luck')\n")
    (tmp_path / "leaves.py").write_text("raise SystemExit(3)\n")
    (tmp_path / "good.py").write_text("other = 1\n")
    text = text.format(here=tmp_path)
    modules = set(sys.modules)
    with pytest.raises(UserError, match=fix) as problem:
        load_name(text, "loss.function")
    assert re.match(rf"loss\.function is {text!r}", str(problem.value))
    assert not {name for name in set(sys.modules) - modules if "treeward_file" in name and "good" not in name}
