"""The DPO family: what a preference loss sees, what it may declare, every loss, and the registry.

A loss is a frozen dataclass whose fields are the hyper-parameters and whose `__call__` is the equation, or any function
`loss(pairs) -> Float[P]`. It returns one value per pair; the objective takes the mean, over the true number of pairs.

The file in order:

1. `PairScores` and `LabelledScores`: the inputs of a loss.
2. What a loss may declare, and the defaults for a plain function.
3. Losses of the difference of the two log-ratios.
4. Losses of the two log-ratios, each by itself: they can keep the chosen log-probability from falling.
5. Reference-free losses.
6. Losses from a user's file, weighted sums, and losses of other data than pairs: labelled responses and rankings.
7. The registry: the unions that the command line, recipes, the type checker and the tests read.

Notation: P pairs, N branches, G rankings; w the chosen and l the rejected response;
x = log pi(y|prompt) - log pi_ref(y|prompt), the log-ratio of a whole response, in nats; D = x_w - x_l;
a = log pi(y|prompt) / |y|, the policy's mean log-probability per token; |y| counts the end token; m the margin.
"""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Literal, TypeAlias, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from treeward.errors import UserError
from treeward.losses import reward
from treeward.losses.reward import Branches
from treeward.plugins import MARK, load_name

# --------------------------------------------------------------------------- inputs

Sides: TypeAlias = tuple[Float[Tensor, "P"], Float[Tensor, "P"]]
"""One value per pair for the chosen response, and one for the rejected."""


@dataclass(frozen=True)
class PairScores:
    """All that a preference loss sees of a batch of P pairs.

    Attributes:
        chosen_logratios: log pi(y) - log pi_ref(y) of the chosen response, in nats, summed over its scored tokens (end
            token included). Under an f-divergence: the divergence's score of that log-ratio. NaN if the loss needs no
            reference.
        rejected_logratios: The same of the rejected response.
        chosen_lengths: Number of scored tokens of the chosen response, at least 1.
        rejected_lengths: The same of the rejected response.
        chosen_logps: The policy's own log-probability of the chosen response, summed over its tokens, in nats.
        rejected_logps: The same of the rejected response.
        margins: The margin m of each pair, in the units of beta D; None if no pair has one.
        weights: The weight of each pair in the batch mean; None if all are 1. The objective applies the weights, so a
            loss must not.
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
    def zeros(cls, P: int) -> "PairScores":
        """P pairs where the policy is the reference: log-ratios and log-probabilities 0, one token per response."""
        zero, one = torch.zeros(P), torch.ones(P, dtype=torch.long)
        return cls(zero, zero.clone(), one, one.clone(), zero.clone(), zero.clone())

    def difference(self, beta: float) -> Float[Tensor, "P"]:
        """beta D - m."""
        scaled = beta * (self.chosen_logratios - self.rejected_logratios)
        return scaled if self.margins is None else scaled - self.margins

    def mean_logratios(self) -> Sides:
        """x / |y|, per token."""
        return self.chosen_logratios / self.chosen_lengths, self.rejected_logratios / self.rejected_lengths

    def mean_logps(self) -> Sides:
        """a = log pi(y) / |y|, per token."""
        assert self.chosen_logps is not None
        assert self.rejected_logps is not None
        return self.chosen_logps / self.chosen_lengths, self.rejected_logps / self.rejected_lengths


@dataclass(frozen=True)
class LabelledScores:
    """All that a loss of single labelled responses sees.

    Attributes:
        ratios: The log-ratio x of each response, in nats.
        desirable: The label of each response.
        z0: KTO's reference point: an estimate of KL(policy, reference) for the batch, in nats, without gradient.
    """

    ratios: Float[Tensor, "N"]
    desirable: Bool[Tensor, "N"]
    z0: Float[Tensor, ""]


# --------------------------------------------------------------------------- what a loss may declare

PairLoss: TypeAlias = Callable[[PairScores], Float[Tensor, "P"]]
"""A loss of pairs: a function or an object with `__call__`. It may have these attributes; each is optional:

`needs_reference: bool` (default True): False if the loss reads only the policy's own log-probabilities.
`takes_margin: bool` (default True): whether the loss uses `PairScores.margins`.
`admits_divergence: bool` (default True): whether another f-divergence than reverse KL can be used; if False,
    `divergence_reason: str` may say why.
`rewards(pairs) -> (chosen, rejected)`: the implicit rewards, for the metrics (default: beta times the log-ratios).
`at_start`: the mean loss where the policy is the reference: a number, or a function of the first batch's `PairScores`.
    The run checks it before the first step. Not declared: not checked.
"""


def loss_name(loss: "PreferenceLoss") -> str:
    """The name of a loss in messages: its class, its function's name, or `FILE.py:NAME`."""
    if isinstance(loss, FromFile):
        return loss.function
    return getattr(loss, "__name__", type(loss).__name__)


def needs_reference(loss: "PreferenceLoss") -> bool:
    """Whether the loss reads log-ratios, so that the reference model's log-probabilities must be computed."""
    return bool(getattr(loss, "needs_reference", True))


def takes_margins(loss: "PreferenceLoss") -> bool:
    """Whether the loss uses `PairScores.margins`. A plain function can read them, so it is assumed to."""
    return bool(getattr(loss, "takes_margin", True))


def divergence_refusal(loss: "PreferenceLoss") -> str:
    """Why no other f-divergence than reverse KL can be used with this loss; empty if any can."""
    if getattr(loss, "admits_divergence", True):
        return ""
    return getattr(loss, "divergence_reason", "") or f"{loss_name(loss)} declares admits_divergence = False"


def implicit_rewards(loss: "PairLoss", pairs: PairScores) -> Sides:
    """The implicit rewards of the chosen and the rejected responses, for the metrics.

    Default: beta times the log-ratio, or times the mean log-probability per token if the loss needs no reference.
    beta is the loss's attribute of that name, or the default value of a function's argument `beta`, else 1.
    """
    declared = getattr(loss, "rewards", None)
    if declared is not None:
        return cast(Sides, declared(pairs))
    beta = _beta(loss)
    if not needs_reference(loss):
        chosen, rejected = pairs.mean_logps()
        return beta * chosen, beta * rejected
    return beta * pairs.chosen_logratios, beta * pairs.rejected_logratios


def value_at_start(loss: "PairLoss", start: PairScores | None = None) -> float | None:
    """The mean loss where the policy is the reference, from a formula other than the loss itself; None if not declared.

    Args:
        loss: The loss.
        start: The first batch at policy = reference. Losses with margins or without a reference depend on it.

    Raises:
        UserError: The value depends on the first log-probabilities, and `start` has none.
    """
    declared = getattr(loss, "at_start", None)
    value = declared(start) if callable(declared) else declared
    return None if value is None else float(value)


def checked_loss_values(loss: "PreferenceLoss", values: object, P: int) -> Float[Tensor, "P"]:
    """`values` if they are what a loss must return: one floating-point number per pair, with a gradient.

    Args:
        loss: The loss that returned the values, for messages.
        values: Its result.
        P: The number of pairs (responses, rankings) that it was given.

    Raises:
        UserError: The result is not a floating-point tensor, has not the shape (P,), or has no gradient although
            gradients are enabled.
    """
    checked = _checked_form(loss, values, P)
    if torch.is_grad_enabled() and not checked.requires_grad:
        raise UserError(
            f"the loss {loss_name(loss)!r} returned values without a gradient, so nothing can be learnt; compute them "
            "from the log-ratios or log-probabilities of its argument with torch operations (no .item(), .detach(), "
            "numpy or no_grad)"
        )
    return checked


def _checked_form(loss: "PreferenceLoss", values: object, P: int) -> Float[Tensor, "P"]:
    """`values` if they are a floating-point tensor of the shape (P,)."""
    name = f"the loss {loss_name(loss)!r}"
    if not isinstance(values, Tensor):
        raise UserError(
            f"{name} returned a value of type {type(values).__name__}; it must return a tensor with one loss per pair, "
            "computed from the fields of its argument"
        )
    if values.shape != (P,):
        raise UserError(
            f"{name} returned the shape {tuple(values.shape)} for {P} pairs; it must return one loss per pair, the "
            f"shape ({P},). Do not take the mean: Treeward does, over the whole batch"
        )
    if not values.is_floating_point():
        raise UserError(f"{name} returned values of type {values.dtype}; it must return floating-point numbers")
    return values


def _beta(loss: object) -> float:
    """The `beta` of a loss: an attribute, or the default of a function's argument; 1 if there is none."""
    beta = getattr(loss, "beta", None)
    if beta is None and inspect.isfunction(loss):
        argument = inspect.signature(loss).parameters.get("beta")
        beta = None if argument is None else argument.default
    return float(beta) if isinstance(beta, int | float) else 1.0


# --------------------------------------------------------------------------- losses of the difference
# They depend on D = x_w - x_l only (IPO and NormalisedSigmoid on that of the per-token means), so adding a constant to
# both log-ratios changes nothing, and none of them keeps x_w from falling. Section 4 does, or a Sum with ChosenNLL.
# Every loss maps (P,) to (P,). Left out: SLiC's cross-entropy term (add ChosenNLL), and DiscoPOP.


@dataclass(frozen=True)
class ReferenceLoss:
    """Base of the losses on log-ratios. Their implicit reward is beta x."""

    beta: float = 0.1
    """Strength of the pull towards the reference: the implicit reward is beta times the log-ratio."""

    needs_reference: ClassVar[bool] = True
    takes_margin: ClassVar[bool] = False
    admits_divergence: ClassVar[bool] = False
    divergence_reason: ClassVar[str] = (
        "it uses each log-ratio by itself, but f-DPO's scores are known only up to a constant, which cancels in their "
        "difference"
    )

    def __post_init__(self) -> None:
        require_positive("loss.beta", self.beta)

    def rewards(self, pairs: PairScores) -> Sides:
        """beta x."""
        return self.beta * pairs.chosen_logratios, self.beta * pairs.rejected_logratios


@dataclass(frozen=True)
class _DifferenceLoss(ReferenceLoss):
    """Base of the losses of D alone."""

    takes_margin: ClassVar[bool] = True
    admits_divergence: ClassVar[bool] = True


@dataclass(frozen=True)
class Sigmoid(_DifferenceLoss):
    """DPO (Rafailov et al. 2023, arXiv:2305.18290, equation 7).

        -(1 - e) log sigma(d - m) - e log sigma(-d - m),   d = clip(beta D, -R, R)

    `flip` e > 0 is conservative DPO. `clip` R with the divergence chi-squared-mixed is chi-PO (Huang et al. 2024,
    arXiv:2407.13399, equation 9).
    """

    flip: float = 0.0
    """e, the assumed share of flipped labels, in [0, 0.5)."""
    clip: float | None = None
    """R: beta D is clipped to [-R, R], with no gradient beyond; chi-PO uses twice the largest reward."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_flip("loss.flip", self.flip)
        if self.clip is not None:
            require_positive("loss.clip", self.clip)

    def __call__(self, pairs: PairScores) -> Float[Tensor, "P"]:
        d = self.beta * (pairs.chosen_logratios - pairs.rejected_logratios)
        if self.clip is not None:
            d = d.clamp(-self.clip, self.clip)
        as_labelled, flipped = _both_orders(d, pairs.margins)
        return -(1 - self.flip) * logsigmoid(as_labelled) - self.flip * logsigmoid(flipped)

    def at_start(self, start: PairScores | None = None) -> float:
        return softplus(_start_margins(start)).mean().item()

    def clipped(self, pairs: PairScores) -> Bool[Tensor, "P"]:
        """Where |beta D| is above the clip, so that the pair has no gradient."""
        size = self.beta * (pairs.chosen_logratios - pairs.rejected_logratios).abs()
        return size > (math.inf if self.clip is None else self.clip)


@dataclass(frozen=True)
class Robust(_DifferenceLoss):
    """Robust DPO (Chowdhury et al. 2024, arXiv:2403.00409): unbiased if labels are flipped with probability e.

        [-(1 - e) log sigma(beta D - m) + e log sigma(-beta D - m)] / (1 - 2e)

    Its expectation over the flips is the Sigmoid loss of the true labels. It is unbounded below.
    """

    flip: float = 0.1
    """e, the known share of flipped labels, in [0, 0.5)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_flip("loss.flip", self.flip)

    def __call__(self, pairs: PairScores) -> Float[Tensor, "P"]:
        d = self.beta * (pairs.chosen_logratios - pairs.rejected_logratios)
        as_labelled, flipped = _both_orders(d, pairs.margins)
        both = -(1 - self.flip) * logsigmoid(as_labelled) + self.flip * logsigmoid(flipped)
        return both / (1 - 2 * self.flip)

    def at_start(self, start: PairScores | None = None) -> float:
        return softplus(_start_margins(start)).mean().item()


@dataclass(frozen=True)
class Hinge(_DifferenceLoss):
    """SLiC's hinge loss on log-ratios (Zhao et al. 2023, arXiv:2305.10425): max(0, 1 - (beta D - m)).

    The paper has no reference model; this is the variant with one, as in the DPO literature. Left out: the paper's
    cross-entropy term.
    """

    beta: float = 0.1
    """Scale of the log-ratio difference; the loss is 0 from a difference of 1 / beta nats."""

    def __call__(self, pairs: PairScores) -> Float[Tensor, "P"]:
        return (1 - pairs.difference(self.beta)).relu()

    def at_start(self, start: PairScores | None = None) -> float:
        return (1 + _start_margins(start)).clamp(min=0).mean().item()


@dataclass(frozen=True)
class EXO(_DifferenceLoss):
    """EXO on pairs (Ji et al. 2024, arXiv:2402.00856, equation 16), with d = beta D - m.

        sigma(d) [log sigma(d) - log(1 - e)] + sigma(-d) [log sigma(-d) - log e]

    This is KL(q, label) of the model's distribution q = (sigma(d), sigma(-d)) and the smoothed label (1 - e, e).
    """

    smoothing: float = 1e-3
    """e: the label's probability of the rejected response, in (0, 0.5); the minimum is at d = log((1 - e) / e)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.smoothing < 0.5:
            raise UserError(f"loss.smoothing is {self.smoothing}; it must be in (0, 0.5), and 0.001 is usual")

    def __call__(self, pairs: PairScores) -> Float[Tensor, "P"]:
        d = pairs.difference(self.beta)
        chosen_term = d.sigmoid() * (logsigmoid(d) - math.log1p(-self.smoothing))
        return chosen_term + (-d).sigmoid() * (logsigmoid(-d) - math.log(self.smoothing))

    def at_start(self, start: PairScores | None = None) -> float:
        q = 1 / (1 + _start_margins(start).exp())
        entropy = -(q * q.log() + (1 - q) * torch.log1p(-q))
        cross_entropy = q * math.log(1 - self.smoothing) + (1 - q) * math.log(self.smoothing)
        return (-entropy - cross_entropy).mean().item()


@dataclass(frozen=True)
class IPO(ReferenceLoss):
    """IPO (Azar et al. 2023, arXiv:2310.12036, equation 17) on per-token means.

        (x_w / |y_w| - x_l / |y_l| - 1 / (2 beta))^2

    The printed formula has sums; the authors confirmed that means are intended, and TRL uses means.
    """

    beta: float = 0.1
    """The target for the difference of the per-token means is 1 / (2 beta) nats."""

    divergence_reason: ClassVar[str] = (
        "its target, 1 / (2 beta), is a difference of per-token mean log-ratios, and a divergence's score of a sum "
        "cannot be divided by the length"
    )

    def __call__(self, pairs: PairScores) -> Float[Tensor, "P"]:
        chosen, rejected = pairs.mean_logratios()
        return (chosen - rejected - 1 / (2 * self.beta)).square()

    def at_start(self, start: PairScores | None = None) -> float:
        return 1 / (4 * self.beta**2)


@dataclass(frozen=True)
class NormalisedSigmoid(ReferenceLoss):
    """Length-normalised DPO (Meng et al. 2024, arXiv:2405.14734, table 3; Tulu 3, arXiv:2411.15124, equation 6).

    -log sigma(beta (x_w / |y_w| - x_l / |y_l|) - m)
    """

    beta: float = 5.0
    """Scale of the per-token means, so larger than for sums: 5 to 10."""

    takes_margin: ClassVar[bool] = True
    divergence_reason: ClassVar[str] = (
        "it divides log-ratios by lengths, and a divergence's score of a sum cannot be divided by the length"
    )

    def __call__(self, pairs: PairScores) -> Float[Tensor, "P"]:
        chosen, rejected = self.rewards(pairs)
        difference = chosen - rejected
        return -logsigmoid(difference if pairs.margins is None else difference - pairs.margins)

    def at_start(self, start: PairScores | None = None) -> float:
        return softplus(_start_margins(start)).mean().item()

    def rewards(self, pairs: PairScores) -> Sides:
        """beta x / |y|."""
        chosen, rejected = pairs.mean_logratios()
        return self.beta * chosen, self.beta * rejected


def require_positive(name: str, value: float) -> None:
    """Check a hyper-parameter.

    Raises:
        UserError: The value is 0, negative, infinite or NaN.
    """
    if not 0 < value < math.inf:
        raise UserError(f"{name} is {value}; it must be above 0 and finite (0.1 is usual)")


def _require_flip(name: str, value: float) -> None:
    if not 0 <= value < 0.5:
        raise UserError(f"{name} is {value}; the share of flipped labels must be in [0, 0.5)")


def _both_orders(d: Float[Tensor, "P"], margins: Float[Tensor, "P"] | None) -> Sides:
    """d - m for the pair as labelled, and -d - m for the flipped pair: either order must win by the margin."""
    if margins is None:
        return d, -d
    return d - margins, -d - margins


def _start_margins(start: PairScores | None) -> Float[Tensor, "P"]:
    """The margins of the first batch in float64; a single 0 if there are none."""
    if start is None or start.margins is None:
        return torch.zeros(1, dtype=torch.float64)
    return start.margins.double()


# --------------------------------------------------------------------------- losses of each log-ratio by itself
# They can keep the chosen response's log-probability from falling. Every loss maps (P,) to (P,).
# Left out: BCO's running reward shift and its prompt classifier, and SPPO's win rates other than 0 and 1.


@dataclass(frozen=True)
class NCA(ReferenceLoss):
    """NCA on pairs (Chen et al. 2024, arXiv:2402.05369): noise-contrastive alignment.

    -log sigma(beta x_w) - (1/2) log sigma(-beta x_w) - (1/2) log sigma(-beta x_l)
    """

    def __call__(self, pairs: PairScores) -> Float[Tensor, "P"]:
        chosen, rejected = self.rewards(pairs)
        return -logsigmoid(chosen) - 0.5 * logsigmoid(-chosen) - 0.5 * logsigmoid(-rejected)

    def at_start(self, start: PairScores | None = None) -> float:
        return 2 * math.log(2)


@dataclass(frozen=True)
class BCO(ReferenceLoss):
    """Binary classifier optimisation on pairs (Jung et al. 2024, arXiv:2404.04656), without the reward shift.

    -log sigma(beta x_w) - log sigma(-beta x_l)
    """

    def __call__(self, pairs: PairScores) -> Float[Tensor, "P"]:
        chosen, rejected = self.rewards(pairs)
        return -logsigmoid(chosen) - logsigmoid(-rejected)

    def at_start(self, start: PairScores | None = None) -> float:
        return 2 * math.log(2)


@dataclass(frozen=True)
class SPPOHard(ReferenceLoss):
    """Self-play preference optimisation with hard labels (Wu et al. 2024, arXiv:2405.00675, equation 4.8).

    (x_w - 1/(2 beta))^2 + (x_l + 1/(2 beta))^2
    """

    beta: float = 0.1
    """The targets of the two log-ratios are plus and minus 1 / (2 beta) nats."""

    def __call__(self, pairs: PairScores) -> Float[Tensor, "P"]:
        target = 1 / (2 * self.beta)
        return (pairs.chosen_logratios - target).square() + (pairs.rejected_logratios + target).square()

    def at_start(self, start: PairScores | None = None) -> float:
        return 1 / (2 * self.beta**2)


@dataclass(frozen=True)
class APOZero(ReferenceLoss):
    """APO-zero (D'Oosterlinck et al. 2024, arXiv:2408.06266): chosen up, rejected down.

    For data better than the policy:
    1 - sigma(beta x_w) + sigma(beta x_l)
    """

    def __call__(self, pairs: PairScores) -> Float[Tensor, "P"]:
        chosen, rejected = self.rewards(pairs)
        return 1 - chosen.sigmoid() + rejected.sigmoid()

    def at_start(self, start: PairScores | None = None) -> float:
        return 1.0


@dataclass(frozen=True)
class APODown(ReferenceLoss):
    """APO-down (D'Oosterlinck et al. 2024, arXiv:2408.06266): both down, the rejected further.

    For a policy better than the data:
    sigma(beta x_w) + 1 - sigma(beta D)
    """

    def __call__(self, pairs: PairScores) -> Float[Tensor, "P"]:
        chosen, rejected = self.rewards(pairs)
        return chosen.sigmoid() + 1 - (chosen - rejected).sigmoid()

    def at_start(self, start: PairScores | None = None) -> float:
        return 1.0


@dataclass(frozen=True)
class DPOP(ReferenceLoss):
    """DPO-Positive (Pal et al. 2024, arXiv:2402.13228, equation 3): a penalty if the chosen log-ratio is negative.

    -log sigma(beta (D - omega max(0, -x_w)))
    """

    penalty: float = 5.0
    """omega: weight of a negative chosen log-ratio; 5 to 50."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive("loss.penalty", self.penalty)

    def __call__(self, pairs: PairScores) -> Float[Tensor, "P"]:
        below_zero = (-pairs.chosen_logratios).relu()
        return -logsigmoid(self.beta * (pairs.chosen_logratios - pairs.rejected_logratios - self.penalty * below_zero))

    def at_start(self, start: PairScores | None = None) -> float:
        return math.log(2)


# --------------------------------------------------------------------------- reference-free losses
# They read the policy's own mean log-probabilities; no reference log-probabilities are computed. Their value at the
# start depends on the data, so `at_start` puts the first log-probabilities into another formula, in float64.

ODDS_LIMIT = -1e-7
"""Largest mean log-probability for which odds are computed; above it the probability is 1 to within float32."""


@dataclass(frozen=True)
class ReferenceFreeLoss:
    """Base of the losses without a reference. Their implicit reward is a."""

    needs_reference: ClassVar[bool] = False
    takes_margin: ClassVar[bool] = False
    admits_divergence: ClassVar[bool] = False
    divergence_reason: ClassVar[str] = "it has no reference, so there is nothing to diverge from"

    def rewards(self, pairs: PairScores) -> Sides:
        """a."""
        return pairs.mean_logps()


@dataclass(frozen=True)
class ORPO(ReferenceFreeLoss):
    """Odds-ratio preference optimisation (Hong et al. 2024, arXiv:2403.07691, equations 6 and 7).

    -a_w - omega log sigma(o_w - o_l),   o = a - log(1 - e^a)
    """

    weight: float = 0.1
    """omega (lambda in the paper, beta in TRL): weight of the odds ratio beside the NLL of the chosen response."""

    def __post_init__(self) -> None:
        require_positive("loss.weight", self.weight)

    def __call__(self, pairs: PairScores) -> Float[Tensor, "P"]:
        chosen, rejected = (mean_logps.clamp(max=ODDS_LIMIT) for mean_logps in pairs.mean_logps())
        log_odds_ratio = chosen - log1mexp(chosen) - rejected + log1mexp(rejected)
        return -pairs.mean_logps()[0] - self.weight * logsigmoid(log_odds_ratio)

    def at_start(self, start: PairScores | None = None) -> float:
        means = _start_mean_logps(self, start)
        total = 0.0
        for chosen, rejected in means:
            chosen_odds, rejected_odds = (
                a - math.log(-math.expm1(a)) for a in (min(chosen, ODDS_LIMIT), min(rejected, ODDS_LIMIT))
            )
            total += -chosen + self.weight * _softplus(rejected_odds - chosen_odds)
        return total / len(means)


@dataclass(frozen=True)
class SIMPO(ReferenceFreeLoss):
    """SimPO (Meng et al. 2024, arXiv:2405.14734, equation 6): -log sigma(beta (a_w - a_l) - gamma)."""

    beta: float = 2.0
    """Scale of the mean log-probabilities: 2 to 10."""
    gamma: float = 1.0
    """Target margin; gamma / beta is 0.1 to 0.8."""

    def __post_init__(self) -> None:
        require_positive("loss.beta", self.beta)
        if not self.gamma >= 0:
            raise UserError(f"loss.gamma is {self.gamma}; it must not be negative (beta / 2 is usual)")

    def __call__(self, pairs: PairScores) -> Float[Tensor, "P"]:
        chosen, rejected = self.rewards(pairs)
        return -logsigmoid(chosen - rejected - self.gamma)

    def at_start(self, start: PairScores | None = None) -> float:
        means = _start_mean_logps(self, start)
        return sum(_softplus(self.gamma - self.beta * (chosen - rejected)) for chosen, rejected in means) / len(means)

    def rewards(self, pairs: PairScores) -> Sides:
        """beta a."""
        chosen, rejected = pairs.mean_logps()
        return self.beta * chosen, self.beta * rejected


@dataclass(frozen=True)
class ChosenNLL(ReferenceFreeLoss):
    """-a_w, the NLL per token of the chosen response, as a term of a sum.

    With `Sigmoid` it is RPO (Pang et al. 2024, arXiv:2404.19733, equation 4), which divides by the length too.
    """

    def __call__(self, pairs: PairScores) -> Float[Tensor, "P"]:
        return -pairs.mean_logps()[0]

    def at_start(self, start: PairScores | None = None) -> float:
        means = _start_mean_logps(self, start)
        return -sum(chosen for chosen, _ in means) / len(means)


def log1mexp(a: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """log(1 - e^a) for a < 0, with finite gradients: by expm1 above -ln 2, by log1p below (Maechler 2012)."""
    near_zero = a > -math.log(2)
    by_expm1 = (-torch.expm1(torch.where(near_zero, a, -1.0))).log()
    return torch.where(near_zero, by_expm1, torch.log1p(-torch.where(near_zero, -1.0, a).exp()))


def _softplus(z: float) -> float:
    return max(0.0, z) + math.log1p(math.exp(-abs(z)))


def _start_mean_logps(loss: object, start: PairScores | None) -> list[tuple[float, float]]:
    """(a_w, a_l) of each pair of the first batch, in float64."""
    if start is None or start.chosen_logps is None:
        raise UserError(f"the first value of {type(loss).__name__} depends on the data: give the first scores")
    chosen, rejected = start.mean_logps()
    return list(zip(chosen.double().tolist(), rejected.double().tolist(), strict=True))


# --------------------------------------------------------------------------- losses from a file, and sums


@dataclass(frozen=True)
class FromFile:
    """A loss from a user's Python file: `--loss FILE.py:NAME`.

    NAME is a function `loss(pairs, **arguments) -> Float[P]` of `PairScores`, or a class that is built with the
    arguments and whose objects are such functions. It may declare what `PairLoss` lists. The file is run when the loss
    is first used.
    """

    function: str = ""
    """FILE.py:NAME of a function of the pairs that returns one loss per pair."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the function: `--loss.arguments.beta 0.2`."""

    takes_text: ClassVar[str] = "function"
    """The field that a plain text stands for: `loss: FILE.py:NAME` (`treeward.runner.settings`)."""

    def __post_init__(self) -> None:
        if self.function and MARK not in self.function:
            raise UserError(f"loss.function is {self.function!r}; write it as FILE.py:NAME")

    @cached_property
    def loaded(self) -> PairLoss:
        """The function of the file, or the object built from its class.

        Raises:
            UserError: There is no such file, it cannot be run, it has no such name, the object is not callable, or
                `arguments` do not fit it.
        """
        loaded = self._object
        try:
            if isinstance(loaded, type):
                loaded = loaded(**self.arguments)
            else:
                inspect.signature(loaded).bind(None, **self.arguments)
        except TypeError as problem:
            raise UserError(
                f"loss.arguments is {self.arguments}, which does not fit loss.function {self.function!r} ({problem}); "
                "correct the arguments"
            ) from problem
        if not callable(loaded):
            raise UserError(f"loss.function is {self.function!r}, a class without __call__(self, pairs); add it")
        return cast(PairLoss, loaded)

    @cached_property
    def _object(self) -> Callable[..., object]:
        named: object = load_name(self.function, "loss.function")
        if not callable(named):
            raise UserError(
                f"loss.function is {self.function!r}, which is a value of type {type(named).__name__} and not "
                "callable; name a function of the pairs that returns one loss per pair"
            )
        return named

    @property
    def needs_reference(self) -> bool:
        """As declared in the file."""
        return needs_reference(self.loaded)

    @property
    def takes_margin(self) -> bool:
        """As declared in the file."""
        return takes_margins(self.loaded)

    @property
    def admits_divergence(self) -> bool:
        """As declared in the file."""
        return not self.divergence_reason

    @property
    def divergence_reason(self) -> str:
        """As declared in the file."""
        return divergence_refusal(self.loaded)

    @property
    def at_start(self) -> Any:
        """As declared in the file; None if it is not."""
        return getattr(self.loaded, "at_start", None)

    @property
    def rewards(self) -> Callable[[PairScores], Sides] | None:
        """As declared in the file; None if it is not."""
        return getattr(self.loaded, "rewards", None)

    @property
    def beta(self) -> float:
        """The argument `beta`, else the function's default, else 1; for the implicit rewards."""
        return float(self.arguments.get("beta", _beta(self.loaded)))

    def __call__(self, pairs: PairScores) -> Float[Tensor, "P"]:
        arguments = {} if isinstance(self._object, type) else self.arguments
        values = cast(Callable[..., object], self.loaded)(pairs, **arguments)
        return _checked_form(self, values, len(pairs.chosen_logratios))


AnyTerm: TypeAlias = (
    Sigmoid
    | Robust
    | Hinge
    | IPO
    | NormalisedSigmoid
    | EXO
    | NCA
    | BCO
    | SPPOHard
    | APOZero
    | APODown
    | DPOP
    | ORPO
    | SIMPO
    | ChosenNLL
    | FromFile
)
"""The losses of pairs that are not sums, by their names: sigmoid, robust, hinge, ipo, ..., from-file."""


@dataclass(frozen=True)
class Term:
    """One term of a `Sum`."""

    weight: float = 1.0
    """Factor of this term's loss."""
    loss: AnyTerm = field(default_factory=Sigmoid)
    """The loss of this term."""

    def __post_init__(self) -> None:
        if not 0 < self.weight < math.inf:
            raise UserError(f"loss.terms has a weight of {self.weight}; it must be above 0 and finite")


@dataclass(frozen=True)
class Sum:
    """A weighted sum of losses of the same pairs. The default is RPO: sigmoid plus the chosen response's NLL."""

    terms: tuple[Term, ...] = (Term(), Term(loss=ChosenNLL()))
    """The terms: [{weight: 1, loss: {kind: sigmoid}}, {weight: 1, loss: {kind: chosen-nll}}]."""

    def __post_init__(self) -> None:
        if not self.terms:
            raise UserError("loss.terms is empty; name at least one term, such as {weight: 1, loss: {kind: sigmoid}}")

    @property
    def needs_reference(self) -> bool:
        """Whether any term does."""
        return any(needs_reference(term.loss) for term in self.terms)

    @property
    def takes_margin(self) -> bool:
        """Whether any term does."""
        return any(takes_margins(term.loss) for term in self.terms)

    @property
    def admits_divergence(self) -> bool:
        """Whether every term with a reference does; a sum without a reference does not."""
        return not self.divergence_reason

    @property
    def divergence_reason(self) -> str:
        """The reason of the first term that admits no divergence."""
        losses = [term.loss for term in self.terms if needs_reference(term.loss)] or [self.terms[0].loss]
        reasons = ((loss_name(loss), divergence_refusal(loss)) for loss in losses)
        return next((f"{name}: {reason}" for name, reason in reasons if reason), "")

    def __call__(self, pairs: PairScores) -> Float[Tensor, "P"]:
        return torch.stack([term.weight * term.loss(pairs) for term in self.terms]).sum(0)

    def at_start(self, start: PairScores | None = None) -> float | None:
        """The weighted sum of the terms' values; None if a term declares none."""
        values = [value_at_start(term.loss, start) for term in self.terms]
        if any(value is None for value in values):
            return None
        return sum(term.weight * cast(float, value) for term, value in zip(self.terms, values, strict=True))

    def rewards(self, pairs: PairScores) -> Sides:
        """Those of the first term with a reference, else of the first term."""
        losses = [term.loss for term in self.terms]
        return implicit_rewards(next(filter(needs_reference, losses), losses[0]), pairs)


# --------------------------------------------------------------------------- losses of labelled responses and rankings


@dataclass(frozen=True)
class KTO(ReferenceLoss):
    """Kahneman-Tversky optimisation of labelled responses (Ethayarajh et al. 2024, arXiv:2402.01306, equation 8).

        lambda_D (1 - sigma(beta (x - z0)))   for a desirable response
        lambda_U (1 - sigma(beta (z0 - x)))   for an undesirable one

    z0 = max(0, mean x of responses paired with another prompt of the batch), without gradient: an estimate of KL.
    """

    desirable: float = 1.0
    """lambda_D; lambda_D n_D / (lambda_U n_U) should be in [1, 4/3]."""
    undesirable: float = 1.0
    """lambda_U."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive("loss.desirable", self.desirable)
        require_positive("loss.undesirable", self.undesirable)

    def __call__(self, scores: LabelledScores) -> Float[Tensor, "N"]:
        z = self.beta * (scores.ratios - scores.z0)
        return torch.where(scores.desirable, self.desirable * (-z).sigmoid(), self.undesirable * z.sigmoid())

    def at_start(self, start: LabelledScores | None = None) -> float:
        """Half the mean lambda; without `start`, of as many desirable as undesirable responses."""
        share = 0.5 if start is None else start.desirable.double().mean().item()
        return 0.5 * (share * self.desirable + (1 - share) * self.undesirable)


@dataclass(frozen=True)
class PlackettLuce(ReferenceLoss):
    """DPO on rankings (Rafailov et al. 2023, arXiv:2305.18290, equation 20), best first. Of two branches: `Sigmoid`.

        -sum_k [beta x_(k) - log sum_{j >= k} e^(beta x_(j))]

    Ties by rating as in `treeward.losses.reward.PlackettLuce`.
    """

    admits_divergence: ClassVar[bool] = True

    def __call__(self, branches: Branches) -> Float[Tensor, "G"]:
        """`branches.outputs` are the log-ratios, (N, 1)."""
        return reward.PlackettLuce()(replace(branches, outputs=self.beta * branches.outputs))

    def at_start(self, start: Branches | None = None) -> float:
        """The mean of ln N! over the rankings (fewer with ties); ln 2 if none are given."""
        return math.log(2) if start is None else reward.PlackettLuce().at_start(start)


# --------------------------------------------------------------------------- registry

AnyPairLoss: TypeAlias = AnyTerm | Sum
"""Every loss of pairs that a configuration can name."""

AnyPreferenceLoss: TypeAlias = AnyPairLoss | KTO | PlackettLuce
"""Every preference loss that a configuration can name."""

PreferenceLoss: TypeAlias = AnyPreferenceLoss | PairLoss
"""Every preference loss, also a user's function."""


def loads_file(loss: PreferenceLoss) -> bool:
    """Whether asking for a declaration of this loss runs a user's file."""
    if isinstance(loss, Sum):
        return any(isinstance(term.loss, FromFile) for term in loss.terms)
    return isinstance(loss, FromFile)


def required_data(loss: PreferenceLoss) -> Literal["pairs", "unpaired", "ranked"]:
    """The kind of data that the loss is trained on."""
    return "unpaired" if isinstance(loss, KTO) else "ranked" if isinstance(loss, PlackettLuce) else "pairs"


__all__ = [
    "BCO",
    "DPOP",
    "EXO",
    "IPO",
    "KTO",
    "NCA",
    "ORPO",
    "SIMPO",
    "APODown",
    "APOZero",
    "AnyPairLoss",
    "AnyPreferenceLoss",
    "AnyTerm",
    "ChosenNLL",
    "FromFile",
    "Hinge",
    "LabelledScores",
    "NormalisedSigmoid",
    "PairLoss",
    "PairScores",
    "PlackettLuce",
    "PreferenceLoss",
    "Robust",
    "SPPOHard",
    "Sigmoid",
    "Sum",
    "Term",
    "checked_loss_values",
    "divergence_refusal",
    "implicit_rewards",
    "loads_file",
    "loss_name",
    "needs_reference",
    "required_data",
    "takes_margins",
    "value_at_start",
]
