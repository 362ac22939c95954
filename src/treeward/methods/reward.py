"""Reward-model training on judged responses: pairs, rankings, ratings.

The losses are in `losses.reward`. Beside the loss stands `nll`, the likelihood of the pairs without margin, centring or
regulariser: only that one compares models.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

from treeward.errors import UserError
from treeward.losses.heads import AnyHead, Attributes, Scalar
from treeward.losses.reward import (
    AllPairs,
    AnyRewardLoss,
    BradleyTerry,
    Branches,
    Graded,
    HalfTies,
    Joint,
    PlackettLuce,
    RewardLoss,
    preferred,
)
from treeward.models.policy import tokenised
from treeward.models.reward_model import RewardModel
from treeward.training.loop import LoopConfig, Step, Terms, fit, settings
from treeward.training.outputs import branches, refuse_margins, weights
from treeward.trees.forest import Forest
from treeward.trees.forward import TreeScorer
from treeward.trees.text import Tree
from treeward.trees.tokens import TokenTree

Judged = Literal["pairs", "ranked", "graded"]


@dataclass(frozen=True, kw_only=True)
class RewardConfig(LoopConfig):
    """Reward-model training."""

    lr: float = 5e-5
    """Peak learning rate: 1e-5 from 1B parameters, 5e-5 at 100M, up to 3e-3 under 20M or from random weights."""
    loss: AnyRewardLoss | None = None
    """The loss; by default bradley-terry for a scalar head, half-ties for one distribution, graded for attributes."""


def suited(loss: AnyRewardLoss | None, head: AnyHead) -> AnyRewardLoss:
    """The loss for this head, the head's own default where none is named.

    Raises:
        UserError: the loss cannot teach this head.
    """
    if loss is None:
        return BradleyTerry() if isinstance(head, Scalar) else Graded() if isinstance(head, Attributes) else HalfTies()
    by_score = isinstance(loss, BradleyTerry | PlackettLuce | AllPairs)
    if isinstance(head, Scalar) and not by_score:
        raise UserError(
            f"loss.kind {type(loss).__name__} needs a distribution, but head.kind is scalar; use categorical"
        )
    if isinstance(head, Attributes) and not (by_score or isinstance(loss, Graded)):
        raise UserError(
            f"loss.kind {type(loss).__name__} compares one distribution a response, but head.kind is attributes; use "
            "graded or bradley-terry"
        )
    return loss


def needs(loss: AnyRewardLoss) -> Judged:
    """What the loss is taught by: pairs, rankings or ratings."""
    if isinstance(loss, PlackettLuce | AllPairs):
        return "ranked"
    return "graded" if isinstance(loss, Graded) else "pairs"


@dataclass(frozen=True)
class Judgement:
    """A reward loss over forests; a unit is a tree."""

    model: TreeScorer
    loss: RewardLoss

    def count(self, tree: TokenTree) -> int:
        return 1

    def __call__(self, forest: Forest) -> Terms:
        found = branches(forest, self.model(forest), self.model.head)
        values = self.loss(found)
        pairs = found.only_pairs()
        metrics = self._pair_metrics(pairs) if pairs.trees else {}
        if isinstance(self.loss, Graded | Joint):
            graded = self.loss if isinstance(self.loss, Graded) else self.loss.graded
            metrics["cross_entropy"] = found.tree_mean(graded.cross_entropies(found))
        return Terms(values, metrics, weights(forest.sources, self.count, values.device))

    def _pair_metrics(self, found: Branches) -> dict[str, Tensor]:
        """Of pairs alone, chosen first; rankings of more branches have none of them."""
        chosen, rejected = found.pair(found.scores())
        right = (chosen > rejected).float() + 0.5 * (chosen == rejected).float()
        return {
            "nll": -preferred(found), "rewards/accuracies": right, "rewards/margins": chosen - rejected,
            "rewards/chosen": chosen, "rewards/rejected": rejected,
        }  # fmt: skip


def reward(
    model: RewardModel,
    trees: Sequence[Tree | TokenTree],
    config: RewardConfig | None = None,
    resume: Path | None = None,
) -> Iterator[Step]:
    """Train `model` in place; yields a `Step` after each optimiser step.

    In a pair the chosen response stands first; ranked branches stand best first or carry ratings. Ratings with names
    are put into the order of the head's names.

    Raises:
        NonFinite: a loss or gradient is not finite.
        UserError: there are no trees, a path is too long, ratings that the loss needs are missing, the loss does not
            suit the head, the ratings have other names than the head, or `resume` belongs to another run.
    """
    config = config or RewardConfig()
    token_trees = tokenised(trees, model.tokenizer)
    loss = suited(config.loss, model.head)
    if isinstance(model.head, Attributes):
        token_trees = [tree.with_attributes(model.head.names) for tree in token_trees]
    check_judged(loss, model.head, token_trees)
    decided = settings(config, RewardConfig) | {"loss": repr(loss)}
    judgement = Judgement(model.packed, loss)
    yield from fit(model.packed, token_trees, judgement, config, model.token_budget, resume, decided=decided)


def check_judged(loss: AnyRewardLoss, head: AnyHead, trees: Sequence[TokenTree]) -> None:
    """Refuse trees that this loss cannot learn from.

    Raises:
        UserError: a tree of the wrong shape, or without the ratings needed; the first is named.
    """
    if not isinstance(loss, BradleyTerry):
        refuse_margins(trees, type(loss).__name__, "bradley-terry")
    for tree in trees:
        if needs(loss) == "pairs" and len(tree.branches) != 2:
            raise UserError(f"{tree.group[:60]!r} has {len(tree.branches)} responses; a pair has two")
        if isinstance(loss, Graded | Joint):
            if not tree.ratings:
                raise UserError(
                    f"{tree.group[:60]!r} has no ratings; a graded loss needs them: set loss.kind to half-ties"
                )
            attributes = len(head.names) if isinstance(head, Attributes) else 1
            if attributes > 1 and len(tree.ratings[0]) != attributes:
                raise UserError(
                    f"{tree.group[:60]!r} has {len(tree.ratings[0])} ratings a response; head.names has {attributes}"
                )
