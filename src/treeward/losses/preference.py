"""The DPO family: what a preference loss may see, every loss, weighted sums of them, and the registry.

What a preference loss may see of a batch, and what it offers in return.

Letters: P pairs, N branches, x = log(policy / reference) of a whole response (chosen x_w, rejected x_l), D = x_w - x_l,
a = the policy's mean log-probability of a response's tokens.


---
Preference losses on a difference: D = x_w - x_l of the log-ratios or, in `IPO` and `NormalisedSigmoid`, that of
their per-token means. What is added to both sides changes nothing.

So none of them can keep x_w from falling; `sided_losses` can, or a sum with `ChosenNLL`. A margin m is asked for in the
labelled order and, by losses that allow for flipped labels, in the other order too. Shapes: every loss maps (P,) to
(P,). Left out: SLiC's own cross-entropy term (add `ChosenNLL`), and DiscoPOP.


---
Preference losses that read the two log-ratios apart: they can keep the chosen response's likelihood from falling.

Letters: x_w, x_l log-ratios of chosen and rejected, D = x_w - x_l. Shapes: every loss maps (P,) to (P,).
Left out: BCO's running reward shift and its prompt classifier, and SPPO's win rates other than 0 and 1.


---
Preference losses on the policy's own mean log-probabilities: no reference is computed for them.

Their first value depends on the data, so `at_start` needs the first log-probabilities and puts them into another
formula, in float64. Letters: a = mean log-probability of a response's tokens, a_w chosen, a_l rejected.


---
The DPO family: every loss, weighted sums of them, and the registry.

A loss is a frozen dataclass. Its fields are hyper-parameters, `__call__` is the equation, and it returns one number per
pair (response, ranking): the mean is taken where it is used, over the true count. It sees nothing but `PairScores`
(`LabelledScores`, `Branches`).

The equations stand by what they depend on: `difference_losses` (x_w - x_l only, or that of their per-token means),
`sided_losses` (x_w and x_l apart), `anchorless_losses` (the policy's own log-probabilities); here those that are no
loss of a pair. The last lines, `AnyPairLoss` and `AnyPreferenceLoss`, are the registry that recipes, the command line
and the tests read.

Letters: P pairs, G rankings, N branches, x = log(policy / reference) of a whole response.

"""

import math
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from treeward.errors import UserError
from treeward.losses import reward
from treeward.losses.reward import Branches

Sides = tuple[Float[Tensor, "P"], Float[Tensor, "P"]]
"""One number a pair for the chosen side, one for the rejected."""


@dataclass(frozen=True)
class PairScores:
    """All that a preference loss may see of a batch of pairs.

    `chosen` and `rejected` are log-ratios to the reference, summed over the response's scored tokens (end token
    included), or an f-divergence's scores of them; the lengths count those tokens; the log-probabilities are the
    policy's own sums, for losses without a reference. `margin` is what a loss of the difference asks for beyond 0.
    """

    chosen_logratios: Float[Tensor, "P"]
    rejected_logratios: Float[Tensor, "P"]
    chosen_lengths: Int[Tensor, "P"]
    rejected_lengths: Int[Tensor, "P"]
    chosen_logps: Float[Tensor, "P"] | None = None
    rejected_logps: Float[Tensor, "P"] | None = None
    margins: Float[Tensor, "P"] | None = None
    weights: Float[Tensor, "P"] | None = None

    @classmethod
    def zeros(cls, pairs: int) -> "PairScores":
        """Scores at policy = reference, one token a response: where every loss must have its known first value."""
        zero, one = torch.zeros(pairs), torch.ones(pairs, dtype=torch.long)
        return cls(zero, zero.clone(), one, one.clone(), zero.clone(), zero.clone())

    def difference(self, beta: float) -> Float[Tensor, "P"]:
        """beta D less the margin."""
        scaled = beta * (self.chosen_logratios - self.rejected_logratios)
        return scaled if self.margins is None else scaled - self.margins

    def means(self) -> Sides:
        """x / length, per token."""
        return self.chosen_logratios / self.chosen_lengths, self.rejected_logratios / self.rejected_lengths

    def mean_logps(self) -> Sides:
        """a, the policy's own mean log-probability of a token."""
        assert self.chosen_logps is not None
        assert self.rejected_logps is not None
        return self.chosen_logps / self.chosen_lengths, self.rejected_logps / self.rejected_lengths


@dataclass(frozen=True)
class LabelledScores:
    """All that a loss over single, labelled responses may see: log-ratios, labels, and the batch's reference point."""

    ratios: Float[Tensor, "N"]
    desirable: Bool[Tensor, "N"]
    z0: Float[Tensor, ""]


@runtime_checkable
class PairLoss(Protocol):
    """What every member of `AnyPairLoss` offers."""

    @property
    def needs_reference(self) -> bool:
        """False: the loss reads the policy's own log-probabilities alone."""
        ...

    @property
    def takes_margin(self) -> bool:
        """Whether `PairScores.margin` is honoured."""
        ...

    @property
    def no_divergence(self) -> str:
        """Why no f-divergence but reverse KL goes with this loss; empty where any does."""
        ...

    def __call__(self, scores: PairScores) -> Float[Tensor, "P"]: ...

    def at_start(self, start: PairScores | None = None) -> float:
        """The mean loss where the policy is the reference, by the closed form of ALGORITHMS 3.2.

        `start` tells what else it depends on: margins, or log-probabilities for losses without a reference.

        Raises:
            UserError: it depends on log-probabilities, and none are given.
        """
        ...

    def rewards(self, scores: PairScores) -> Sides:
        """The implicit rewards of the two sides, for monitoring."""
        ...


@dataclass(frozen=True)
class ReferenceLoss:
    """Base of the losses on log-ratios: their implicit reward is beta x."""

    beta: float = 0.1
    """Strength of the pull towards the reference: the implicit reward is beta times the log-ratio."""

    needs_reference: ClassVar[bool] = True
    takes_margin: ClassVar[bool] = False
    no_divergence: ClassVar[str] = (
        "it reads the two log-ratios apart, and the constant that f-DPO leaves out cancels in their difference only"
    )

    def __post_init__(self) -> None:
        require_positive("loss.beta", self.beta)

    def rewards(self, scores: PairScores) -> Sides:
        """beta x."""
        return self.beta * scores.chosen_logratios, self.beta * scores.rejected_logratios


def start_margins(start: PairScores | None) -> Float[Tensor, "P"]:
    """The margins of the first batch in float64; one margin of 0 where none are known."""
    if start is None or start.margins is None:
        return torch.zeros(1, dtype=torch.float64)
    return start.margins.double()


def require_positive(field: str, value: float) -> None:
    """Refuse a value that is not above 0, or infinite.

    Raises:
        UserError: it is 0, negative, infinite or NaN.
    """
    if not 0 < value < math.inf:
        raise UserError(f"{field} is {value}; it must be above 0 and finite (0.1 is usual)")


@dataclass(frozen=True)
class _Difference(ReferenceLoss):
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
        difference = self.beta * (scores.chosen_logratios - scores.rejected_logratios)
        if self.clip is not None:
            difference = difference.clamp(-self.clip, self.clip)
        labelled, flipped = _either_way(difference, scores.margins)
        return -(1 - self.flip) * logsigmoid(labelled) - self.flip * logsigmoid(flipped)

    def at_start(self, start: PairScores | None = None) -> float:
        return softplus(start_margins(start)).mean().item()

    def clipped(self, scores: PairScores) -> Bool[Tensor, "P"]:
        """Where the clip holds, so that there is no gradient."""
        held = self.beta * (scores.chosen_logratios - scores.rejected_logratios).abs()
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
        labelled, flipped = _either_way(
            self.beta * (scores.chosen_logratios - scores.rejected_logratios), scores.margins
        )
        both = -(1 - self.flip) * logsigmoid(labelled) + self.flip * logsigmoid(flipped)
        return both / (1 - 2 * self.flip)

    def at_start(self, start: PairScores | None = None) -> float:
        return softplus(start_margins(start)).mean().item()


@dataclass(frozen=True)
class Hinge(_Difference):
    """SLiC's hinge on the log-ratio difference (Zhao et al. 2023, arXiv:2305.10425): max(0, 1 - d).

    Left out of the paper: its cross-entropy regulariser; and it has no reference, as DPO's variant does here.
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
            raise UserError(f"loss.smoothing is {self.smoothing}; it lies in (0, 0.5), and 0.001 is usual")

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
class IPO(ReferenceLoss):
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
class NormalisedSigmoid(ReferenceLoss):
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
        return -logsigmoid(difference if scores.margins is None else difference - scores.margins)

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
        raise UserError(f"{field} is {value}; a share of flipped labels lies in [0, 0.5)")


@dataclass(frozen=True)
class NCA(ReferenceLoss):
    """NCA on pairs (Chen et al. 2024, arXiv:2402.05369): noise-contrastive, both sides against their absolute level.

    -log sigma(beta x_w) - (1/2) log sigma(-beta x_w) - (1/2) log sigma(-beta x_l)
    """

    def __call__(self, scores: PairScores) -> Float[Tensor, "P"]:
        chosen, rejected = self.rewards(scores)
        return -logsigmoid(chosen) - 0.5 * logsigmoid(-chosen) - 0.5 * logsigmoid(-rejected)

    def at_start(self, start: PairScores | None = None) -> float:
        return 2 * math.log(2)


@dataclass(frozen=True)
class BCO(ReferenceLoss):
    """Binary classifier optimisation on pairs (Jung et al. 2024, arXiv:2404.04656), without its reward shift.

    -log sigma(beta x_w) - log sigma(-beta x_l)
    """

    def __call__(self, scores: PairScores) -> Float[Tensor, "P"]:
        chosen, rejected = self.rewards(scores)
        return -logsigmoid(chosen) - logsigmoid(-rejected)

    def at_start(self, start: PairScores | None = None) -> float:
        return 2 * math.log(2)


@dataclass(frozen=True)
class SPPOHard(ReferenceLoss):
    """Self-play preference optimisation with hard labels (Wu et al. 2024, arXiv:2405.00675, equation 4.8).

    (x_w - 1/(2 beta))^2 + (x_l + 1/(2 beta))^2
    """

    beta: float = 0.1
    """The log-ratios' targets are plus and minus 1 / (2 beta) nats."""

    def __call__(self, scores: PairScores) -> Float[Tensor, "P"]:
        target = 1 / (2 * self.beta)
        return (scores.chosen_logratios - target).square() + (scores.rejected_logratios + target).square()

    def at_start(self, start: PairScores | None = None) -> float:
        return 1 / (2 * self.beta**2)


@dataclass(frozen=True)
class APOZero(ReferenceLoss):
    """APO-zero (D'Oosterlinck et al. 2024, arXiv:2408.06266): chosen up, rejected down, each saturating.

    1 - sigma(beta x_w) + sigma(beta x_l): for data better than the policy.
    """

    def __call__(self, scores: PairScores) -> Float[Tensor, "P"]:
        chosen, rejected = self.rewards(scores)
        return 1 - chosen.sigmoid() + rejected.sigmoid()

    def at_start(self, start: PairScores | None = None) -> float:
        return 1.0


@dataclass(frozen=True)
class APODown(ReferenceLoss):
    """APO-down (D'Oosterlinck et al. 2024, arXiv:2408.06266): both down, the rejected further.

    sigma(beta x_w) + 1 - sigma(beta D): for a policy better than the data.
    """

    def __call__(self, scores: PairScores) -> Float[Tensor, "P"]:
        chosen, rejected = self.rewards(scores)
        return chosen.sigmoid() + 1 - (chosen - rejected).sigmoid()

    def at_start(self, start: PairScores | None = None) -> float:
        return 1.0


@dataclass(frozen=True)
class DPOP(ReferenceLoss):
    """DPO-Positive (Pal et al. 2024, arXiv:2402.13228, equation 3): guards the chosen response's likelihood.

    -log sigma(beta (D - omega max(0, -x_w)))
    """

    penalty: float = 5.0
    """omega: weight of the chosen log-ratio's fall below the reference; 5 to 50."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive("loss.penalty", self.penalty)

    def __call__(self, scores: PairScores) -> Float[Tensor, "P"]:
        fallen = (-scores.chosen_logratios).relu()
        return -logsigmoid(self.beta * (scores.chosen_logratios - scores.rejected_logratios - self.penalty * fallen))

    def at_start(self, start: PairScores | None = None) -> float:
        return math.log(2)


CERTAIN = -1e-7
"""Largest mean log-probability for which odds are taken; above it a response is certain to within float32."""


@dataclass(frozen=True)
class ReferenceFreeLoss:
    needs_reference: ClassVar[bool] = False
    takes_margin: ClassVar[bool] = False
    no_divergence: ClassVar[str] = "it has no reference, so there is nothing to diverge from"

    def rewards(self, scores: PairScores) -> Sides:
        """a."""
        return scores.mean_logps()


@dataclass(frozen=True)
class ORPO(ReferenceFreeLoss):
    """Odds-ratio preference optimisation (Hong et al. 2024, arXiv:2403.07691, equations 6 and 7).

    -a_w - omega log sigma(o_w - o_l),   o = a - log(1 - e^a)
    """

    weight: float = 0.1
    """omega (the paper's lambda, TRL's beta): weight of the odds ratio beside the likelihood of the chosen response."""

    def __post_init__(self) -> None:
        require_positive("loss.weight", self.weight)

    def __call__(self, scores: PairScores) -> Float[Tensor, "P"]:
        chosen, rejected = (side.clamp(max=CERTAIN) for side in scores.mean_logps())
        odds = chosen - log1mexp(chosen) - rejected + log1mexp(rejected)
        return -scores.mean_logps()[0] - self.weight * logsigmoid(odds)

    def at_start(self, start: PairScores | None = None) -> float:
        found = 0.0
        sides = _first_means(self, start)
        for chosen, rejected in sides:
            odds, other = (a - math.log(-math.expm1(a)) for a in (min(chosen, CERTAIN), min(rejected, CERTAIN)))
            found += -chosen + self.weight * _softplus(other - odds)
        return found / len(sides)


@dataclass(frozen=True)
class SIMPO(ReferenceFreeLoss):
    """SimPO (Meng et al. 2024, arXiv:2405.14734, equation 6): -log sigma(beta (a_w - a_l) - gamma)."""

    beta: float = 2.0
    """Scale of the mean log-probabilities: 2 to 10."""
    gamma: float = 1.0
    """Margin asked for; gamma / beta is 0.1 to 0.8."""

    def __post_init__(self) -> None:
        require_positive("loss.beta", self.beta)
        if not self.gamma >= 0:
            raise UserError(f"loss.gamma is {self.gamma}; it must not be negative (beta / 2 is usual)")

    def __call__(self, scores: PairScores) -> Float[Tensor, "P"]:
        chosen, rejected = self.rewards(scores)
        return -logsigmoid(chosen - rejected - self.gamma)

    def at_start(self, start: PairScores | None = None) -> float:
        sides = _first_means(self, start)
        return sum(_softplus(self.gamma - self.beta * (chosen - rejected)) for chosen, rejected in sides) / len(sides)

    def rewards(self, scores: PairScores) -> Sides:
        """beta a."""
        chosen, rejected = scores.mean_logps()
        return self.beta * chosen, self.beta * rejected


@dataclass(frozen=True)
class ChosenNLL(ReferenceFreeLoss):
    """-a_w: the likelihood of the chosen response, as a term of a sum. With `Sigmoid` it is RPO (Pang et al. 2024,
    arXiv:2404.19733, equation 4), which divides by the response's own length, as here.
    """

    def __call__(self, scores: PairScores) -> Float[Tensor, "P"]:
        return -scores.mean_logps()[0]

    def at_start(self, start: PairScores | None = None) -> float:
        sides = _first_means(self, start)
        return -sum(chosen for chosen, _ in sides) / len(sides)


def log1mexp(a: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """log(1 - e^a) for a < 0, with finite gradients: by expm1 above -ln 2, by log1p below (Maechler 2012)."""
    near = a > -math.log(2)
    close = (-torch.expm1(torch.where(near, a, -1.0))).log()
    return torch.where(near, close, torch.log1p(-torch.where(near, -1.0, a).exp()))


def _softplus(z: float) -> float:
    return max(0.0, z) + math.log1p(math.exp(-abs(z)))


def _first_means(loss: object, start: PairScores | None) -> list[tuple[float, float]]:
    if start is None or start.chosen_logps is None:
        raise UserError(f"the first value of {type(loss).__name__} depends on the data: give the first scores")
    chosen, rejected = start.mean_logps()
    return list(zip(chosen.double().tolist(), rejected.double().tolist(), strict=True))


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
            raise UserError(f"loss.terms has a weight of {self.weight}; it must be above 0")


@dataclass(frozen=True)
class Sum:
    """A weighted sum of losses of the same pairs; by default RPO, sigmoid and the chosen response's likelihood."""

    terms: tuple[Term, ...] = (Term(), Term(loss=ChosenNLL()))
    """The terms: [{weight: 1, loss: {kind: sigmoid}}, {weight: 1, loss: {kind: chosen-nll}}]."""

    def __post_init__(self) -> None:
        if not self.terms:
            raise UserError("loss.terms is empty; name at least one term, such as {weight: 1, loss: {kind: sigmoid}}")

    @property
    def needs_reference(self) -> bool:
        """Whether any term does."""
        return any(term.loss.needs_reference for term in self.terms)

    @property
    def takes_margin(self) -> bool:
        """Whether any term does."""
        return any(term.loss.takes_margin for term in self.terms)

    @property
    def no_divergence(self) -> str:
        """The reason of the first term on log-ratios that has one; terms without a reference stand aside."""
        with_reference = [term.loss for term in self.terms if term.loss.needs_reference]
        losses = with_reference or [self.terms[0].loss]
        return next((f"{type(loss).__name__}: {loss.no_divergence}" for loss in losses if loss.no_divergence), "")

    def __call__(self, scores: PairScores) -> Float[Tensor, "P"]:
        return torch.stack([term.weight * term.loss(scores) for term in self.terms]).sum(0)

    def at_start(self, start: PairScores | None = None) -> float:
        return sum(term.weight * term.loss.at_start(start) for term in self.terms)

    def rewards(self, scores: PairScores) -> Sides:
        """Those of the first term on log-ratios, else of the first."""
        return next((t for t in self.terms if t.loss.needs_reference), self.terms[0]).loss.rewards(scores)


@dataclass(frozen=True)
class KTO(ReferenceLoss):
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
        above = self.beta * (scores.ratios - scores.z0)
        return torch.where(
            scores.desirable, self.desirable * (-above).sigmoid(), self.undesirable * above.sigmoid()
        )  # fmt: skip

    def at_start(self, start: LabelledScores | None = None) -> float:
        """Half the mean lambda; without labels, as many of either kind."""
        share = 0.5 if start is None else start.desirable.double().mean().item()
        return 0.5 * (share * self.desirable + (1 - share) * self.undesirable)


@dataclass(frozen=True)
class PlackettLuce(ReferenceLoss):
    """DPO on rankings (Rafailov et al. 2023, arXiv:2305.18290, equation 20), best first; two branches: `Sigmoid`.

    -sum_k [beta x_(k) - log sum_{j >= k} e^(beta x_(j))];   ties by rating as in `losses.reward.PlackettLuce`
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
