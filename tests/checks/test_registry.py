"""The registry of checks: complete, documented, and the only source of results."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import treeward
from treeward.checks.check import below, require, result
from treeward.checks.guards import MAX_INCREASE
from treeward.checks.registry import REGISTRY, find, nearest, page
from treeward.errors import ChecksFailed, UserError

SOURCE = Path(treeward.__file__).parent
FILES = [file for file in sorted(SOURCE.rglob("*.py")) if file.name != "registry.py"]


def nodes() -> Iterator[ast.AST]:
    for file in FILES:
        yield from ast.walk(ast.parse(file.read_text(encoding="utf-8")))


def literal(node: ast.AST | None) -> str | None:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def test_every_slug_in_the_source_is_registered_and_every_registered_slug_is_used() -> None:
    calls = set()
    strings = set()
    for node in nodes():
        strings.add(literal(node))
        if isinstance(node, ast.Call) and node.args:
            function = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            if function in ("result", "below"):
                calls.add(literal(node.args[0]))
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id == "REGISTRY":
            calls.add(literal(node.slice))
    assert calls - {None} - REGISTRY.keys() == set()
    assert {slug for _, slug in MAX_INCREASE.values()} <= REGISTRY.keys()
    assert REGISTRY.keys() - strings == set()


def test_no_check_is_made_without_the_registry() -> None:
    """`Check(...)` is called by `result` alone."""
    calls = [
        file.name
        for file in FILES
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Check"
    ]
    assert calls == ["check.py"]


def test_every_kind_is_complete() -> None:
    for slug, kind in REGISTRY.items():
        assert slug == kind.slug == slug.lower()
        assert kind.guards, slug
        assert kind.meaning.endswith("."), slug
        assert not kind.fix.endswith("."), slug
        assert not any(character.isdigit() for character in kind.name.replace("4-grams", "")), slug


def test_the_documentation_is_up_to_date() -> None:
    """If it is not: python -m treeward.checks.registry > docs/checks.md"""
    assert (SOURCE.parents[1] / "docs" / "checks.md").read_text(encoding="utf-8") == page() + "\n"


def test_an_unknown_slug_is_a_key_error() -> None:
    with pytest.raises(KeyError, match="no-such-check"):
        result("no-such-check", passed=True)


def test_a_failed_check_names_its_slug_and_id_and_the_fix() -> None:
    failed = below("scores-vary", 1.0, 0.0)
    kind = REGISTRY["scores-vary"]
    assert str(failed) == f"scores-vary (F18) FAILED: {kind.name} 1 (limit 0); {kind.fix}"
    specific = below("scores-vary", 1.0, 0.0, detail="all 0", fix="do this")
    assert str(specific) == f"scores-vary (F18) FAILED: {kind.name} 1 (limit 0); all 0; do this"
    assert str(below("scores-vary", 0.0, 0.0, fix="do this")) == f"scores-vary (F18) passed: {kind.name} 0 (limit 0)"
    assert below("scores-vary", float("nan"), 0.0).passed is False


def test_names_are_found_by_slug_id_and_guarded_failure() -> None:
    assert [kind.slug for kind in find("Layout-Equals-Rows")] == ["layout-equals-rows"]
    assert [kind.slug for kind in find("f24")] == [
        "repetition-limited",
        "samples-likely-under-start",
        "kl-limited",
        "bigrams-kept",
    ]
    assert [kind.slug for kind in find("F07")] == ["layout-equals-rows"]
    assert find("F00") == []
    assert nearest("layout-equal-rows", list(REGISTRY)) == "layout-equals-rows"
    assert nearest("f24", ["F23", "F24"]) == "F24"
    assert nearest("????", list(REGISTRY)) is None


@pytest.mark.parametrize("accepted", [["enough-groups", "branches-differ"], ["F48", "F11"], ["F48", "branches-differ"]])
def test_failures_are_accepted_by_slug_or_id(accepted: list[str]) -> None:
    checks = [
        below("enough-groups", 31, 30),
        below("branches-differ", 1, 0),
        below("data-has-differences", 0, 0),
        below("scores-vary", 0, 0),
    ]
    after = require(checks, accepted)
    assert [check.passed for check in after] == [None, None, True, True]
    assert [check.accepted for check in after] == [True, True, False, False]
    with pytest.raises(ChecksFailed) as caught:
        require(checks, accepted[:1])
    assert [check.slug for check in caught.value.checks] == ["branches-differ"]
    assert caught.value.acceptable
    with pytest.raises(ChecksFailed) as caught:
        require(checks)
    assert not caught.value.acceptable


def test_an_unknown_accepted_name_is_refused_unless_its_check_runs_later() -> None:
    checks = [below("enough-groups", 0, 30)]
    with pytest.raises(UserError, match="skip_check 'enough-group' names no check of this run, did you mean 'enough-"):
        require(checks, ["enough-group"])
    assert require(checks, ["layout-equals-rows"], more_to_come=True) == checks
