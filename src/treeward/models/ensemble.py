"""Several reward models as one, by their scores or by their weights.

Scores: mean, worst case, or mean minus a multiple of the variance (Coste et al. 2024, arXiv:2310.02743). Weights: WARM
(Rame et al. 2024, arXiv:2401.12187), one model at inference. Members share tokenizer, template and head.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from treeward.errors import UserError
from treeward.merging.arithmetic import average
from treeward.models.reward_model import RewardModel
from treeward.trees.text import Tree
from treeward.trees.tokens import TokenTree


@dataclass(frozen=True)
class Ensemble:
    """M reward models. `centres` and `scales` are each member's mean and standard deviation on the same held-out set.

    Raises:
        UserError: the members differ in head, tokenizer or template.
    """

    members: Sequence[RewardModel]
    centres: Sequence[float] = ()
    scales: Sequence[float] = ()

    def __post_init__(self) -> None:
        _check_alike(self.members)

    @classmethod
    def standardised(cls, members: Sequence[RewardModel], trees: Sequence[Tree | TokenTree]) -> "Ensemble":
        """Members scaled to mean 0 and standard deviation 1 on these held-out trees, so that none outweighs another.

        Raises:
            UserError: a member gives all of them the same score.
        """
        scores = cls(members).scores(trees)
        centres, scales = scores.mean(1).tolist(), scores.std(1).tolist()
        if min(scales) == 0:
            raise UserError(
                f"member {scales.index(0.0)} gives every text the same score, so it has no scale; leave it out"
            )
        return cls(members, centres, scales)

    def scores(self, trees: Sequence[Tree | TokenTree]) -> Float[Tensor, "M N"]:
        """Every member's score of every branch: raw, or standardised where the ensemble has centres and scales."""
        scores = torch.stack([member.score(trees) for member in self.members])
        if not self.centres:
            return scores
        return (scores - torch.tensor(self.centres)[:, None]) / torch.tensor(self.scales)[:, None]


def mean(scores: Float[Tensor, "M N"]) -> Float[Tensor, "N"]:
    """The members' mean."""
    return scores.mean(0)


def worst(scores: Float[Tensor, "M N"]) -> Float[Tensor, "N"]:
    """min_i r_i, the lowest score of a member."""
    return scores.amin(0)


def uncertainty_weighted(scores: Float[Tensor, "M N"], weight: float) -> Float[Tensor, "N"]:
    """mean - weight * Var_i, the population variance over members."""
    return scores.mean(0) - weight * spread(scores).square()


def spread(scores: Float[Tensor, "M N"]) -> Float[Tensor, "N"]:
    """Population standard deviation over members: uncertainty of the model, not of the labels."""
    return scores.std(0, correction=0)


def warm(members: Sequence[RewardModel]) -> RewardModel:
    """A copy of the first member with the average of all members' weights.

    Raises:
        UserError: the members are not alike, or have adapters (merge them first: load their `model/`).
    """
    _check_alike(members)
    if any(member.adapter is not None for member in members):
        raise UserError("a member has an adapter; load its merged `model/` directory instead")
    averaged = average([member.packed.state_dict() for member in members])
    merged = members[0].copy()
    merged.packed.load_state_dict(averaged)
    return merged


def _check_alike(members: Sequence[RewardModel]) -> None:
    if not members:
        raise UserError("an ensemble needs at least one reward model")
    first = members[0]
    for number, other in enumerate(members[1:], 1):
        if other.head != first.head:
            raise UserError(
                f"member {number} has the head {other.head}, member 0 {first.head}; members must have the same head"
            )
        same = other.tokenizer.get_vocab() == first.tokenizer.get_vocab()
        if not same or other.tokenizer.chat_template != first.tokenizer.chat_template:
            raise UserError(
                f"member {number} has another tokenizer or chat template than member 0; members must have the same"
            )
