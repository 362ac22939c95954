"""After the last step: how far the weights moved, and whether what was saved is what was trained."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from treeward.checks.check import Check, below
from treeward.checks.identities import exact
from treeward.models.policy import Policy
from treeward.models.reference import ReferenceModel
from treeward.models.reward_model import RewardModel
from treeward.models.weights import fingerprint, movement
from treeward.trees.tokens import TokenTree

CLIPPED = 0.01
"""Share of the pairs, over a run, whose gradient a clip may stop."""


@dataclass(frozen=True)
class Movement:
    """How far the trainable weights went: relative to their start, in all and by module; and those that did not.

    A module that was all zeros, such as a new head, moved "from zero", which no ratio says.
    """

    relative_update: float
    by_module: dict[str, float | str]
    parameters_unmoved: list[str]

    @classmethod
    def since(cls, model: Policy | RewardModel, start: Mapping[str, Tensor]) -> "Movement":
        """Movement of a model since `weights.snapshot` was taken."""
        norms = movement(model.packed, start)
        modules: dict[str, list[float]] = {}
        for name, (change, norm) in norms.items():
            total = modules.setdefault(_module_of(name), [0.0, 0.0])
            total[0] += change**2
            total[1] += norm**2
        change = sum(c for c, _ in modules.values()) ** 0.5
        norm = sum(n for _, n in modules.values()) ** 0.5
        by_module = {name: _ratio(c**0.5, n**0.5) for name, (c, n) in modules.items()}
        whole = change / norm if norm else math.inf if change else 0.0
        return cls(whole, by_module, [name for name, (c, _) in norms.items() if c == 0])


def _ratio(change: float, norm: float) -> float | str:
    """The change as a multiple of the norm at the start; "from zero" where that was zero."""
    if norm == 0:
        return "from zero" if change else 0.0
    return change / norm


def movement_checks(moved: Movement, expected: bool) -> list[Check]:
    """F37 and F44: weights moved at all, and every trainable tensor did; skipped where no movement was asked for."""
    unmoved = [name for name in moved.parameters_unmoved if not name.endswith("bias")]
    still = moved.relative_update < 1e-8
    found = not still if expected else None
    guards = ("F37", "F47", "F51")
    return [
        Check("F37", "relative movement of the weights", found, guards, "after", moved.relative_update, 1e-8),
        below("F44", "trainable tensors that did not move", len(unmoved), 0, ["F44"], "after", ", ".join(unmoved[:4])),
    ]


def updates(taken: int, planned: int) -> Check:
    """F46: the planned updates were taken."""
    missing = 1 - taken / planned
    return below("F46", "share of planned updates not taken", missing, 0.05, ["F46"], "after", f"{taken} of {planned}")


def clamps(steps: Sequence[Mapping[str, Any]], chi_po: bool) -> list[Check]:
    """F28, from the metrics of a run's steps: the share of the log-ratios in a divergence's straight tail, and of the
    pairs whose gradient `loss.clip` stops.

    The tail keeps its slope, so its share is announced and no more; so is chi-PO's clip, which is part of that
    objective. Any other clip may bind on 1 % of the pairs.
    """
    found = []
    for metric, name, free, why in (
        ("divergence/clamped", "share of log-ratios in the straight tail", True, "the tail keeps its gradient"),
        ("loss/clipped", "share of pairs whose gradient loss.clip stops", chi_po, "chi-PO asks for its clip"),
    ):
        shares = [float(step[metric]) for step in steps if step.get(metric) is not None]
        if shares and free:
            found.append(Check("F28", name, True, ("F28",), "during", fmean(shares), None, why))
        elif shares:
            mean = fmean(shares)
            mend = "raise loss.clip or leave it away" if mean > CLIPPED else ""
            found.append(below("F28", name, mean, CLIPPED, ["F28"], "during", mend))
    return found


def reference_unchanged(reference: ReferenceModel) -> Check:
    """F23: the frozen reference's weights are those of the start."""
    same = reference.hash is None or reference.hash == fingerprint(reference.packed)
    return Check("F23", "the reference's weights are unchanged", same, ("F20", "F23"), "after")


def reload_check(model: Policy | RewardModel, directory: Path, trees: list[TokenTree]) -> Check:
    """I12: the saved model, loaded by plain transformers, has the weights and gives the numbers of the one in memory.

    The weights are equal bit for bit, unless an adapter was merged into them; the numbers on plain rows to rounding.
    """
    kind = AutoModelForCausalLM if isinstance(model, Policy) else AutoModelForSequenceClassification
    saved = kind.from_pretrained(directory / "model", dtype=torch.float32, local_files_only=True)
    saved = saved.to(model.packed.device).eval()
    with exact(model.packed), torch.no_grad():
        deviation = max(_deviation(model, saved, tree) for tree in trees)
    same = model.adapter is not None or fingerprint(saved) == fingerprint(model.packed.model)
    detail = "" if same else "the saved weights are not those in memory"
    found = below("I12", "saved, reloaded: largest deviation", deviation, 1e-4, ["F15", "F17", "F53"], "after", detail)
    return found if same else replace(found, passed=False)


def _deviation(model: Policy | RewardModel, saved: torch.nn.Module, tree: TokenTree) -> float:
    ids = torch.tensor([tree.rows()[0]], device=model.packed.device)
    own = model.packed.plain(tree, 0)
    logits = saved(input_ids=ids).logits
    if isinstance(model, RewardModel):
        return float((model.packed.outputs_of(logits) - own).abs().max())
    start = len(tree.prompt)
    theirs = logits[0, start - 1 : -1].float()
    logps = theirs.gather(1, ids[0, start:, None]).squeeze(1) - theirs.logsumexp(1)
    return float((logps - own).abs().max())


def _module_of(name: str) -> str:
    """The block a parameter belongs to: up to and including the first number in its name."""
    parts = name.removeprefix("model.").split(".")
    for place, part in enumerate(parts):
        if part.isdigit():
            return ".".join(parts[: place + 1])
    return ".".join(parts[:-1])
