"""F25: every loss that takes a divergence under every divergence, value and slopes, from the configuration on."""

import math
import typing
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from fixed_reference import FixedReference

from fixtures import BuildPolicy, Grow
from treeward.losses import preference as p
from treeward.losses.divergences import Alpha, AnyDivergence, ChiSquaredMixed, ForwardKL, JensenShannon, ReverseKL
from treeward.losses.preference import divergence_refusal
from treeward.methods.dpo import DPOConfig, preference_objective
from treeward.models.policy import summed_logps
from treeward.training.objectives import prepare
from treeward.trees.forest import pack
from treeward.trees.verify import verify

Formula = Callable[[Any], tuple[Any, Any]]
RATIOS = np.array([[1.0, -0.5], [-0.7, 0.9], [1.6, 1.5], [0.2, -2.0]])
"""x_w and x_l of four pairs, in nats."""

SCORES: dict[Any, Formula] = {
    ReverseKL(): lambda x: (x, np.ones_like(x)),
    ForwardKL(): lambda x: (1 - np.exp(-x), np.exp(-x)),
    JensenShannon(): lambda x: (math.log(2) - np.log1p(np.exp(-x)), 1 / (1 + np.exp(x))),
    Alpha(0.3): lambda x: ((1 - np.exp(-0.3 * x)) / 0.3, np.exp(-0.3 * x)),
    ChiSquaredMixed(): lambda x: (x + np.exp(x) - 1, 1 + np.exp(x)),
}
"""s(x) and s'(x)."""


def sigmoid(z: Any) -> Any:
    return 1 / (1 + np.exp(-z))


def plain(d: Any) -> tuple[Any, Any]:
    return np.log1p(np.exp(-d)), -sigmoid(-d)


def conservative(d: Any) -> tuple[Any, Any]:
    return 0.8 * np.log1p(np.exp(-d)) + 0.2 * np.log1p(np.exp(d)), 0.2 - sigmoid(-d)


def robust(d: Any) -> tuple[Any, Any]:
    value = (0.8 * np.log1p(np.exp(-d)) - 0.2 * np.log1p(np.exp(d))) / 0.6
    return value, (-0.8 * sigmoid(-d) - 0.2 * sigmoid(d)) / 0.6


def clipped(d: Any) -> tuple[Any, Any]:
    value, slope = plain(np.clip(d, -0.5, 0.5))
    return value, slope * (abs(d) <= 0.5)


def exo(d: Any) -> tuple[Any, Any]:
    q = sigmoid(d)
    return q * np.log(q / 0.9) + (1 - q) * np.log((1 - q) / 0.1), q * (1 - q) * (d - math.log(9))


LOSSES: dict[Any, Formula] = {
    p.Sigmoid(beta=0.3): plain,
    p.Sigmoid(beta=0.3, flip=0.2): conservative,
    p.Sigmoid(beta=0.3, clip=0.5): clipped,
    p.Robust(beta=0.3, flip=0.2): robust,
    p.Hinge(beta=0.3): lambda d: (np.maximum(0, 1 - d), np.where(d < 1, -1.0, 0.0)),
    p.EXO(beta=0.3, smoothing=0.1): exo,
    p.PlackettLuce(beta=0.3): plain,
    p.Sum((p.Term(0.5, p.ChosenNLL()), p.Term(1.0, p.Sigmoid(beta=0.3)))): plain,
}
"""The loss of a pair and its slope, as functions of d = beta [s(x_w) - s(x_l)]."""


def test_the_table_holds_every_loss_that_takes_a_divergence_and_every_divergence() -> None:
    kinds = set(typing.get_args(p.AnyPreferenceLoss)) - {p.FromFile}
    takes = {kind for kind in kinds if not divergence_refusal(kind())}
    assert {type(loss) for loss in LOSSES} == takes
    assert {type(divergence) for divergence in SCORES} == set(typing.get_args(AnyDivergence))


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
@pytest.mark.parametrize("divergence", SCORES, ids=repr)
def test_f25_value_and_slopes(divergence: Any, loss: Any, policy: BuildPolicy, grow: Grow) -> None:
    """The reference's log-probabilities are leaves here: the slope in them is minus that in x."""
    trees, ours = grow(len(RATIOS)), policy()
    verify(ours.packed, trees)
    policy_logps = [summed_logps(ours.packed, [tree], 1000) for tree in trees]
    reference_logps = {
        t: (a - torch.tensor(x).float()).requires_grad_() for t, a, x in zip(trees, policy_logps, RATIOS, strict=True)
    }
    config = DPOConfig(loss=loss, divergence=divergence)
    objective = preference_objective(config, FixedReference(ours, reference_logps))
    prepare(objective, ours.packed, trees, 1000)
    values = objective(ours.packed, pack(trees)).values
    values.sum().backward()
    s, slope_of_s = SCORES[divergence](RATIOS)
    value, slope = LOSSES[loss](0.3 * (s[:, 0] - s[:, 1]))
    if isinstance(loss, p.Sum):
        value = value - 0.5 * np.array(
            [a[0].item() / len(t.branches[0]) for t, a in zip(trees, policy_logps, strict=True)]
        )
    np.testing.assert_allclose(values.detach().numpy(), value, rtol=1e-4, atol=1e-5)
    slopes = torch.stack([-reference_logps[tree].grad for tree in trees]).numpy()
    np.testing.assert_allclose(slopes, (0.3 * slope)[:, None] * slope_of_s * [1, -1], rtol=1e-4, atol=1e-5)
