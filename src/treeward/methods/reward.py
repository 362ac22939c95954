"""Reward models: trained on pairs, rankings or ratings of responses.

The losses are in `losses.reward`. Beside the loss the metrics have `nll`, the likelihood of the pairs without margin,
centring or regulariser: only that one can be compared between models.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from treeward.checks import identities
from treeward.checks.check import Check
from treeward.data.formats import Purpose
from treeward.errors import UserError
from treeward.evaluation import rewards
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
    log_preference,
)
from treeward.methods.method import Method, RunConfig
from treeward.models.policy import tokenized
from treeward.models.reward_model import RewardModel
from treeward.stats.tables import Comparison, Measurement, Table
from treeward.training.loop import Result, Step, TrainingConfig, result_of, training_steps
from treeward.training.objectives import Terms, forest_branches, refuse_margins, unit_weights
from treeward.trees.forest import Forest, pack
from treeward.trees.forward import TreeModule, TreeScorer
from treeward.trees.text import Tree
from treeward.trees.tokens import TokenTree
from treeward.trees.verify import perturb_zero_parameters


@dataclass(frozen=True, kw_only=True)
class RewardConfig(TrainingConfig):
    """Reward-model training."""

    lr: float = 5e-5
    """Peak learning rate: 1e-5 from 1B parameters, 5e-5 at 100M, up to 3e-3 under 20M or from random weights."""
    loss: AnyRewardLoss | None = None
    """The loss; by default bradley-terry for a scalar head, half-ties for one distribution, graded for attributes."""


def loss_for(head: AnyHead, loss: AnyRewardLoss | None = None) -> AnyRewardLoss:
    """The loss for this head: the one given, or the head's default.

    Raises:
        UserError: the loss cannot train this head.
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


def required_data(loss: AnyRewardLoss) -> Literal["pairs", "ranked", "graded"]:
    """What the loss learns from: pairs, rankings or ratings."""
    if isinstance(loss, PlackettLuce | AllPairs):
        return "ranked"
    return "graded" if isinstance(loss, Graded) else "pairs"


@dataclass(frozen=True)
class RewardObjective:
    """A reward loss over forests; a unit is a tree.

    In a pair the chosen response is first; ranked responses are in order or have ratings.
    """

    loss: RewardLoss

    def count(self, tree: TokenTree) -> int:
        return 1

    def __call__(self, model: TreeModule, forest: Forest) -> Terms:
        assert isinstance(model, TreeScorer), "a reward objective trains a reward model"
        branches = forest_branches(forest, model(forest), model.head)
        values = self.loss(branches)
        pairs = branches.only_pairs()
        metrics = self._pair_metrics(pairs) if pairs.trees else {}
        if isinstance(self.loss, Graded | Joint):
            graded = self.loss if isinstance(self.loss, Graded) else self.loss.graded
            metrics["cross_entropy"] = branches.tree_mean(graded.cross_entropies(branches))
        return Terms(values, metrics, unit_weights(forest.sources, self.count, values.device))

    def _pair_metrics(self, pairs: Branches) -> dict[str, Tensor]:
        chosen, rejected = pairs.pair(pairs.scores())
        accuracies = (chosen > rejected).float() + 0.5 * (chosen == rejected).float()
        return {
            "nll": -log_preference(pairs),
            "rewards/accuracies": accuracies,
            "rewards/margins": chosen - rejected,
            "rewards/chosen": chosen,
            "rewards/rejected": rejected,
        }


def check_trees(loss: AnyRewardLoss, head: AnyHead, trees: Sequence[TokenTree]) -> None:
    """Refuse trees that this loss cannot learn from.

    Raises:
        UserError: a tree has the wrong number of responses, or lacks ratings; the first is named.
    """
    if not isinstance(loss, BradleyTerry):
        refuse_margins(trees, type(loss).__name__, "bradley-terry")
    for tree in trees:
        if required_data(loss) == "pairs" and len(tree.branches) != 2:
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


def reward_steps(
    model: RewardModel, trees: Sequence[Tree | TokenTree], config: RewardConfig | None = None
) -> Iterator[Step]:
    """Train `model` in place; yields each step after it was taken.

    In a pair the chosen response is first; ranked responses are best first or have ratings. Ratings with names are put
    into the order of the head's names.

    Raises:
        NonFinite: a loss or gradient is not finite.
        UserError: there are no trees, a path is too long, ratings that the loss needs are missing, or the loss or the
            names of the ratings do not go with the head.
    """
    config = config or RewardConfig()
    loss = loss_for(model.head, config.loss)
    token_trees = tokenized(trees, model.tokenizer)
    if isinstance(model.head, Attributes):
        token_trees = [tree.with_attributes(model.head.names) for tree in token_trees]
    check_trees(loss, model.head, token_trees)
    yield from training_steps(model, token_trees, RewardObjective(loss), config)


def reward(model: RewardModel, trees: Sequence[Tree | TokenTree], config: RewardConfig | None = None) -> Result:
    """Train `model` in place: all steps of `reward_steps`."""
    return result_of(reward_steps(model, trees, config))


@dataclass(frozen=True, kw_only=True)
class RewardRun(RewardConfig, RunConfig):
    """treeward reward: a reward model from pairs, rankings or ratings."""

    head: AnyHead = field(default_factory=Scalar)
    """What the model outputs for a response: one number, or a distribution over scores."""
    members: int = 1
    """Train an ensemble of this many models from one start, with different data orders, and combine them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.evaluation.refuse_sampling()
        loss_for(self.head, self.loss)
        if self.members < 1:
            raise UserError(f"members is {self.members}; it must be at least 1")

    @property
    def longest_sample(self) -> int | None:
        return None


class Reward(Method):
    """Measured by held-out pair accuracy, against the rule that the longer response wins; on ratings alone by CRPS."""

    name = "reward"
    Config = RewardRun
    usual_lr = (1e-5, 5e-5, 3e-3)

    def __init__(self, config: RewardRun) -> None:
        self.config = config
        self.model: RewardModel = RewardModel.from_config(config.model, config.seed, config.head)
        self.loss = loss_for(self.model.head, config.loss)
        self.objective = RewardObjective(self.loss)
        self.purpose: Purpose = required_data(self.loss)
        head = self.model.head
        self.attributes = head.names if isinstance(head, Attributes) else ()
        self.metric = config.evaluation.metric or ("crps" if self.purpose == "graded" else "accuracy")

    def check_data(self, trees: Sequence[TokenTree]) -> list[Check]:
        check_trees(self.loss, self.model.head, trees)
        return []

    def identities(self, trees: Sequence[TokenTree]) -> list[Check]:
        checks = []
        packed = self.model.packed
        if all(len(tree.branches) == 2 for tree in trees):
            checks.append(identities.swapped(self._margins, trees))
        if not self.model.has_trained_head:
            with identities.exact(packed):
                zeros = self.model.outputs(trees)
            expected = self.loss.at_start(forest_branches(pack(trees), zeros, self.model.head))
            checks.append(identities.start_value(packed, self.objective, trees, expected))
        return checks

    def measure(self, trees: Sequence[TokenTree]) -> Measurement:
        scored = rewards.ScoredTrees.of(self.model, trees)
        graded = self.loss if isinstance(self.loss, Graded) else getattr(self.loss, "graded", None)
        tables = {"pairs": scored.pairs(), "graded": scored.graded(graded.scale) if graded else None}
        return Measurement({name: table for name, table in tables.items() if table is not None})

    def pair_accuracy(self, trees: Sequence[TokenTree]) -> Table | None:
        return rewards.ScoredTrees.of(self.model, trees).pairs()

    def verdict_groups(self, trees: Sequence[TokenTree]) -> int:
        if self.metric in rewards.OF_PAIRS:
            return len(set(rewards.ordered(trees)[2]))
        return super().verdict_groups(trees)

    def trivial_rule(self, measured: Measurement) -> Comparison | None:
        return rewards.against_longer_wins(measured.tables["pairs"]) if "pairs" in measured.tables else None

    def facts(self, measured: Measurement, trees: Sequence[TokenTree]) -> dict[str, Any]:
        tables = measured.tables
        facts: dict[str, Any] = {}
        if "pairs" in tables:
            facts["calibration"] = rewards.calibration_facts(tables["pairs"])
            facts["length"] = rewards.length_facts(tables["pairs"])
            facts["subsets"] = rewards.subset_facts(tables["pairs"], trees)
        if "graded" in tables and not isinstance(self.model.head, Scalar):
            facts["graded"] = rewards.graded_facts(tables["graded"], self.model.head.bins)
        return facts

    def _margins(self, trees: Sequence[TokenTree]) -> Tensor:
        with identities.exact(self.model.packed), perturb_zero_parameters(self.model.packed):
            scores = self.model.score(trees).view(-1, 2)
        return scores[:, 0] - scores[:, 1]
