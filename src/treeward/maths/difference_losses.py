"""Preference losses on a difference: D = x_w - x_l of the log-ratios or, in `IPO` and `NormalisedSigmoid`, that of
their per-token means. What is added to both sides changes nothing.

So none of them can keep x_w from falling; `sided_losses` can, or a sum with `ChosenNLL`. A margin m is asked for in the
labelled order and, by losses that allow for flipped labels, in the other order too. Shapes: every loss maps (P,) to
(P,). Left out: SLiC's own cross-entropy term (add `ChosenNLL`), and DiscoPOP.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from treeward.maths.pair_scores import Anchored, PairScores, Sides, require_positive, start_margins


@dataclass(frozen=True)
class _Difference(Anchored):
    takes_margin: ClassVar[bool] = True
    no_divergence: ClassVar[str] = ""


@dataclass(frozen=True)
class Sigmoid(_Difference):
    """DPO (Rafailov et al. 2023, arXiv:2305.18290, equation 7); with `flip` > 0 conservative DPO; with `clip` and the
    divergence chi-squared-mixed chi-PO (Huang et al. 2024, arXiv:2407.13399, equation 9).

    -(1 - e) log sigma(d - m) - e log sigma(-d - m),   d = clip(beta D)
    """

    flip: float = 0.0
    """e, the share of labels taken to be flipped, in [0, 0.5)."""
    clip: float | None = None
    """2R: beta D is held to this range either way (no gradient beyond); chi-PO wants twice the largest reward."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_flip("loss.flip", self.flip)
        if self.clip is not None:
            require_positive("loss.clip", self.clip)

    def __call__(self, scores: PairScores) -> Float[Tensor, "P"]:
        difference = self.beta * (scores.chosen - scores.rejected)
        if self.clip is not None:
            difference = difference.clamp(-self.clip, self.clip)
        labelled, flipped = _either_way(difference, scores.margin)
        return -(1 - self.flip) * logsigmoid(labelled) - self.flip * logsigmoid(flipped)

    def at_start(self, start: PairScores | None = None) -> float:
        return softplus(start_margins(start)).mean().item()

    def clipped(self, scores: PairScores) -> Bool[Tensor, "P"]:
        """Where the clip holds, so that there is no gradient."""
        held = self.beta * (scores.chosen - scores.rejected).abs()
        return held > (math.inf if self.clip is None else self.clip)


@dataclass(frozen=True)
class Robust(_Difference):
    """Robust DPO (Chowdhury et al. 2024, arXiv:2403.00409): the flip noise removed in expectation.

    [-(1 - e) log sigma(beta D - m) + e log sigma(-beta D - m)] / (1 - 2e): unbounded below, unbiased under flips of
    probability e.
    """

    flip: float = 0.1
    """e, the share of labels known to be flipped, in [0, 0.5)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_flip("loss.flip", self.flip)

    def __call__(self, scores: PairScores) -> Float[Tensor, "P"]:
        labelled, flipped = _either_way(self.beta * (scores.chosen - scores.rejected), scores.margin)
        both = -(1 - self.flip) * logsigmoid(labelled) + self.flip * logsigmoid(flipped)
        return both / (1 - 2 * self.flip)

    def at_start(self, start: PairScores | None = None) -> float:
        return softplus(start_margins(start)).mean().item()


@dataclass(frozen=True)
class Hinge(_Difference):
    """SLiC's hinge on the log-ratio difference (Zhao et al. 2023, arXiv:2305.10425): max(0, 1 - d).

    Left out of the paper: its cross-entropy regulariser; and it has no anchor, as DPO's variant does here.
    """

    beta: float = 0.1
    """Scale of the log-ratio difference; the margin asked for is 1 / beta nats."""

    def __call__(self, scores: PairScores) -> Float[Tensor, "P"]:
        return (1 - scores.difference(self.beta)).relu()

    def at_start(self, start: PairScores | None = None) -> float:
        return (1 + start_margins(start)).clamp(min=0).mean().item()


@dataclass(frozen=True)
class EXO(_Difference):
    """EXO on pairs (Ji et al. 2024, arXiv:2402.00856, equation 16): KL(model, label) of the model's distribution
    (sigma(d), sigma(-d)) and the smoothed label (1 - e, e).

    sigma(d) [log sigma(d) - log(1 - e)] + sigma(-d) [log sigma(-d) - log e]
    """

    smoothing: float = 1e-3
    """e: what the label leaves to the rejected side, in (0, 0.5); the optimum is d = log((1 - e) / e)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.smoothing < 0.5:
            raise ValueError(f"loss.smoothing is {self.smoothing}; it lies in (0, 0.5), and 0.001 is usual")

    def __call__(self, scores: PairScores) -> Float[Tensor, "P"]:
        d = scores.difference(self.beta)
        towards = d.sigmoid() * (logsigmoid(d) - math.log1p(-self.smoothing))
        return towards + (-d).sigmoid() * (logsigmoid(-d) - math.log(self.smoothing))

    def at_start(self, start: PairScores | None = None) -> float:
        share = 1 / (1 + start_margins(start).exp())
        entropy = -(share * share.log() + (1 - share) * torch.log1p(-share))
        cross = share * math.log(1 - self.smoothing) + (1 - share) * math.log(self.smoothing)
        return (-entropy - cross).mean().item()


@dataclass(frozen=True)
class IPO(Anchored):
    """IPO (Azar et al. 2023, arXiv:2310.12036, equation 17) on per-token means: (mean x_w - mean x_l - 1/(2 beta))^2.

    The printed formula has sums; the authors confirmed the means, and TRL uses them too.
    """

    beta: float = 0.1
    """The target difference of the per-token means is 1 / (2 beta) nats."""

    no_divergence: ClassVar[str] = "its target, 1 / (2 beta), is a difference of per-token mean log-ratios"

    def __call__(self, scores: PairScores) -> Float[Tensor, "P"]:
        chosen, rejected = scores.means()
        return (chosen - rejected - 1 / (2 * self.beta)).square()

    def at_start(self, start: PairScores | None = None) -> float:
        return 1 / (4 * self.beta**2)


@dataclass(frozen=True)
class NormalisedSigmoid(Anchored):
    """The sigmoid loss on per-token means (Meng et al. 2024, arXiv:2405.14734, table 3; the Tulu 3 report,
    arXiv:2411.15124, equation 6): -log sigma(beta (mean x_w - mean x_l) - margin).
    """

    beta: float = 5.0
    """Scale of the per-token means, so larger than for sums: 5 to 10."""

    takes_margin: ClassVar[bool] = True
    no_divergence: ClassVar[str] = "it divides log-ratios by lengths, and a divergence's score of a sum does not divide"

    def __call__(self, scores: PairScores) -> Float[Tensor, "P"]:
        chosen, rejected = self.rewards(scores)
        difference = chosen - rejected
        return -logsigmoid(difference if scores.margin is None else difference - scores.margin)

    def at_start(self, start: PairScores | None = None) -> float:
        return softplus(start_margins(start)).mean().item()

    def rewards(self, scores: PairScores) -> Sides:
        """beta x / length."""
        chosen, rejected = scores.means()
        return self.beta * chosen, self.beta * rejected


def _either_way(difference: Float[Tensor, "P"], margin: Float[Tensor, "P"] | None) -> Sides:
    """What the two orders of a pair are ahead by, less the margin."""
    if margin is None:
        return difference, -difference
    return difference - margin, -difference - margin


def _require_flip(field: str, value: float) -> None:
    if not 0 <= value < 0.5:
        raise ValueError(f"{field} is {value}; a share of flipped labels lies in [0, 0.5)")
