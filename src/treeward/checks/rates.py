"""F42: a learning rate orders of magnitude off teaches nothing, or destroys; it needs an explicit flag."""

from treeward.checks.check import Check

USUAL = {"dpo": (1e-6, 1e-5, 3e-4), "sft": (1e-5, 5e-5, 3e-3), "reward": (1e-5, 5e-5, 3e-3)}
"""The usual rate of each method from 1B parameters, at 100M, and under 20M or from random weights."""

FACTOR = 30
WEIGHT_SCALE = 0.02


def usual_rate(method: str, parameters: int, random: bool) -> float:
    """The method's documented rate for a model of this size."""
    large, middle, small = USUAL[method]
    if random or parameters < 20_000_000:
        return small
    return large if parameters >= 1_000_000_000 else middle


def rate_check(method: str, lr: float, steps: int, parameters: int, random: bool) -> Check:
    """The rate lies within a factor of 30 of the usual one, and the run can move a weight by 1e-3 of its scale."""
    usual = usual_rate(method, parameters, random)
    reach = lr * steps / WEIGHT_SCALE
    near = usual / FACTOR <= lr <= usual * FACTOR
    mend = "" if near and reach >= 1e-3 else f"; use about {usual:g}, or accept with --skip-check F42"
    detail = (
        f"lr {lr:g}, usual {usual:g} for {parameters / 1e6:.1f}M parameters{' from random weights' if random else ''}; "
        f"{steps} steps move a weight by at most about {reach:.2g} of its scale{mend}"
    )
    return Check("F42", "learning rate", near and reach >= 1e-3, ("F42",), "before", lr, usual * FACTOR, detail)
