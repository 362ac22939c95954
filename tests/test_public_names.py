"""The public names, and that every configuration field has a reader."""

import ast
import dataclasses
import inspect
import re
from pathlib import Path

import pytest

import treeward as tw

SOURCE = Path(tw.__file__).parent

NAMES = [
    "ChecksFailed",
    "DPOConfig",
    "Ensemble",
    "Forest",
    "Policy",
    "ReferenceModel",
    "Response",
    "RewardConfig",
    "RewardModel",
    "SFTConfig",
    "TokenTree",
    "Tree",
    "branch_logps",
    "branch_scores",
    "dpo",
    "pack_to_budget",
    "reward",
    "sft",
    "token_logps",
    "verify",
    "warm",
]

MODULES = ("data", "heads", "losses", "reward_losses")


def test_names_are_sorted_lazy_and_there() -> None:
    assert [name for name in tw.__all__ if name not in MODULES] == NAMES
    for name in tw.__all__:
        assert getattr(tw, name) is not None


def test_verify_is_the_function_and_data_the_package() -> None:
    assert inspect.isfunction(tw.verify)
    assert inspect.ismodule(tw.data)
    assert tw.losses.Sigmoid(beta=0.1).at_start() == pytest.approx(0.693147, abs=1e-6)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nonsense"):
        _ = tw.nonsense  # type: ignore[attr-defined]


def test_every_config_field_is_read_somewhere() -> None:
    """F56: a field that nobody reads is an option without effect."""
    from treeward.runner.evaluate import EvaluateRun
    from treeward.runner.inspect import InspectRun
    from treeward.runner.options import RUNS
    from treeward.runner.sample import SampleRun
    from treeward.runner.settings import describe

    read = {
        node.attr
        for file in SOURCE.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }
    classes = (*RUNS.values(), EvaluateRun, InspectRun, SampleRun)
    fields = {row[0].rsplit(".", 1)[-1] for cls in classes for row in describe(cls)}
    assert fields - {"kind"} <= read


def test_every_config_field_has_a_help_string() -> None:
    from treeward.runner.options import RUNS
    from treeward.runner.settings import describe

    assert [row[0] for cls in RUNS.values() for row in describe(cls) if not row[2]] == []


def test_configs_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        tw.DPOConfig().lr = 1.0  # type: ignore[misc]


def test_the_library_never_speaks_of_options_of_the_command_line() -> None:
    """Whoever calls it from Python has no `--flags`; the packages below the commands name fields instead."""
    named = [
        f"{file.relative_to(SOURCE)}: {node.value[:60]}"
        for package in ("losses", "stats", "merging", "trees", "models", "rewards", "training", "evaluation")
        for file in sorted((SOURCE / package).rglob("*.py"))
        for statement in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(statement, ast.Raise | ast.Assign)
        for node in ast.walk(statement)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and re.search(r"(^|\s)--[a-z]", node.value)
    ]
    assert named == []
