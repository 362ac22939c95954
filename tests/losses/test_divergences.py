"""f-divergence scores: D6 to D10 of ALGORITHMS.md, slopes against autograd, tails, and what is refused."""

import math
import typing
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from losses_of_pairs import DIFFERENCE, pairs

from treeward.losses.divergences import Alpha, AnyDivergence, ChiSquaredMixed, ForwardKL, JensenShannon, ReverseKL
from treeward.losses.preference import PairScores, Sigmoid

KINDS = typing.get_args(AnyDivergence)
ALL: list[Any] = [*(kind() for kind in KINDS), Alpha(0.0), Alpha(0.3), Alpha(0.7), Alpha(1.0)]
SIDES = [1.0, -1.0]
LN2 = math.log(2)


def value(divergence: Any, x: float) -> float:
    score: torch.Tensor = divergence.score(torch.tensor(x))
    return score.item()


def slope(divergence: Any, x: float) -> float:
    """s'(x), written out."""
    match divergence:
        case ReverseKL():
            return 1.0
        case ForwardKL():
            return math.exp(-x)
        case JensenShannon():
            return 1 / (1 + math.exp(x))
        case Alpha():
            return math.exp(-divergence.alpha * x)
        case ChiSquaredMixed():
            return 1 + math.exp(x)
    raise AssertionError(f"write out the slope of {type(divergence).__name__} here")


@pytest.mark.parametrize(
    ("divergence", "at_one", "at_minus_one"),
    [
        (ReverseKL(), 1.0, -1.0),
        (ForwardKL(), 0.632121, -1.718282),
        (JensenShannon(), 0.379885, -0.620115),
        (Alpha(0.3), 0.863939, -1.166196),
        (Alpha(0.5), 0.786939, -1.297443),
        (Alpha(0.7), 0.719164, -1.448218),
        (ChiSquaredMixed(), 2.718282, -1.632121),
    ],
)
def test_d6_and_d7_scores_at_one_and_minus_one(divergence: Any, at_one: float, at_minus_one: float) -> None:
    assert value(divergence, 1.0) == pytest.approx(at_one, abs=1e-6)
    assert value(divergence, -1.0) == pytest.approx(at_minus_one, abs=1e-6)


@pytest.mark.parametrize(
    ("divergence", "expected"),
    [(ReverseKL(), 0.598139), (ForwardKL(), 0.582517), (JensenShannon(), 0.644397), (Alpha(0.5), 0.594349)],
)
def test_d8_the_sigmoid_loss_under_each(divergence: Any, expected: float) -> None:
    chosen, rejected = (divergence.score(torch.tensor([side])) for side in SIDES)
    assert Sigmoid(beta=0.1)(pairs(chosen, rejected)).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("clip", "expected"), [(None, 0.499100), (0.3, 0.554355)])
def test_d8_chi_po_is_the_clipped_sigmoid_loss_of_mixed_chi_squared(clip: float | None, expected: float) -> None:
    """beta [s(1) - s(-1)] = 0.1 (2 + e - 1/e) = 0.435040, held to 0.3."""
    chosen, rejected = (ChiSquaredMixed().score(torch.tensor([side])) for side in SIDES)
    assert Sigmoid(beta=0.1, clip=clip)(pairs(chosen, rejected)).item() == pytest.approx(expected, abs=1e-6)
    turned = Sigmoid(beta=0.1, clip=clip)(pairs(rejected, chosen)).item()
    assert turned - expected == pytest.approx(clip or 0.435040, abs=1e-6)


def test_d9_the_ends_of_alpha() -> None:
    x = torch.linspace(-5, 5, 401)
    torch.testing.assert_close(Alpha(1e-8).score(x), x, rtol=0, atol=1e-6)
    assert Alpha(0.0).score(x).tolist() == x.tolist()
    assert Alpha(1.0).score(x).tolist() == ForwardKL().score(x).tolist()


@pytest.mark.parametrize("a", [0.0, 0.25, 0.5, 0.9])
def test_d9_the_other_convention_is_one_less_alpha(a: float) -> None:
    """f'(u) = (u^(a - 1) - 1) / (a - 1), as TRL writes it since 0.29."""
    x = torch.linspace(-3, 3, 61, dtype=torch.float64)
    theirs = (torch.exp((a - 1) * x) - 1) / (a - 1)
    torch.testing.assert_close(Alpha(1 - a).score(x), theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("divergence", ALL, ids=repr)
def test_d9_slopes_against_autograd(divergence: Any) -> None:
    x = torch.linspace(-20, 20, 81, dtype=torch.float64, requires_grad=True)
    divergence.score(x).sum().backward()
    np.testing.assert_allclose(x.grad.tolist(), [slope(divergence, v) for v in x.tolist()], rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("divergence", ALL, ids=repr)
def test_a_score_is_zero_at_zero_and_rises(divergence: Any) -> None:
    assert value(divergence, 0.0) == 0.0
    x = torch.linspace(-200, 40, 4001, dtype=torch.float64)
    assert (divergence.score(x).diff() >= 0).all()


@pytest.mark.parametrize("divergence", ALL, ids=repr)
@pytest.mark.parametrize("loss", DIFFERENCE, ids=repr)
def test_d10_finite_far_out_in_float32(divergence: Any, loss: Any) -> None:
    x = torch.tensor([1e4, -1e4, 1e4, -1e4, -100.0, 88.0], requires_grad=True)
    y = torch.tensor([-1e4, 1e4, 1e4, -1e4, -100.0, -89.0], requires_grad=True)
    values = loss(pairs(divergence.score(x), divergence.score(y)))
    values.sum().backward()
    for tensor in (values, x.grad, y.grad):
        assert torch.isfinite(tensor).all()
    assert values[4].item() == pytest.approx(loss.at_start(PairScores.zeros(1)), rel=1e-5)


@pytest.mark.parametrize(
    ("divergence", "edge", "inside"),
    [(ForwardKL(), -30.0, 1.0), (Alpha(0.5), -60.0, 1.0), (Alpha(0.3), -100.0, 1.0), (ChiSquaredMixed(), 30.0, -1.0)],
)
def test_the_straight_tail_goes_on_with_value_and_slope(divergence: Any, edge: float, inside: float) -> None:
    x = torch.tensor([edge + 1e-6 * inside, edge - 1e-6 * inside, edge - 5 * inside], dtype=torch.float64)
    x.requires_grad_(True)
    values = divergence.score(x)
    values.sum().backward()
    assert values[0].item() == pytest.approx(values[1].item(), rel=1e-5)
    assert x.grad[0].item() == pytest.approx(x.grad[1].item(), rel=1e-5)
    assert x.grad[1].item() == pytest.approx(x.grad[2].item(), rel=1e-12)
    assert divergence.clamped(x).tolist() == [False, True, True]


@pytest.mark.parametrize("divergence", [ReverseKL(), JensenShannon(), Alpha(0.0)], ids=repr)
def test_where_there_is_no_tail_nothing_is_clamped(divergence: Any) -> None:
    x = torch.tensor([-1e4, 0.0, 1e4])
    assert divergence.clamped(x).tolist() == [False] * 3


@pytest.mark.parametrize(("divergence", "floor"), [(ForwardKL(), 0.6444), (JensenShannon(), 0.6591), (Alpha(), 0.5981)])
def test_past_the_ceiling_the_chosen_side_adds_nothing(divergence: Any, floor: float) -> None:
    """With x_l = 0 and beta = 0.1 the loss cannot fall below its floor: all further margin is x_l's."""
    x = torch.tensor([50.0, 1e4])
    values = Sigmoid(beta=0.1)(pairs(divergence.score(x), divergence.score(torch.zeros(2))))
    assert values.tolist() == pytest.approx([floor] * 2, abs=1e-4)


@given(x=st.floats(-20, 20), y=st.floats(-20, 20))
def test_the_share_of_the_gradient_on_either_side(x: float, y: float) -> None:
    for divergence in ALL:
        sides = [torch.tensor([v], dtype=torch.float64, requires_grad=True) for v in (x, y)]
        chosen, rejected = (divergence.score(side) for side in sides)
        Sigmoid(beta=1e-6)(pairs(chosen, rejected, dtype=torch.float64)).sum().backward()
        ratio = -sides[0].grad.item() / sides[1].grad.item()
        assert ratio == pytest.approx(slope(divergence, x) / slope(divergence, y), rel=1e-6)


@pytest.mark.parametrize("alpha", [-0.1, 1.5, math.nan])
def test_an_alpha_outside_the_paper_s_range_names_the_other_convention(alpha: float) -> None:
    with pytest.raises(ValueError, match="TRL's"):
        Alpha(alpha)
