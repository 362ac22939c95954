"""Losses of reward models: Bradley-Terry, rankings, likelihoods of score distributions, ratings, and both together.

Each is a frozen dataclass over the `Branches` of a forest and gives one number a tree. A scalar head is taught by
`BradleyTerry`, `PlackettLuce` or `AllPairs`, a distribution by the others (or, through its mean score, by these).

Letters: G trees, N branches, P pairs, W outputs a branch, A attributes, B score bins.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from treeward.maths.branches import Branches
from treeward.maths.graded import AnyTarget, TwoHot, cross_entropy, to_score
from treeward.maths.scores import Attributes, Scalar


@runtime_checkable
class RewardLoss(Protocol):
    """One number a tree; `at_start` is its known mean for outputs of zero, in closed form."""

    def __call__(self, branches: Branches) -> Float[Tensor, "G"]: ...
    def at_start(self, zeros: Branches) -> float: ...


@dataclass(frozen=True)
class BradleyTerry:
    """-log sigma(r_w - r_l - xi) + c (r_w + r_l - 2m)^2  (Bradley and Terry 1952; centring: Eisenstein et al. 2023,
    arXiv:2312.09244; margin: Llama 2, arXiv:2307.09288, equation 2).

    The margin xi is that of `asked_margins`, pair by pair. m is the middle of the head's scale: 0 for a scalar head,
    (B + 1) / 2 for a distribution over scores 1..B, whose sum of two mean scores cannot be 0.
    """

    margin: float = 0.0
    """xi_0: largest margin asked for; 0 is none. Above 0.5 an untrained model cannot reach it and learns length."""
    centre: float = 0.0
    """c: pulls the mean of a pair's two scores towards the middle of the scale, which leaves the pair's preference
    probability free. 0 or 0.01."""

    def __post_init__(self) -> None:
        check_margin("loss.margin", self.margin)
        if not self.centre >= 0:
            raise ValueError(f"loss.centre is {self.centre}; it must not be negative (0.01 is usual)")

    def __call__(self, branches: Branches) -> Float[Tensor, "G"]:
        chosen, rejected = branches.pair(branches.scores())
        return -logsigmoid(chosen - rejected - self._margins(branches)) + self._centring(branches)

    def at_start(self, zeros: Branches) -> float:
        return _mean(softplus(self._margins(zeros)) + self._centring(zeros))

    def _centring(self, branches: Branches) -> Float[Tensor, "P"]:
        chosen, rejected = branches.pair(branches.scores())
        return self.centre * (chosen + rejected - 2 * branches.head.middle).square()

    def _margins(self, branches: Branches) -> Float[Tensor, "P"]:
        better, worse = branches.pair(branches.grades())
        return asked_margins(self.margin, (better - worse).to(branches.outputs.dtype), branches.margins)


@dataclass(frozen=True)
class PlackettLuce:
    """-sum_i [s_i - log sum_{j not above i} e^(s_j)] over the ranked branches of a tree  (Plackett 1975; ties by
    Breslow 1974): the likelihood of the whole ranking, best first. Two branches: Bradley-Terry.
    """

    def __call__(self, branches: Branches) -> Float[Tensor, "G"]:
        scores = branches.scores()
        left = torch.where(_not_above(branches), scores[None, :], -torch.inf).logsumexp(1)
        return branches.tree_sum(left - scores)

    def at_start(self, zeros: Branches) -> float:
        return _mean(zeros.tree_sum(_not_above(zeros).sum(1).to(zeros.outputs.dtype).log()))


@dataclass(frozen=True)
class AllPairs:
    """Mean over all ordered pairs of a tree's branches of -log sigma(s_i - s_j), i above j  (Ouyang et al. 2022,
    arXiv:2203.02155, equation 1); equally rated pairs are left out.
    """

    def __call__(self, branches: Branches) -> Float[Tensor, "G"]:
        scores, above = branches.scores(), _above(branches)
        values = torch.where(above, softplus(scores[None, :] - scores[:, None]), 0.0)
        return branches.tree_sum(values.sum(1)) / branches.tree_sum(above.sum(1).to(values.dtype)).clamp(min=1)

    def at_start(self, zeros: Branches) -> float:
        """ln 2; a tree whose branches are all rated alike costs nothing."""
        told_apart = zeros.tree_sum(_above(zeros).any(1).to(zeros.outputs.dtype)) > 0
        return math.log(2) * _mean(told_apart)


@dataclass(frozen=True)
class _PairLikelihood(ABC):
    """-log P(chosen scores above rejected), the two scores drawn from their own distributions, independently."""

    entropy: float = 0.0
    """lambda_H: weight of the bonus for wide distributions, loss - lambda_H [H(p_c) + H(p_r)]."""
    smoothness: float = 0.0
    """lambda_s: weight of the squared second differences of log p, which keep neighbouring scores alike."""

    def __post_init__(self) -> None:
        for name in ("entropy", "smoothness"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"loss.{name} is {getattr(self, name)}; it must not be negative")

    @abstractmethod
    def nll(self, win: Float[Tensor, "P"], tie: Float[Tensor, "P"], lose: Float[Tensor, "P"]) -> Float[Tensor, "P"]:
        """The loss from log P(above), log P(equal), log P(below)."""

    def __call__(self, branches: Branches) -> Float[Tensor, "G"]:
        log_probs = branches.log_probs()
        assert log_probs.shape[1] == 1, "a pair likelihood compares one distribution a response"
        chosen, rejected = branches.pair(log_probs[:, 0])
        return self.nll(*outcomes(chosen, rejected)) + self._shape(chosen) + self._shape(rejected)

    def at_start(self, zeros: Branches) -> float:
        start = zeros.log_probs()[:1, 0]
        return self.equal(start.exp().square().sum().item()) + 2 * _mean(self._shape(start))

    def equal(self, tie: float) -> float:
        """The loss where both distributions are the same and two draws are equal with probability `tie`."""
        return math.log(2)

    def _shape(self, log_probs: Float[Tensor, "P B"]) -> Float[Tensor, "P"]:
        bent = log_probs.diff(n=2, dim=1).square().sum(1)
        return self.smoothness * bent - self.entropy * -(log_probs.exp() * log_probs).sum(1)


@dataclass(frozen=True)
class HalfTies(_PairLikelihood):
    """-log(win + tie / 2): ln 2 for equal distributions of any shape; the default."""

    def nll(self, win: Float[Tensor, "P"], tie: Float[Tensor, "P"], lose: Float[Tensor, "P"]) -> Float[Tensor, "P"]:
        return -torch.logaddexp(win, tie - math.log(2))


@dataclass(frozen=True)
class Strict(_PairLikelihood):
    """-log(win): not the likelihood of a forced choice; drives mass to the end bins, -log((B-1)/(2B)) when uniform."""

    def nll(self, win: Float[Tensor, "P"], tie: Float[Tensor, "P"], lose: Float[Tensor, "P"]) -> Float[Tensor, "P"]:
        return -win

    def equal(self, tie: float) -> float:
        return -math.log((1 - tie) / 2)


@dataclass(frozen=True)
class Conditional(_PairLikelihood):
    """-log(win / (win + lose)): given that the two scores differ."""

    def nll(self, win: Float[Tensor, "P"], tie: Float[Tensor, "P"], lose: Float[Tensor, "P"]) -> Float[Tensor, "P"]:
        return softplus(lose - win)


AnyPairLikelihood = HalfTies | Strict | Conditional


@dataclass(frozen=True)
class Graded:
    """Cross-entropy of the rating's target distribution, the mean over a tree's branches and attributes."""

    target: AnyTarget = field(default_factory=TwoHot)
    """How a rating becomes a distribution over the bins."""
    scale: tuple[float, float] = (0.0, 4.0)
    """Lowest and highest rating that the raters could give; they become scores 1 and B."""

    def __post_init__(self) -> None:
        if not self.scale[0] < self.scale[1]:
            raise ValueError(f"loss.scale is {list(self.scale)}; it is [lowest, highest]")

    def cross_entropies(self, branches: Branches) -> Float[Tensor, "N"]:
        """One number a branch, the mean over its attributes."""
        log_probs = branches.log_probs()
        assert branches.ratings is not None, "graded losses need ratings"
        return cross_entropy(log_probs, self._targets(branches.ratings, log_probs)).mean(1)

    def __call__(self, branches: Branches) -> Float[Tensor, "G"]:
        return branches.tree_mean(self.cross_entropies(branches))

    def at_start(self, zeros: Branches) -> float:
        assert zeros.ratings is not None, "graded losses need ratings"
        start = zeros.log_probs()
        share = 1 / (torch.bincount(zeros.tree)[zeros.tree] * zeros.trees).to(start.dtype)
        mean_target = (share[:, None, None] * self._targets(zeros.ratings, start)).sum(0)
        return _mean(cross_entropy(start[0], mean_target))

    def _targets(self, ratings: Float[Tensor, "N R"], log_probs: Float[Tensor, "N A B"]) -> Float[Tensor, "N A B"]:
        """One target an attribute; a head with one distribution is taught the mean rating."""
        attributes, bins = log_probs.shape[1:]
        if attributes == 1:
            ratings = ratings.mean(1, keepdim=True)
        return self.target(to_score(ratings, self.scale, bins), bins).to(log_probs.dtype)


@dataclass(frozen=True)
class Joint:
    """pair + weight * [CE(chosen) + CE(rejected)]: order and grades together, so that the spread has a meaning."""

    pair: AnyPairLikelihood = field(default_factory=HalfTies)
    """The pair likelihood."""
    graded: Graded = field(default_factory=Graded)
    """The likelihood of the ratings."""
    weight: float = 0.3
    """lambda_g: weight of the ratings."""

    def __post_init__(self) -> None:
        if not self.weight >= 0:
            raise ValueError(f"loss.weight is {self.weight}; it must not be negative")

    def __call__(self, branches: Branches) -> Float[Tensor, "G"]:
        return self.pair(branches) + self.weight * branches.tree_sum(self.graded.cross_entropies(branches))

    def at_start(self, zeros: Branches) -> float:
        return self.pair.at_start(zeros) + 2 * self.weight * self.graded.at_start(zeros)


AnyRewardLoss = BradleyTerry | PlackettLuce | AllPairs | HalfTies | Strict | Conditional | Graded | Joint
"""The losses by their names: bradley-terry, plackett-luce, all-pairs, half-ties, strict, conditional, graded, joint."""


def check_margin(name: str, margin: float) -> None:
    """Refuse a margin that is a raw rating gap.

    Raises:
        ValueError: it lies outside [0, 1].
    """
    if not 0 <= margin <= 1:
        raise ValueError(
            f"{name} is {margin}; it lies in [0, 1], and 0.5 is already large: a raw rating gap teaches "
            "the gap's size, so it is scaled, margin * min(gap, 1)"
        )


def asked_margins(margin: float, gap: Float[Tensor, "P"], own: Float[Tensor, "P"] | None = None) -> Float[Tensor, "P"]:
    """What is asked for of each pair: its `own` margin, else margin * min(gap, 1) of its rating gap, else `margin`.

    NaN in `own` or `gap` where a pair has none; a pair whose ratings contradict its order is asked for 0.
    """
    found = torch.where(gap.isnan(), margin, margin * gap.clamp(0, 1))
    return found if own is None else torch.where(own.isnan(), found, own)


def outcomes(
    chosen: Float[Tensor, "P B"], rejected: Float[Tensor, "P B"]
) -> tuple[Float[Tensor, "P"], Float[Tensor, "P"], Float[Tensor, "P"]]:
    """log P(chosen above), log P(equal), log P(chosen below) of two independent scores, from log-probabilities.

    In log space and by slices, in time linear in B: finite, with finite gradients, for logits of +-1000.
    """
    below_rejected, below_chosen = rejected.logcumsumexp(1), chosen.logcumsumexp(1)
    win = (chosen[:, 1:] + below_rejected[:, :-1]).logsumexp(1)
    lose = (rejected[:, 1:] + below_chosen[:, :-1]).logsumexp(1)
    return win, (chosen + rejected).logsumexp(1), lose


def preferred(branches: Branches) -> Float[Tensor, "P"]:
    """log P(chosen above rejected): Bradley-Terry's for a scalar head, with half ties for a distribution.

    Several attributes have no joint distribution; theirs is Bradley-Terry's of the scores.
    """
    if isinstance(branches.head, Scalar | Attributes):
        return logsigmoid(torch.sub(*branches.pair(branches.scores())))
    return -HalfTies()(branches)


def _same_tree(branches: Branches) -> Tensor:
    return branches.tree[:, None] == branches.tree[None, :]


def _above(branches: Branches) -> Tensor:
    """[i, j] True where j is of i's tree and ranks below i."""
    order = branches.order()
    return _same_tree(branches) & (order[None, :] < order[:, None])


def _not_above(branches: Branches) -> Tensor:
    """[i, j] True where j is of i's tree and ranks no higher than i."""
    order = branches.order()
    return _same_tree(branches) & (order[None, :] <= order[:, None])


def _mean(values: Tensor) -> float:
    return values.double().mean().item()
