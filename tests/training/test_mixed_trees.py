"""Trees with and without ratings, pairs beside rankings: which stand in one forest changes nothing."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn.functional import softplus

from fixtures import BuildPolicy, Grow
from treeward.losses.preference import PlackettLuce
from treeward.losses.reward import AllPairs, BradleyTerry, RewardLoss
from treeward.losses.reward import PlackettLuce as RewardPlackettLuce
from treeward.methods.dpo import DPOConfig, dpo_steps
from treeward.methods.reward import RewardConfig, RewardObjective, reward_steps
from treeward.models.loading import ModelConfig
from treeward.models.reference import ReferenceModel
from treeward.models.reward_model import RewardModel
from treeward.models.weights import output_layer
from treeward.training.loop import Loop
from treeward.trees.tokens import TokenTree

BUDGETS = [4096, 16]
"""All trees in one forest, and every tree in its own."""


def scorer() -> RewardModel:
    """A small reward model with a random head."""
    model = RewardModel.from_config(ModelConfig(device="cpu"))
    with torch.no_grad():
        output_layer(model.packed.model).weight.normal_(generator=torch.Generator().manual_seed(0))
    return model


def measured(loss: RewardLoss, trees: list[TokenTree], budget: int) -> dict[str, float]:
    """The metrics of one batch under a reward loss."""
    loop = Loop(scorer(), RewardObjective(loss), lr=0.0, token_budget=budget)
    return {name: float(value) for name, value in loop.backward(trees).items()}


def half_rated(trees: list[TokenTree], *ratings: float) -> list[TokenTree]:
    """Every second tree has these ratings, the others none."""
    rated = tuple((rating,) for rating in ratings)
    return [replace(tree, ratings=rated) if n % 2 else tree for n, tree in enumerate(trees)]


@pytest.mark.parametrize("budget", BUDGETS)
def test_the_margin_of_a_pair_is_its_own_matter(budget: int, policy: BuildPolicy, grow: Grow) -> None:
    """A gap of 0.5 under a margin of 0.4 asks for 0.2, no ratings for 0.4, and a gap of -2 for nothing."""
    trees = [*half_rated(grow(4), 1.5, 1.0), replace(grow(1, seed=1)[0], ratings=((1.0,), (3.0,)))]
    expected = sum(2 * math.log1p(math.exp(margin)) for margin in (0.2, 0.4)) / 5 + math.log(2) / 5
    config: dict[str, Any] = {"steps": 1, "batch_size": 5, "token_budget": budget}
    (step,) = dpo_steps(policy(), trees, DPOConfig(margin=0.4, **config))
    assert step.numbers()["loss"] == pytest.approx(expected, abs=1e-6)
    fresh = RewardModel.from_config(ModelConfig(device="cpu"))
    (step,) = reward_steps(fresh, trees, RewardConfig(loss=BradleyTerry(margin=0.4), **config))
    assert step.numbers()["loss"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("budget", BUDGETS)
def test_a_rated_tree_is_ranked_by_its_ratings_beside_an_unrated_one(
    budget: int, policy: BuildPolicy, grow: Grow
) -> None:
    """The same as with the branches put in the order of the ratings, and no ratings at all."""
    trees = half_rated(grow(4, branches=3), 1.0, 3.0, 2.0)
    plain = [
        replace(t, branches=(t.branches[1], t.branches[2], t.branches[0]), ratings=()) if t.ratings else t
        for t in trees
    ]
    config = DPOConfig(steps=1, batch_size=4, loss=PlackettLuce(beta=0.05), token_budget=budget)
    result, expected = (
        next(dpo_steps(policy(), t, config, ReferenceModel.of(policy(seed=1)))).numbers() for t in (trees, plain)
    )
    for name in ("loss", "rewards/margins", "rewards/chosen", "rewards/rejected", "rewards/accuracies"):
        assert result[name] == pytest.approx(expected[name], abs=1e-5)
    for loss in (RewardPlackettLuce(), AllPairs()):
        by_rating, by_order = (measured(loss, t, budget)["loss"] for t in (trees, plain))
        assert by_rating == pytest.approx(by_order, abs=1e-5)


@pytest.mark.parametrize("budget", BUDGETS)
def test_metrics_of_pairs_are_means_over_the_pairs_beside_rankings(budget: int, grow: Grow) -> None:
    trees = [*grow(3), *grow(2, branches=3, seed=1), *grow(1, seed=2)]
    scores = scorer().score([tree for tree in trees if len(tree.branches) == 2]).view(-1, 2)
    result = measured(RewardPlackettLuce(), trees, budget)
    difference = scores[:, 0] - scores[:, 1]
    assert result["nll"] == pytest.approx(softplus(-difference).mean().item(), abs=1e-5)
    assert result["rewards/chosen"] == pytest.approx(scores[:, 0].mean().item(), abs=1e-5)
    assert result["rewards/rejected"] == pytest.approx(scores[:, 1].mean().item(), abs=1e-5)
    assert result["rewards/margins"] == pytest.approx(difference.mean().item(), abs=1e-5)
    assert result["rewards/accuracies"] == pytest.approx((difference > 0).float().mean().item())


def test_rankings_alone_have_no_metrics_of_pairs(grow: Grow) -> None:
    assert measured(RewardPlackettLuce(), grow(2, branches=3), 64).keys() == {"loss"}
