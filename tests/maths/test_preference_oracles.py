"""Numbers of ALGORITHMS.md, section 6, that were computed independently: L1, L4, D1, D3, D5."""

import math
import typing
from typing import Any

import pytest
import torch
from torch import Tensor

from treeward.maths.preference import IPO, AnyPreferenceLoss, Hinge, PairScores, Sigmoid

LOSSES = typing.get_args(AnyPreferenceLoss)
LN2 = 0.6931471805599453


def scores(chosen: Any, rejected: Any, lengths: tuple[Any, Any] = ([1], [1])) -> PairScores:
    """Pairs with these log-ratios; the policy's own sums are left out."""
    x, y = torch.tensor(chosen, dtype=torch.float32), torch.tensor(rejected, dtype=torch.float32)
    return PairScores(x, y, torch.tensor(lengths[0]).expand(len(x)), torch.tensor(lengths[1]).expand(len(y)))


def one(loss: Any, difference: float) -> float:
    """The loss of one pair with this difference of log-ratios, split unevenly over the two sides."""
    value: Tensor = loss(scores([0.3 * difference], [-0.7 * difference]))
    return value.item()


@pytest.mark.parametrize(
    ("loss", "value"),
    [
        (Sigmoid(), LN2),
        (Sigmoid(flip=0.1), LN2),
        (Sigmoid(beta=3.0, flip=0.49), LN2),
        (Hinge(), 1.0),
        (Hinge(beta=5.0), 1.0),
        (IPO(), 25.0),
        (IPO(beta=0.5), 1.0),
    ],
)
def test_first_value_at_policy_equal_to_anchor(loss: Any, value: float) -> None:
    assert loss(PairScores.zeros(3)).tolist() == pytest.approx([value] * 3, abs=1e-6)


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("beta", [0.01, 0.1, 2.0])
def test_at_start_is_the_value_on_zero_scores(kind: Any, beta: float) -> None:
    loss = kind(beta=beta)
    assert loss(PairScores.zeros(2)).tolist() == pytest.approx([loss.at_start()] * 2, rel=1e-6)


@pytest.mark.parametrize(
    ("loss", "at_ten", "at_minus_ten"),
    [
        (Sigmoid(beta=0.1), 0.313262, 1.313262),
        (Sigmoid(beta=0.1, flip=0.1), 0.413262, 1.213262),
        (Hinge(beta=0.1), 0.0, 2.0),
    ],
)
def test_d1_values_at_a_difference_of_ten(loss: Any, at_ten: float, at_minus_ten: float) -> None:
    assert one(loss, 10.0) == pytest.approx(at_ten, abs=1e-6)
    assert one(loss, -10.0) == pytest.approx(at_minus_ten, abs=1e-6)


def test_d3_conservative_dpo_has_its_minimum_at_the_log_odds_of_the_flip() -> None:
    beta = 0.1
    loss = Sigmoid(beta=beta, flip=0.1)
    best = math.log(9) / beta
    assert beta * best == pytest.approx(2.197225, abs=1e-6)
    assert one(loss, best) == pytest.approx(0.325083, abs=1e-6)
    grid = torch.linspace(best - 20, best + 20, 4001)
    values = loss(scores(grid.tolist(), [0.0] * len(grid)))
    assert grid[values.argmin()].item() == pytest.approx(best, abs=0.06)
    assert values.min().item() >= 0.325083 - 1e-6


def test_plain_sigmoid_has_no_finite_minimum() -> None:
    values = Sigmoid(beta=0.1)(scores([0.0, 20.0, 40.0, 80.0], [0.0] * 4))
    assert (values.diff() < 0).all()


def test_d5_ipo_is_zero_where_the_per_token_means_differ_by_its_target() -> None:
    assert IPO(beta=0.1)(scores([12.0], [-6.0], ([4], [3]))).item() == pytest.approx(0.0, abs=1e-6)


def test_ipo_divides_each_side_by_its_own_length() -> None:
    value = IPO(beta=0.25)(scores([6.0], [4.0], ([2], [8]))).item()
    assert value == pytest.approx((3.0 - 0.5 - 2.0) ** 2, abs=1e-6)


def test_hinge_asks_for_a_margin_of_one_over_beta() -> None:
    loss = Hinge(beta=0.05)
    assert one(loss, 19.0) == pytest.approx(0.05, abs=1e-6)
    assert one(loss, 20.0) == pytest.approx(0.0, abs=1e-6)
    assert one(loss, 25.0) == 0.0


@pytest.mark.parametrize(
    ("kind", "fields", "named"),
    [
        *[(kind, {"beta": beta}, "loss.beta") for kind in LOSSES for beta in (0.0, -0.1, math.nan)],
        (Sigmoid, {"flip": 0.5}, "loss.flip"),
        (Sigmoid, {"flip": -0.01}, "loss.flip"),
        (Sigmoid, {"flip": math.nan}, "loss.flip"),
    ],
)
def test_bad_hyper_parameters_are_refused_by_name(kind: Any, fields: dict[str, float], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        kind(**fields)


def test_the_registry_holds_every_loss_of_the_module() -> None:
    from treeward.maths import preference

    written = {v for v in vars(preference).values() if isinstance(v, type) and hasattr(v, "at_start")}
    assert written - {preference.PreferenceLoss} == set(LOSSES)


def test_shapes_are_checked_while_tests_run() -> None:
    with pytest.raises(Exception, match="rejected"):
        PairScores(torch.zeros(2), torch.zeros(3), torch.ones(2, dtype=torch.long), torch.ones(2, dtype=torch.long))
