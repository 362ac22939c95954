"""The public names, and that every configuration field has a reader."""

import ast
import dataclasses
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

import treeward as tw

SOURCE = Path(tw.__file__).parent

NAMES = [
    "BadScore",
    "Batches",
    "Check",
    "ChecksFailed",
    "DPOConfig",
    "Dataset",
    "EMA",
    "EMAReference",
    "Ensemble",
    "Evaluation",
    "Forest",
    "Frozen",
    "LabelledObjective",
    "LoRA",
    "Loop",
    "Measurement",
    "Method",
    "Objective",
    "PairObjective",
    "PairScores",
    "Policy",
    "PolicyGradientObjective",
    "RankingObjective",
    "Receipt",
    "ReferenceModel",
    "ReinforceConfig",
    "Response",
    "Result",
    "RewardConfig",
    "RewardModel",
    "RewardObjective",
    "Rollout",
    "RunConfig",
    "Runtime",
    "SFTConfig",
    "Sample",
    "Step",
    "Table",
    "Terms",
    "TokenNLL",
    "TokenTree",
    "Tree",
    "UserError",
    "Warped",
    "best_worst",
    "branch_logps",
    "branch_scores",
    "check",
    "dpo",
    "dpo_steps",
    "evaluate",
    "load",
    "pack",
    "receipt",
    "reinforce",
    "reinforce_steps",
    "render",
    "reward",
    "reward_steps",
    "sample",
    "score",
    "sft",
    "sft_steps",
    "token_logps",
    "verify",
    "warm",
    "warp",
]

MODULES = ("data", "divergences", "heads", "losses", "merging", "reward_losses")


def test_names_are_sorted_lazy_and_there() -> None:
    assert [name for name in tw.__all__ if name not in MODULES] == NAMES
    for name in tw.__all__:
        assert getattr(tw, name) is not None


def test_type_checkers_see_every_name() -> None:
    """Completion works: the names under TYPE_CHECKING are those that are imported lazily."""
    tree = ast.parse((SOURCE / "__init__.py").read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.asname for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert seen == {*NAMES, *MODULES}


def test_public_functions_are_typed_and_take_no_unnamed_options() -> None:
    functions = [getattr(tw, name) for name in NAMES if inspect.isfunction(getattr(tw, name))]
    classes = [getattr(tw, name) for name in NAMES if inspect.isclass(getattr(tw, name))]
    for cls in classes:
        functions += [
            value
            for name, value in vars(cls).items()
            if inspect.isfunction(value)
            and value.__module__.startswith("treeward")
            and name.strip("_") in (name, "init")
        ]
    assert len(functions) > 60
    for function in functions:
        for parameter in inspect.signature(function).parameters.values():
            where = f"{function.__qualname__}({parameter.name})"
            assert parameter.name == "self" or parameter.annotation is not inspect.Parameter.empty, where
            options = parameter.kind is inspect.Parameter.VAR_KEYWORD and parameter.annotation in (Any, object)
            assert not options, where


def test_verify_is_the_function_and_data_the_package() -> None:
    assert inspect.isfunction(tw.verify)
    assert inspect.ismodule(tw.data)
    assert tw.losses.Sigmoid(beta=0.1).at_start() == pytest.approx(0.693147, abs=1e-6)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nonsense"):
        _ = tw.nonsense  # type: ignore[attr-defined]


def test_every_config_field_is_read_somewhere() -> None:
    """F56: a field that nobody reads is an option without effect."""
    from treeward.methods import METHODS, find
    from treeward.runner.evaluate import EvaluateRun
    from treeward.runner.fields import keys
    from treeward.runner.inspect import InspectRun
    from treeward.runner.sample import SampleRun

    read = {
        node.attr
        for file in SOURCE.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }
    classes = (*(find(name).Config for name in METHODS), EvaluateRun, InspectRun, SampleRun)
    fields = {key.rsplit(".", 1)[-1] for cls in classes for key in keys(cls)}
    assert fields - {"kind"} <= read


def test_every_config_field_has_a_help_string() -> None:
    from treeward.methods import METHODS, find
    from treeward.runner.fields import options

    rows = [option for name in METHODS for option in options(find(name).Config, every_kind=True)]
    assert [option.key for option in rows if not option.meaning] == []


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
