"""`treeward merge --kind slerp --start DIR --members '[A, B]' [--weight W] [--groups block] --out DIR`."""

import math
from collections.abc import Sequence
from dataclasses import asdict

import torch

from treeward.cli.parse import config_class, overridden, parse, without_recipe
from treeward.cli.show import print_json
from treeward.merging import Group
from treeward.runner import settings
from treeward.runner.merge import MergeResult, merge
from treeward.runs.directory import finite


def run(verb: str, arguments: Sequence[str]) -> int:
    """Merge, and print norms and angles by group."""
    words = parse(arguments, ("json",))
    # Other threads hash and write meanwhile. With two threads for the arithmetic a merge takes 1.4 times as long.
    torch.set_num_threads(1)
    result = merge(settings.build(config_class(verb), overridden(without_recipe(verb, words))))
    if "json" in words.flags:
        facts = {"path": str(result.path), "groups": [asdict(group) for group in result.groups]}
        print_json(finite({**facts, "remarks": result.remarks, "seconds": result.seconds}))
    else:
        show(result)
    return 0


def show(result: MergeResult) -> None:
    """One line a group, then what should be looked at, and where the model is."""
    width = max((len(group.name) for group in result.groups), default=0)
    if result.groups:
        print(f"{'group':<{width}}  moved, % of the start's norm      angle, degrees    merged, %   coefficients")
    for group in result.groups:
        print(f"{group.name:<{width}}  {line(group)}")
    for remark in result.remarks:
        print(f"remark     {remark}")
    print(f"merged     {result.path}, in {result.seconds:.3g} s")


def line(group: Group) -> str:
    """A group's norms, angles and coefficients."""
    percent = 100 / group.start if group.start else math.nan
    moved = ", ".join(f"{norm * percent:.3g}" for norm in group.norms)
    angles = ", ".join("–" if math.isnan(angle) else f"{angle:.1f}" for angle in group.angles)
    coefficients = ", ".join(f"{coefficient:.3f}" for coefficient in group.coefficients)
    return f"{moved:<32}{angles:<18}{group.merged * percent:<12.3g}{coefficients}" + " (linear)" * group.fallback
