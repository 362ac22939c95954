"""Gradients of the preference losses, against formulas in float64, and the invariants of ALGORITHMS.md 3.2."""

import math
import typing
from typing import Any

import numpy as np
import pytest
import torch

from treeward.maths.preference import IPO, AnyPreferenceLoss, Hinge, PairScores, Sigmoid

LOSSES = typing.get_args(AnyPreferenceLoss)
DIFFERENCE_ONLY = [Sigmoid(beta=0.3), Sigmoid(beta=0.3, flip=0.2), Hinge(beta=0.3)]

CHOSEN = [-30.0, -4.0, 0.0, 0.7, 2.0, 11.0, 40.0]
REJECTED = [20.0, -5.5, 0.0, 1.9, -3.0, 2.5, -60.0]
LENGTHS = [3, 1, 7, 2, 5, 4, 9], [2, 6, 1, 3, 8, 5, 4]


def leaves(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    """The two sides as leaves that collect gradients."""
    x = torch.tensor(CHOSEN, dtype=dtype, requires_grad=True)
    return x, torch.tensor(REJECTED, dtype=dtype, requires_grad=True)


def pairs(x: torch.Tensor, y: torch.Tensor) -> PairScores:
    """These log-ratios with the lengths above."""
    return PairScores(x, y, torch.tensor(LENGTHS[0]), torch.tensor(LENGTHS[1]))


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


def by_formula(loss: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The loss and its slopes in the chosen and the rejected log-ratio, in float64, from the printed formulas."""
    x, y = np.array(CHOSEN), np.array(REJECTED)
    d = loss.beta * (x - y)
    match loss:
        case Sigmoid():
            value = (1 - loss.flip) * np.logaddexp(0, -d) + loss.flip * np.logaddexp(0, d)
            slope = -loss.beta * (1 - loss.flip - sigmoid(d))
            return value, slope, -slope
        case Hinge():
            slope = np.where(d < 1, -loss.beta, 0.0)
            return np.maximum(0, 1 - d), slope, -slope
        case IPO():
            m, n = np.array(LENGTHS[0]), np.array(LENGTHS[1])
            off = x / m - y / n - 1 / (2 * loss.beta)
            return off**2, 2 * off / m, -2 * off / n
    raise AssertionError(f"write out the slopes of {type(loss).__name__} here")


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("beta", [0.1, 0.7])
def test_values_and_gradients_are_those_of_the_formula(kind: Any, beta: float) -> None:
    loss = kind(beta=beta)
    x, y = leaves()
    values = loss(pairs(x, y))
    values.sum().backward()
    value, slope_x, slope_y = by_formula(loss)
    np.testing.assert_allclose(values.detach().numpy(), value, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(x.grad.numpy(), slope_x, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(y.grad.numpy(), slope_y, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("flip", [0.05, 0.3])
def test_conservative_values_and_gradients_are_those_of_the_formula(flip: float) -> None:
    loss = Sigmoid(beta=0.2, flip=flip)
    x, y = leaves()
    values = loss(pairs(x, y))
    values.sum().backward()
    value, slope, _ = by_formula(loss)
    np.testing.assert_allclose(values.detach().numpy(), value, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(x.grad.numpy(), slope, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("loss", "slope"), [(Sigmoid(), -0.05), (Sigmoid(beta=2.0), -1.0), (Hinge(), -0.1)])
def test_slope_at_the_start(loss: Any, slope: float) -> None:
    """Sigmoid: -beta / 2; hinge: -beta."""
    start = PairScores.zeros(1)
    start.chosen.requires_grad_(True)
    loss(start).sum().backward()
    assert start.chosen.grad.item() == pytest.approx(slope, abs=1e-7)


def test_the_conservative_slope_changes_sign_at_the_log_odds() -> None:
    loss, turn = Sigmoid(beta=0.1, flip=0.1), math.log(9) / 0.1
    x = torch.tensor([turn - 1, turn, turn + 1], requires_grad=True)
    n = torch.ones(3, dtype=torch.long)
    loss(PairScores(x, torch.zeros(3), n, n)).sum().backward()
    assert x.grad[0] < 0 < x.grad[2]
    assert x.grad[1].item() == pytest.approx(0.0, abs=1e-7)


@pytest.mark.parametrize("loss", DIFFERENCE_ONLY)
def test_invariant_i_a_common_shift_changes_nothing(loss: Any) -> None:
    x, y = leaves(torch.float64)
    np.testing.assert_allclose(loss(pairs(x + 17.0, y + 17.0)).tolist(), loss(pairs(x, y)).tolist(), rtol=1e-12)


@pytest.mark.parametrize("loss", DIFFERENCE_ONLY)
def test_invariant_ii_the_two_slopes_are_opposite(loss: Any) -> None:
    x, y = leaves()
    loss(pairs(x, y)).sum().backward()
    assert x.grad.tolist() == [-g for g in y.grad.tolist()]
    assert x.grad.abs().max() > 0


@pytest.mark.parametrize("loss", DIFFERENCE_ONLY)
def test_invariant_iv_swapping_a_pair_negates_its_difference(loss: Any) -> None:
    x, y = (t.detach() for t in leaves(torch.float64))
    zero = torch.zeros_like(x)
    swapped = loss(pairs(y, x))
    np.testing.assert_allclose(swapped.tolist(), loss(pairs(-(x - y), zero)).tolist(), rtol=1e-12)
    d = loss.beta * (x - y)
    if isinstance(loss, Hinge):
        np.testing.assert_allclose(swapped.tolist(), (1 + d).clamp(min=0).tolist(), rtol=1e-12)
    else:
        gap = (1 - 2 * loss.flip) * d
        np.testing.assert_allclose(swapped.tolist(), (loss(pairs(x, y)) + gap).tolist(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", LOSSES)
def test_invariant_v_the_order_of_the_batch_is_without_effect(kind: Any) -> None:
    x, y = (t.detach() for t in leaves())
    order = torch.tensor([4, 0, 6, 2, 1, 5, 3])
    lengths = [torch.tensor(side)[order] for side in LENGTHS]
    shuffled = kind()(PairScores(x[order], y[order], *lengths))
    assert shuffled.tolist() == kind()(pairs(x, y))[order].tolist()


@pytest.mark.parametrize("kind", LOSSES)
def test_loss_and_gradient_stay_finite_at_absurd_log_ratios(kind: Any) -> None:
    x = torch.tensor([1e4, -1e4, -100.0], requires_grad=True)
    y = torch.tensor([-1e4, 1e4, -100.0], requires_grad=True)
    n = torch.ones(3, dtype=torch.long)
    values = kind()(PairScores(x, y, n, n))
    values.sum().backward()
    assert torch.isfinite(values).all()
    assert torch.isfinite(x.grad).all()
    assert torch.isfinite(y.grad).all()
