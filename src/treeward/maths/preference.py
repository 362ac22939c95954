"""The DPO family: every loss, weighted sums of them, and the registry.

A loss is a frozen dataclass. Its fields are hyper-parameters, `__call__` is the equation, and it returns one number per
pair (response, ranking): the mean is taken where it is used, over the true count. It sees nothing but `PairScores`
(`LabelledScores`, `Branches`).

The equations stand by what they depend on: `difference_losses` (x_w - x_l only, or that of their per-token means),
`sided_losses` (x_w and x_l apart), `anchorless_losses` (the policy's own log-probabilities); here those that are no
loss of a pair. The last lines, `AnyPairLoss` and `AnyPreferenceLoss`, are the registry that recipes, the command line
and the tests read.

Letters: P pairs, G rankings, N branches, x = log(policy / anchor) of a whole response.
"""

import math
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from treeward.maths import reward
from treeward.maths.anchorless_losses import ORPO, SIMPO, ChosenNLL
from treeward.maths.branches import Branches
from treeward.maths.difference_losses import EXO, IPO, Hinge, NormalisedSigmoid, Robust, Sigmoid
from treeward.maths.pair_scores import Anchored, LabelledScores, PairLoss, PairScores, Sides, require_positive
from treeward.maths.sided_losses import BCO, DPOP, NCA, APODown, APOZero, SPPOHard

AnyTerm = (
    Sigmoid | Robust | Hinge | IPO | NormalisedSigmoid | EXO | NCA | BCO | SPPOHard | APOZero | APODown | DPOP
    | ORPO | SIMPO | ChosenNLL
)  # fmt: skip


@dataclass(frozen=True)
class Term:
    """One member of a sum."""

    weight: float = 1.0
    """What its loss is multiplied by."""
    loss: AnyTerm = field(default_factory=Sigmoid)
    """The loss."""

    def __post_init__(self) -> None:
        if not 0 < self.weight < math.inf:
            raise ValueError(f"loss.terms has a weight of {self.weight}; it must be above 0")


@dataclass(frozen=True)
class Sum:
    """A weighted sum of losses of the same pairs; by default RPO, sigmoid and the chosen response's likelihood."""

    terms: tuple[Term, ...] = (Term(), Term(loss=ChosenNLL()))
    """The terms: [{weight: 1, loss: {kind: sigmoid}}, {weight: 1, loss: {kind: chosen-nll}}]."""

    def __post_init__(self) -> None:
        if not self.terms:
            raise ValueError("loss.terms is empty; name at least one term, such as {weight: 1, loss: {kind: sigmoid}}")

    @property
    def needs_anchor(self) -> bool:
        """Whether any term does."""
        return any(term.loss.needs_anchor for term in self.terms)

    @property
    def takes_margin(self) -> bool:
        """Whether any term does."""
        return any(term.loss.takes_margin for term in self.terms)

    @property
    def no_divergence(self) -> str:
        """The reason of the first term on log-ratios that has one; terms without an anchor stand aside."""
        anchored = [term.loss for term in self.terms if term.loss.needs_anchor]
        losses = anchored or [self.terms[0].loss]
        return next((f"{type(loss).__name__}: {loss.no_divergence}" for loss in losses if loss.no_divergence), "")

    def __call__(self, scores: PairScores) -> Float[Tensor, "P"]:
        return torch.stack([term.weight * term.loss(scores) for term in self.terms]).sum(0)

    def at_start(self, start: PairScores | None = None) -> float:
        return sum(term.weight * term.loss.at_start(start) for term in self.terms)

    def rewards(self, scores: PairScores) -> Sides:
        """Those of the first term on log-ratios, else of the first."""
        return next((t for t in self.terms if t.loss.needs_anchor), self.terms[0]).loss.rewards(scores)


@dataclass(frozen=True)
class KTO(Anchored):
    """Kahneman-Tversky optimisation of single labelled responses (Ethayarajh et al. 2024, arXiv:2402.01306, eq. 8).

    lambda_D (1 - sigma(beta (x - z0))) if desirable, lambda_U (1 - sigma(beta (z0 - x))) if not;
    z0 = max(0, mean x of responses put under another prompt of the batch), without gradient: an estimate of KL.
    """

    desirable: float = 1.0
    """lambda_D; lambda_D n_D / (lambda_U n_U) should lie in [1, 4/3]."""
    undesirable: float = 1.0
    """lambda_U."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive("loss.desirable", self.desirable)
        require_positive("loss.undesirable", self.undesirable)

    def __call__(self, scores: LabelledScores) -> Float[Tensor, "N"]:
        above = self.beta * (scores.ratios - scores.reference)
        return torch.where(
            scores.desirable, self.desirable * (-above).sigmoid(), self.undesirable * above.sigmoid()
        )  # fmt: skip

    def at_start(self, start: LabelledScores | None = None) -> float:
        """Half the mean lambda; without labels, as many of either kind."""
        share = 0.5 if start is None else start.desirable.double().mean().item()
        return 0.5 * (share * self.desirable + (1 - share) * self.undesirable)


@dataclass(frozen=True)
class PlackettLuce(Anchored):
    """DPO on rankings (Rafailov et al. 2023, arXiv:2305.18290, equation 20), best first; two branches: `Sigmoid`.

    -sum_k [beta x_(k) - log sum_{j >= k} e^(beta x_(j))];   ties by rating as in `maths.reward.PlackettLuce`
    """

    no_divergence: ClassVar[str] = ""

    def __call__(self, branches: Branches) -> Float[Tensor, "G"]:
        """`branches.outputs` are the log-ratios, (N, 1)."""
        return reward.PlackettLuce()(replace(branches, outputs=self.beta * branches.outputs))

    def at_start(self, start: Branches | None = None) -> float:
        """ln N! of N branches without ties, its mean over the rankings; ln 2 where none are given."""
        return math.log(2) if start is None else reward.PlackettLuce().at_start(start)


def needs(loss: "AnyPreferenceLoss") -> Literal["pairs", "unpaired", "ranked"]:
    """What the loss is taught by."""
    return "unpaired" if isinstance(loss, KTO) else "ranked" if isinstance(loss, PlackettLuce) else "pairs"


__all__ = [
    "BCO", "DPOP", "EXO", "IPO", "KTO", "NCA", "ORPO", "SIMPO", "APODown", "APOZero", "AnyPairLoss",
    "AnyPreferenceLoss", "ChosenNLL", "Hinge", "LabelledScores", "NormalisedSigmoid", "PairLoss", "PairScores",
    "PlackettLuce", "Robust", "SPPOHard", "Sigmoid", "Sum", "Term", "needs",
]  # fmt: skip

AnyPairLoss = AnyTerm | Sum
AnyPreferenceLoss = AnyPairLoss | KTO | PlackettLuce
