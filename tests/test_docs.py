"""The pages: links have a target, checks are named as in the registry, and the code of docs/python.md runs."""

import re
from pathlib import Path
from typing import Any

import pytest

from treeward.checks.registry import REGISTRY

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("bench/*.md")])
LINK = re.compile(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)")
SLUG_AND_ID = re.compile(r"`([a-z0-9-]+)`(?:,)?\s\(?([FI]\d\d)\)")
PYTHON = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_have_a_target(page: Path) -> None:
    missing = [link for link in LINK.findall(page.read_text("utf-8")) if not (page.parent / link).exists()]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_checks_are_named_as_in_the_registry(page: Path) -> None:
    named = SLUG_AND_ID.findall(page.read_text("utf-8"))
    assert [(slug, id_) for slug, id_ in named if slug not in REGISTRY or REGISTRY[slug].id != id_] == []


def test_the_code_of_the_python_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From top to bottom in one session, as the page says; each block is compiled with its own line numbers."""
    page = ROOT / "docs" / "python.md"
    text = page.read_text("utf-8")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "docs.python"}
    for block in PYTHON.finditer(text):
        lines_before = text[: block.start(1)].count("\n")
        exec(compile("\n" * lines_before + block[1], str(page), "exec"), names)
    assert names["finished"].receipt["verdict"] in ("improved", "no detectable change", "worse")
    assert names["receipt"].verdict.word in ("improved", "no detectable change", "worse")
