"""Losses of reward models: what they see, targets and scores of rating distributions, every loss, and the registry.

A loss is a frozen dataclass over the `Branches` of a forest; it returns one value per tree. `BradleyTerry`,
`PlackettLuce` and `AllPairs` compare scores, so they train a scalar head (or a distribution through its mean score).
The others are likelihoods and train a head with a distribution.

The file in order:

1. `Branches`: the input of a loss.
2. Targets: a rating as a distribution over the scores 1..B.
3. Scoring rules of distributions: cross-entropy, CRPS, the probability integral transform.
4. Losses of scores: Bradley-Terry and rankings.
5. Likelihoods of pairs under two score distributions.
6. Losses of ratings, alone and joined with a likelihood of pairs.
7. The registry: the union that the command line, recipes, the type checker and the tests read.

Notation: G trees, N branches, P pairs, W outputs per branch, A attributes, B score bins; c the chosen and r the
rejected response of a pair; s a score on 1..B (a real number), phi its fractional part.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from treeward.errors import UserError
from treeward.losses.heads import AnyHead, Attributes, Scalar

# --------------------------------------------------------------------------- input


@dataclass(frozen=True)
class Branches:
    """All that a reward loss sees of a forest. Branches are in the order of their trees; of a pair, chosen first.

    Attributes:
        outputs: The reward model's outputs for each branch.
        head: Turns outputs into scores or distributions.
        tree: The index of each branch's tree, ascending from 0.
        ratings: The raters' numbers on their own scale, one column per attribute; NaN for the branches of a tree
            without ratings. None: no tree has ratings.
        margins: The margin given with each tree in the data, NaN where there is none. None: no tree has one.
    """

    outputs: Float[Tensor, "N W"]
    head: AnyHead
    tree: Int[Tensor, "N"]
    ratings: Float[Tensor, "N A"] | None = None
    margins: Float[Tensor, "G"] | None = None

    @property
    def trees(self) -> int:
        """G, the number of trees."""
        return int(self.tree[-1]) + 1 if len(self.tree) else 0

    def scores(self) -> Float[Tensor, "N"]:
        """The score of each branch: a scalar head's output, or the mean of a distribution."""
        return self.head.scores(self.outputs)

    def log_probs(self) -> Float[Tensor, "N A B"]:
        """The log-probabilities of the scores 1..B, for each attribute. A scalar head has none."""
        assert not isinstance(self.head, Scalar), "a scalar head has no distribution"
        return self.head.log_probs(self.outputs)

    def pair(self, values: Float[Tensor, "N *d"]) -> tuple[Float[Tensor, "P *d"], Float[Tensor, "P *d"]]:
        """The values of the chosen and of the rejected branches. Every tree must be a pair."""
        assert len(values) == 2 * self.trees, "every tree is a pair"
        return values[0::2], values[1::2]

    def mean_ratings(self) -> Float[Tensor, "N"]:
        """The mean rating of each branch over the attributes; NaN without ratings."""
        if self.ratings is None:
            return torch.full_like(self.tree, torch.nan, dtype=torch.float32)
        return self.ratings.mean(1)

    def order(self) -> Float[Tensor, "N"]:
        """A number that ranks the branches of a tree, higher is better: the mean rating, else best first."""
        ratings = self.mean_ratings()
        best_first = -torch.arange(len(ratings), device=ratings.device).to(ratings.dtype)
        return torch.where(ratings.isnan(), best_first, ratings)

    def only_pairs(self) -> "Branches":
        """The trees with two branches, without their ratings and margins."""
        in_pair = torch.bincount(self.tree, minlength=self.trees)[self.tree] == 2
        tree = torch.arange(int(in_pair.sum()) // 2, device=self.tree.device).repeat_interleave(2)
        return Branches(self.outputs[in_pair], self.head, tree)

    def tree_mean(self, values: Float[Tensor, "N"]) -> Float[Tensor, "G"]:
        """The mean of each tree's branches."""
        return self.tree_sum(values) / torch.bincount(self.tree, minlength=self.trees)

    def tree_sum(self, values: Float[Tensor, "N"]) -> Float[Tensor, "G"]:
        """The sum over each tree's branches."""
        return values.new_zeros(self.trees).index_add(0, self.tree, values)


# --------------------------------------------------------------------------- targets


@runtime_checkable
class Target(Protocol):
    """Turns each score s in [1, B] into a distribution over 1..B."""

    def __call__(self, s: Float[Tensor, "*n"], bins: int) -> Float[Tensor, "*n B"]: ...


@dataclass(frozen=True)
class OneHot:
    """All probability on the nearest bin, halves rounded up. With an ordinal head: the ordinal likelihood."""

    def __call__(self, s: Float[Tensor, "*n"], bins: int) -> Float[Tensor, "*n B"]:
        nearest = (s + 0.5).floor().clamp(1, bins).long()
        return torch.nn.functional.one_hot(nearest - 1, bins).to(s.dtype)


@dataclass(frozen=True)
class TwoHot:
    """Probability 1 - phi on floor(s) and phi on floor(s) + 1. The mean is exactly s."""

    def __call__(self, s: Float[Tensor, "*n"], bins: int) -> Float[Tensor, "*n B"]:
        grid = torch.arange(1, bins + 1, device=s.device, dtype=s.dtype)
        return (1 - (s[..., None] - grid).abs()).clamp(min=0)


@dataclass(frozen=True)
class HLGauss:
    """A normal distribution around s, cut into bins and renormalised over [1/2, B + 1/2].

    Imani and White 2018; Farebrother et al. 2024, arXiv:2403.03950. Near the ends of the scale the mean is pulled
    inwards, by 0.37 bins at s = 1.
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


AnyTarget: TypeAlias = OneHot | TwoHot | HLGauss
"""The targets by their names: one-hot, two-hot, hl-gauss."""


def to_score(ratings: Float[Tensor, "*n"], scale: tuple[float, float], bins: int) -> Float[Tensor, "*n"]:
    """Ratings as scores: s = 1 + (B - 1) (rating - low) / (high - low), in [1, B].

    Args:
        ratings: Numbers on the raters' scale.
        scale: The lowest and the highest possible rating.
        bins: B.

    Raises:
        UserError: A rating is outside the scale, or missing (NaN).
    """
    low, high = scale
    outside = ~((ratings >= low) & (ratings <= high))
    if bool(outside.any()):
        raise UserError(
            f"a rating is {ratings[outside][0].item():g}; the stated scale is [{low:g}, {high:g}]: set loss.scale, or "
            "correct the data"
        )
    return 1 + (bins - 1) * (ratings - low) / (high - low)


# --------------------------------------------------------------------------- scoring rules of distributions


def cross_entropy(log_probs: Float[Tensor, "*n B"], targets: Float[Tensor, "*n B"]) -> Float[Tensor, "*n"]:
    """-sum_k t(k) log p(k), in nats."""
    assert log_probs.shape == targets.shape, f"log-probabilities {log_probs.shape} but targets {targets.shape}"
    return -(targets * log_probs).sum(-1)


def crps(log_probs: Float[Tensor, "*n B"], s: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """Continuous ranked probability score of a distribution over 1..B for the outcome s, in bins.

        sum_{k<B} [h_k F(k)^2 + (1 - h_k)(1 - F(k))^2],   h_k = clip(s - k, 0, 1)

    This equals E|Y - s| - E|Y - Y'| / 2 (Gneiting and Raftery 2007). Lower is better.
    """
    cdf = log_probs.exp().cumsum(-1)[..., :-1]
    grid = torch.arange(1, log_probs.shape[-1], device=s.device, dtype=cdf.dtype)
    h = (s[..., None] - grid).clamp(0, 1)
    return (h * cdf.square() + (1 - h) * (1 - cdf).square()).sum(-1)


def pit(log_probs: Float[Tensor, "*n B"], s: Float[Tensor, "*n"], uniform: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """Randomised probability integral transform, F(k - 1) + v p(k). It is uniform if the model is calibrated.

    Smith 1985; Czado, Gneiting and Held 2009. The bin k is drawn from the score's two-hot target, as in training:
    floor(s) + 1 with probability phi, else floor(s). v is uniform in [0, 1).

    Args:
        log_probs: The model's log-probabilities of the scores 1..B.
        s: The outcomes.
        uniform: One random number in [0, 1) per outcome; k and v are both computed from it.
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
    """Entropy of the mean target, in nats: the lowest cross-entropy of a model that ignores its input."""
    mean = targets.mean(0)
    return -math.fsum(p * math.log(p) for p in mean.tolist() if p > 0)


# --------------------------------------------------------------------------- losses of scores


@runtime_checkable
class RewardLoss(Protocol):
    """What every reward loss offers."""

    def __call__(self, branches: Branches) -> Float[Tensor, "G"]:
        """One loss per tree."""
        ...

    def at_start(self, zeros: Branches) -> float:
        """The mean loss of these trees for outputs of zero, where training starts, in closed form."""
        ...


@dataclass(frozen=True)
class BradleyTerry:
    """Bradley and Terry 1952, with a margin (Llama 2, arXiv:2307.09288, equation 2) and centring (Eisenstein et al.
    2023, arXiv:2312.09244).

        -log sigma(r_c - r_r - xi) + c (r_c + r_r - 2m)^2

    xi is the pair's margin (`pair_margins`). m is the middle of the head's scale: 0 for a scalar head, (B + 1) / 2 for
    a distribution over 1..B.
    """

    margin: float = 0.0
    """Largest margin xi; 0 is no margin. Above 0.5 an untrained model cannot reach it and learns length instead."""
    centre: float = 0.0
    """c: pulls the mean of a pair's two scores towards the middle of the scale; their difference is left free. 0 or
    0.01."""

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
        chosen, rejected = branches.pair(branches.mean_ratings())
        return pair_margins(self.margin, (chosen - rejected).to(branches.outputs.dtype), branches.margins)


@dataclass(frozen=True)
class PlackettLuce:
    """The negative log-likelihood of a tree's ranking (Plackett 1975; ties by Breslow 1974).

        -sum_i [s_i - log sum_{j not above i} e^(s_j)]

    Of two branches it is Bradley-Terry.
    """

    def __call__(self, branches: Branches) -> Float[Tensor, "G"]:
        scores = branches.scores()
        normaliser = torch.where(_not_above(branches), scores[None, :], -torch.inf).logsumexp(1)
        return branches.tree_sum(normaliser - scores)

    def at_start(self, zeros: Branches) -> float:
        return _mean(zeros.tree_sum(_not_above(zeros).sum(1).to(zeros.outputs.dtype).log()))


@dataclass(frozen=True)
class AllPairs:
    """The mean of -log sigma(s_i - s_j) over all pairs of a tree's branches with i ranked above j.

    Ouyang et al. 2022, arXiv:2203.02155, equation 1. Pairs with equal ratings are left out.
    """

    def __call__(self, branches: Branches) -> Float[Tensor, "G"]:
        scores, above = branches.scores(), _above(branches)
        values = torch.where(above, softplus(scores[None, :] - scores[:, None]), 0.0)
        return branches.tree_sum(values.sum(1)) / branches.tree_sum(above.sum(1).to(values.dtype)).clamp(min=1)

    def at_start(self, zeros: Branches) -> float:
        """ln 2 times the share of trees whose branches are not all rated equal."""
        ranked = zeros.tree_sum(_above(zeros).any(1).to(zeros.outputs.dtype)) > 0
        return math.log(2) * _mean(ranked)


def check_margin(name: str, margin: float) -> None:
    """Check a largest margin; a raw rating gap is refused.

    Raises:
        UserError: The margin is outside [0, 1].
    """
    if not 0 <= margin <= 1:
        raise UserError(
            f"{name} is {margin}; it must be in [0, 1], and 0.5 is already large. It is not a rating gap: the gap is "
            "scaled, margin * min(gap, 1), so that the model does not learn its size"
        )


def pair_margins(
    margin: float, rating_gaps: Float[Tensor, "P"], given: Float[Tensor, "P"] | None = None
) -> Float[Tensor, "P"]:
    """The margin of each pair: the one given in the data, else margin * min(rating gap, 1), else `margin`.

    Args:
        margin: The largest margin of the configuration.
        rating_gaps: The chosen minus the rejected rating; NaN where a pair has no ratings. Where the ratings contradict
            the order (a gap below 0) the margin is 0.
        given: The margins of the data; NaN where a pair has none.
    """
    from_ratings = torch.where(rating_gaps.isnan(), margin, margin * rating_gaps.clamp(0, 1))
    return from_ratings if given is None else torch.where(given.isnan(), from_ratings, given)


def _same_tree(branches: Branches) -> Tensor:
    return branches.tree[:, None] == branches.tree[None, :]


def _above(branches: Branches) -> Tensor:
    """[i, j] is True if j is in i's tree and ranked below i."""
    order = branches.order()
    return _same_tree(branches) & (order[None, :] < order[:, None])


def _not_above(branches: Branches) -> Tensor:
    """[i, j] is True if j is in i's tree and ranked no higher than i."""
    order = branches.order()
    return _same_tree(branches) & (order[None, :] <= order[:, None])


# --------------------------------------------------------------------------- likelihoods of pairs


@dataclass(frozen=True)
class _PairLikelihood(ABC):
    """Base of -log P(chosen scores above rejected), for two scores drawn independently from their distributions."""

    entropy: float = 0.0
    """lambda_H: weight of the entropy bonus, loss - lambda_H [H(p_c) + H(p_r)]."""
    smoothness: float = 0.0
    """lambda_s: weight of the squared second differences of log p, which smooth the distribution."""

    def __post_init__(self) -> None:
        for name in ("entropy", "smoothness"):
            if not getattr(self, name) >= 0:
                raise UserError(f"loss.{name} is {getattr(self, name)}; it must not be negative")

    @abstractmethod
    def nll(self, win: Float[Tensor, "P"], tie: Float[Tensor, "P"], lose: Float[Tensor, "P"]) -> Float[Tensor, "P"]:
        """The loss from the log-probabilities that chosen is above, equal to, and below rejected."""

    def __call__(self, branches: Branches) -> Float[Tensor, "G"]:
        log_probs = branches.log_probs()
        assert log_probs.shape[1] == 1, "a pair likelihood compares one distribution a response"
        chosen, rejected = branches.pair(log_probs[:, 0])
        return self.nll(*outcomes(chosen, rejected)) + self._regulariser(chosen) + self._regulariser(rejected)

    def at_start(self, zeros: Branches) -> float:
        start = zeros.log_probs()[:1, 0]
        return self.nll_of_equal(start.exp().square().sum().item()) + 2 * _mean(self._regulariser(start))

    def nll_of_equal(self, tie: float) -> float:
        """The loss if both distributions are the same; `tie` is the probability that two draws are equal."""
        return math.log(2)

    def _regulariser(self, log_probs: Float[Tensor, "P B"]) -> Float[Tensor, "P"]:
        curvature = log_probs.diff(n=2, dim=1).square().sum(1)
        return self.smoothness * curvature - self.entropy * -(log_probs.exp() * log_probs).sum(1)


@dataclass(frozen=True)
class HalfTies(_PairLikelihood):
    """-log(win + tie / 2), the default. It is ln 2 for equal distributions of any shape."""

    def nll(self, win: Float[Tensor, "P"], tie: Float[Tensor, "P"], lose: Float[Tensor, "P"]) -> Float[Tensor, "P"]:
        return -torch.logaddexp(win, tie - math.log(2))


@dataclass(frozen=True)
class Strict(_PairLikelihood):
    """-log(win). It is -log((B - 1) / (2B)) for uniform distributions.

    This is not the likelihood of a forced choice: it pushes probability into the end bins.
    """

    def nll(self, win: Float[Tensor, "P"], tie: Float[Tensor, "P"], lose: Float[Tensor, "P"]) -> Float[Tensor, "P"]:
        return -win

    def nll_of_equal(self, tie: float) -> float:
        return -math.log((1 - tie) / 2)


@dataclass(frozen=True)
class Conditional(_PairLikelihood):
    """-log(win / (win + lose)), the likelihood given that the two scores differ."""

    def nll(self, win: Float[Tensor, "P"], tie: Float[Tensor, "P"], lose: Float[Tensor, "P"]) -> Float[Tensor, "P"]:
        return softplus(lose - win)


AnyPairLikelihood: TypeAlias = HalfTies | Strict | Conditional
"""The likelihoods of pairs by their names: half-ties, strict, conditional."""


def outcomes(
    chosen: Float[Tensor, "P B"], rejected: Float[Tensor, "P B"]
) -> tuple[Float[Tensor, "P"], Float[Tensor, "P"], Float[Tensor, "P"]]:
    """log P(chosen above rejected), log P(equal), log P(chosen below rejected) for two independent scores.

    Computed in log space, in time linear in B. Values and gradients are finite for logits of +-1000.

    Args:
        chosen: The log-probabilities of the chosen response's scores 1..B.
        rejected: The same of the rejected response.
    """
    rejected_log_cdf, chosen_log_cdf = rejected.logcumsumexp(1), chosen.logcumsumexp(1)
    win = (chosen[:, 1:] + rejected_log_cdf[:, :-1]).logsumexp(1)
    lose = (rejected[:, 1:] + chosen_log_cdf[:, :-1]).logsumexp(1)
    return win, (chosen + rejected).logsumexp(1), lose


# --------------------------------------------------------------------------- losses of ratings


@dataclass(frozen=True)
class Graded:
    """Cross-entropy with the ratings' target distributions, the mean over a tree's branches and attributes."""

    target: AnyTarget = field(default_factory=TwoHot)
    """How a rating becomes a distribution over the bins."""
    scale: tuple[float, float] = (0.0, 4.0)
    """Lowest and highest rating that raters could give; they become the scores 1 and B."""

    def __post_init__(self) -> None:
        if not self.scale[0] < self.scale[1]:
            raise UserError(f"loss.scale is {list(self.scale)}; it must be [lowest, highest]")

    def cross_entropies(self, branches: Branches) -> Float[Tensor, "N"]:
        """One cross-entropy per branch, the mean over its attributes, in nats."""
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
        """The target distribution of each attribute; with a single distribution, that of the mean rating."""
        attributes, bins = log_probs.shape[1:]
        if attributes == 1:
            ratings = ratings.mean(1, keepdim=True)
        return self.target(to_score(ratings, self.scale, bins), bins).to(log_probs.dtype)


@dataclass(frozen=True)
class Joint:
    """pair + weight * [CE(chosen) + CE(rejected)]: learns from the order and from the ratings together."""

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


# --------------------------------------------------------------------------- registry

AnyRewardLoss: TypeAlias = BradleyTerry | PlackettLuce | AllPairs | HalfTies | Strict | Conditional | Graded | Joint
"""The losses by their names: bradley-terry, plackett-luce, all-pairs, half-ties, strict, conditional, graded, joint."""


def log_preference(branches: Branches) -> Float[Tensor, "P"]:
    """log P(chosen preferred to rejected), as the model states it, without margins and regularisers.

    A distribution: P(above) + P(equal) / 2. A scalar head: Bradley-Terry's sigma(r_c - r_r). Several attributes have no
    joint distribution, so theirs is Bradley-Terry's of the scores too.
    """
    if isinstance(branches.head, Scalar | Attributes):
        return logsigmoid(torch.sub(*branches.pair(branches.scores())))
    return -HalfTies()(branches)


def _mean(values: Tensor) -> float:
    return values.double().mean().item()
