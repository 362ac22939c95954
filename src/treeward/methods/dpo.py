"""Direct preference optimisation: a loss on the log-ratios of the responses to a prompt.

The loss is any member of `maths.preference.AnyPreferenceLoss`, on pairs, rankings or single labelled responses
(`algorithms.preferences`). The reference is the policy as it was before the first step; its log-probabilities cannot
change, so they are computed once, before it, and for losses that need no reference not at all. A reference that
follows the policy (EMA) is asked anew at each batch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from treeward.errors import UserError
from treeward.losses.divergences import AnyDivergence, ReverseKL
from treeward.losses.preference import KTO, AnyPreferenceLoss, PlackettLuce, Sigmoid, needs
from treeward.losses.reward import check_margin
from treeward.methods.preferences import (
    AnyObjective,
    Following,
    Known,
    LabelledPreference,
    PairPreference,
    RankedPreference,
    labels,
)
from treeward.models.policy import Policy, tokenised
from treeward.models.reference import AnyReference, EMAReference, Frozen, ReferenceModel, reference_for
from treeward.training.loop import LoopConfig, Step, fit, reached, settings
from treeward.training.outputs import refuse_margins
from treeward.trees.text import Tree
from treeward.trees.tokens import TokenTree
from treeward.trees.verify import verify_once

WITH_MARGINS = "sigmoid, robust, hinge, exo or normalised-sigmoid"


@dataclass(frozen=True, kw_only=True)
class DPOConfig(LoopConfig):
    """Direct preference optimisation."""

    lr: float = 1e-6
    """Peak learning rate: 1e-6 from 1B parameters, 1e-5 at 100M, up to 3e-4 under 20M or from random weights."""
    loss: AnyPreferenceLoss = field(default_factory=Sigmoid)
    """The preference loss."""
    divergence: AnyDivergence = field(default_factory=ReverseKL)
    """The f-divergence from the reference: the loss sees its score of each log-ratio."""
    reference: AnyReference = field(default_factory=Frozen)
    """What log-ratios are measured against."""
    margin: float = 0.0
    """Largest margin asked for between the implicit rewards: margin * min(rating gap, 1), or itself without ratings."""

    def __post_init__(self) -> None:
        super().__post_init__()
        kind = type(self.loss).__name__
        if self.loss.no_divergence and not isinstance(self.divergence, ReverseKL):
            raise UserError(
                f"divergence.kind {type(self.divergence).__name__} does not go with loss.kind {kind}: "
                f"{self.loss.no_divergence}; use reverse-kl, or sigmoid, robust, hinge, exo or plackett-luce"
            )
        check_margin("margin", self.margin)
        if self.margin and not self.loss.takes_margin:
            raise UserError(f"margin is {self.margin}, but loss.kind {kind} has none; use {WITH_MARGINS}")
        if not self.loss.needs_reference and not self.reference.is_start:
            raise UserError(
                f"reference is {self.reference}, but loss.kind {kind} is measured against none; leave reference out"
            )
        if isinstance(self.loss, KTO) and self.batch_size < 2:
            raise UserError(
                f"batch_size is {self.batch_size}, but loss.kind KTO measures its reference point on other prompts of "
                "the batch; use 8 or more"
            )


def objective(
    policy: Policy, reference: ReferenceModel, trees: Sequence[TokenTree], config: DPOConfig
) -> AnyObjective | Following:
    """The objective of these trees; the reference's log-probabilities are computed here, where the loss needs them.

    Raises:
        UserError: a tree is not of the shape that the loss is taught by.
    """
    check_shape(config.loss, trees)
    budget = config.token_budget or policy.token_budget
    if isinstance(reference, EMAReference) and config.loss.needs_reference:
        known: dict[TokenTree, Tensor] = {}
        return Following(_of_shape(policy, reference, known, config, budget), known, reference, budget)
    fixed = reference.branch_logps(trees, budget) if config.loss.needs_reference else None
    return _of_shape(policy, reference, fixed, config, budget)


def _of_shape(
    policy: Policy, reference: ReferenceModel, known: Known | None, config: DPOConfig, budget: int
) -> AnyObjective:
    if isinstance(config.loss, KTO):
        assert known is not None
        return LabelledPreference(
            policy.packed, config.loss, known, lambda others: reference.computed_logps(others, budget), budget
        )
    if isinstance(config.loss, PlackettLuce):
        assert known is not None
        return RankedPreference(policy.packed, config.loss, known, config.divergence)
    return PairPreference(policy.packed, config.loss, known, config.divergence, config.margin)


def check_shape(loss: AnyPreferenceLoss, trees: Sequence[TokenTree]) -> None:
    """Refuse trees that this loss cannot learn from.

    Raises:
        UserError: a tree of the wrong shape; the first is named.
    """
    if not loss.takes_margin:
        refuse_margins(trees, type(loss).__name__, WITH_MARGINS)
    if isinstance(loss, KTO):
        labels(trees)
        return
    for tree in trees:
        if needs(loss) == "pairs" and len(tree.branches) != 2:
            raise UserError(f"{tree.group[:60]!r} has {len(tree.branches)} responses; a pair has two branches")
        if len(tree.branches) < 2:
            raise UserError(f"{tree.group[:60]!r} has {len(tree.branches)} responses; a ranking has two or more")


def dpo(
    policy: Policy,
    trees: Sequence[Tree | TokenTree],
    config: DPOConfig | None = None,
    reference: ReferenceModel | None = None,
    resume: Path | None = None,
) -> Iterator[Step]:
    """Train `policy` in place on pairs (chosen first, rejected second), on rankings or on labelled responses, as the
    loss asks; yields a `Step` after each optimiser step.

    `reference` is what `config.reference` asks for unless another is given.

    Raises:
        NonFinite: a loss or gradient is not finite.
        UserError: there are no trees, one is not of the shape that the loss is taught by, a path is too long, or
            `resume` belongs to another run.
    """
    config = config or DPOConfig()
    token_trees = tokenised(trees, policy.tokenizer)
    budget = config.token_budget or policy.token_budget
    verify_once(policy.packed, token_trees, budget)
    reference = reference or reference_for(policy, config.reference)
    found = objective(policy, reference, reached(config, token_trees), config)
    decided = settings(config, DPOConfig) | {"the reference's hash": str(reference.hash)}
    if not isinstance(reference, EMAReference):
        yield from fit(policy.packed, token_trees, found, config, budget, resume, decided=decided)
        return
    for step in fit(
        policy.packed, token_trees, found, config, budget, resume, {"reference": reference.packed}, decided
    ):
        reference.follow()
        yield step
