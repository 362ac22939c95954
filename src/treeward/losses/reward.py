"""Losses of reward models.

What a reward loss may see of a forest: the outputs of its branches, tree by tree, and the raters' numbers.

Letters: G trees, N branches, P pairs, W outputs a branch, A attributes, B score bins.


---
Graded targets: a rating on a stated scale as a distribution over scores 1..B, and its likelihood.

Letters: N branches, A attributes, B score bins, s a score on 1..B (a real number), phi its fraction.


---
Losses of reward models: Bradley-Terry, rankings, likelihoods of score distributions, ratings, and both together.

Each is a frozen dataclass over the `Branches` of a forest and gives one number a tree. A scalar head is taught by
`BradleyTerry`, `PlackettLuce` or `AllPairs`, a distribution by the others (or, through its mean score, by these).

Letters: G trees, N branches, P pairs, W outputs a branch, A attributes, B score bins.

"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from treeward.errors import UserError
from treeward.losses.heads import AnyHead, Attributes, Scalar


@dataclass(frozen=True)
class Branches:
    """All that a reward loss may see of a forest. Branches stand tree by tree, in a pair the chosen one first.

    `ratings` are the raters' numbers on their own scale, one column an attribute, NaN in the rows of a tree without.
    `margins` are those that trees bring with them, NaN where one brings none. None: no tree has any.
    """

    outputs: Float[Tensor, "N W"]
    head: AnyHead
    tree: Int[Tensor, "N"]
    ratings: Float[Tensor, "N A"] | None = None
    margins: Float[Tensor, "G"] | None = None

    @property
    def trees(self) -> int:
        """G."""
        return int(self.tree[-1]) + 1 if len(self.tree) else 0

    def scores(self) -> Float[Tensor, "N"]:
        """The head's scalar, or its mean score."""
        return self.head.scores(self.outputs)

    def log_probs(self) -> Float[Tensor, "N A B"]:
        """The head's distributions; a scalar head has none."""
        assert not isinstance(self.head, Scalar), "a scalar head has no distribution"
        return self.head.log_probs(self.outputs)

    def pair(self, values: Float[Tensor, "N *d"]) -> tuple[Float[Tensor, "P *d"], Float[Tensor, "P *d"]]:
        """Values of chosen and of rejected, where every tree is a pair."""
        assert len(values) == 2 * self.trees, "every tree is a pair"
        return values[0::2], values[1::2]

    def grades(self) -> Float[Tensor, "N"]:
        """The mean rating of each branch, NaN where its tree has none."""
        if self.ratings is None:
            return torch.full_like(self.tree, torch.nan, dtype=torch.float32)
        return self.ratings.mean(1)

    def order(self) -> Float[Tensor, "N"]:
        """What ranks the branches of a tree, higher is better: mean rating, in a tree without ratings their order."""
        grades = self.grades()
        return torch.where(grades.isnan(), -torch.arange(len(grades), device=grades.device).to(grades.dtype), grades)

    def only_pairs(self) -> "Branches":
        """The trees with two branches alone, without what was said of them."""
        rows = torch.bincount(self.tree, minlength=self.trees)[self.tree] == 2
        tree = torch.arange(int(rows.sum()) // 2, device=self.tree.device).repeat_interleave(2)
        return Branches(self.outputs[rows], self.head, tree)

    def tree_mean(self, values: Float[Tensor, "N"]) -> Float[Tensor, "G"]:
        """The mean of a tree's branches."""
        return self.tree_sum(values) / torch.bincount(self.tree, minlength=self.trees)

    def tree_sum(self, values: Float[Tensor, "N"]) -> Float[Tensor, "G"]:
        """The sum over a tree's branches."""
        return values.new_zeros(self.trees).index_add(0, self.tree, values)


@runtime_checkable
class Target(Protocol):
    """A distribution over 1..B for each score s in [1, B]."""

    def __call__(self, s: Float[Tensor, "*n"], bins: int) -> Float[Tensor, "*n B"]: ...


@dataclass(frozen=True)
class OneHot:
    """All mass on the nearest bin, halves going up; with an ordinal head this is the ordinal likelihood."""

    def __call__(self, s: Float[Tensor, "*n"], bins: int) -> Float[Tensor, "*n B"]:
        nearest = (s + 0.5).floor().clamp(1, bins).long()
        return torch.nn.functional.one_hot(nearest - 1, bins).to(s.dtype)


@dataclass(frozen=True)
class TwoHot:
    """Mass 1 - phi on floor(s) and phi on floor(s) + 1: its mean is s exactly."""

    def __call__(self, s: Float[Tensor, "*n"], bins: int) -> Float[Tensor, "*n B"]:
        grid = torch.arange(1, bins + 1, device=s.device, dtype=s.dtype)
        return (1 - (s[..., None] - grid).abs()).clamp(min=0)


@dataclass(frozen=True)
class HLGauss:
    """A normal distribution around s cut into bins and renormalised over [1/2, B + 1/2]  (Imani and White 2018;
    Farebrother et al. 2024, arXiv:2403.03950). Its mean is pulled inwards at the ends, by 0.37 bins at s = 1.
    """

    sigma: float = 0.75
    """Standard deviation of the normal, in bins."""

    def __post_init__(self) -> None:
        if not self.sigma > 0:
            raise UserError(f"target.sigma is {self.sigma}; it must be above 0")

    def __call__(self, s: Float[Tensor, "*n"], bins: int) -> Float[Tensor, "*n B"]:
        edges = torch.arange(bins + 1, device=s.device, dtype=s.dtype) + 0.5
        below: Tensor = torch.special.ndtr((edges - s[..., None]) / self.sigma)
        return below.diff(dim=-1) / (below[..., -1:] - below[..., :1])


AnyTarget = OneHot | TwoHot | HLGauss
"""The targets by their names: one-hot, two-hot, hl-gauss."""


def to_score(grades: Float[Tensor, "*n"], scale: tuple[float, float], bins: int) -> Float[Tensor, "*n"]:
    """s = 1 + (B - 1) (g - low) / (high - low).

    Raises:
        UserError: a grade lies outside the scale, or is missing (NaN).
    """
    low, high = scale
    wrong = ~((grades >= low) & (grades <= high))
    if bool(wrong.any()):
        raise UserError(f"a rating is {grades[wrong][0].item():g}; the stated scale is [{low:g}, {high:g}]")
    return 1 + (bins - 1) * (grades - low) / (high - low)


def cross_entropy(log_probs: Float[Tensor, "*n B"], targets: Float[Tensor, "*n B"]) -> Float[Tensor, "*n"]:
    """-sum_k t(k) log p(k), in nats."""
    assert log_probs.shape == targets.shape, f"log-probabilities {log_probs.shape} but targets {targets.shape}"
    return -(targets * log_probs).sum(-1)


def crps(log_probs: Float[Tensor, "*n B"], s: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """Continuous ranked probability score of a distribution over 1..B, for the outcome s, in bins  (Gneiting and
    Raftery 2007): sum_{k<B} [h_k F(k)^2 + (1 - h_k)(1 - F(k))^2] with h_k = clip(s - k, 0, 1)
    = E|Y - s| - E|Y - Y'| / 2.
    """
    below = log_probs.exp().cumsum(-1)[..., :-1]
    grid = torch.arange(1, log_probs.shape[-1], device=s.device, dtype=below.dtype)
    h = (s[..., None] - grid).clamp(0, 1)
    return (h * below.square() + (1 - h) * (1 - below).square()).sum(-1)


def pit(log_probs: Float[Tensor, "*n B"], s: Float[Tensor, "*n"], uniform: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """Randomised probability integral transform, F(k - 1) + v p(k): uniform if the model is calibrated  (Smith 1985;
    Czado, Gneiting and Held 2009).

    The bin k is drawn from the score's two-hot target, as in training: floor(s) + 1 with probability phi, else
    floor(s). Both come from `uniform`, in [0, 1): k by whether it is below 1 - phi, v by how far it lies in that part.
    """
    probabilities = log_probs.exp()
    down = s.floor().clamp(1, log_probs.shape[-1])
    phi = s - down
    up = uniform >= 1 - phi
    v = torch.where(up, (uniform - (1 - phi)) / phi.clamp(min=1e-300), uniform / (1 - phi).clamp(min=1e-300))
    k = (down + up).clamp(max=log_probs.shape[-1]).long()[..., None] - 1
    at = probabilities.gather(-1, k)[..., 0]
    return probabilities.cumsum(-1).gather(-1, k)[..., 0] - at + v * at


def marginal_entropy(targets: Float[Tensor, "n B"]) -> float:
    """Entropy of the mean target, in nats: the cross-entropy of a model that ignores its input."""
    mean = targets.mean(0)
    return -math.fsum(p * math.log(p) for p in mean.tolist() if p > 0)


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
            raise UserError(f"loss.centre is {self.centre}; it must not be negative (0.01 is usual)")

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
                raise UserError(f"loss.{name} is {getattr(self, name)}; it must not be negative")

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
            raise UserError(f"loss.scale is {list(self.scale)}; it is [lowest, highest]")

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
            raise UserError(f"loss.weight is {self.weight}; it must not be negative")

    def __call__(self, branches: Branches) -> Float[Tensor, "G"]:
        return self.pair(branches) + self.weight * branches.tree_sum(self.graded.cross_entropies(branches))

    def at_start(self, zeros: Branches) -> float:
        return self.pair.at_start(zeros) + 2 * self.weight * self.graded.at_start(zeros)


AnyRewardLoss = BradleyTerry | PlackettLuce | AllPairs | HalfTies | Strict | Conditional | Graded | Joint
"""The losses by their names: bradley-terry, plackett-luce, all-pairs, half-ties, strict, conditional, graded, joint."""


def check_margin(name: str, margin: float) -> None:
    """Refuse a margin that is a raw rating gap.

    Raises:
        UserError: it lies outside [0, 1].
    """
    if not 0 <= margin <= 1:
        raise UserError(
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
