"""Values and gradients of the preference losses against formulas written out in numpy, in float64."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from losses_of_pairs import LOSSES, one, pairs

from treeward.losses import preference as p
from treeward.losses.preference import KTO, LabelledScores, PairScores

CHOSEN = np.array([-30.0, -4.0, 0.1, 0.7, 2.0, 11.0, 40.0])
REJECTED = np.array([20.0, -5.5, 0.0, 1.9, -3.0, 2.5, -60.0])
LENGTHS = np.array([3, 1, 7, 2, 5, 4, 9]), np.array([2, 6, 1, 3, 8, 5, 4])
LOGPS = np.array([-9.0, -0.2, -30.0, -1.0, -25.0, -0.9, -40.0]), np.array([-2.0, -30.0, -0.1, -9.0, -4.0, -55.0, -7.0])
Slopes = tuple[np.ndarray, np.ndarray, np.ndarray]


def sigmoid(z: Any) -> Any:
    return 1 / (1 + np.exp(-z))


def by_formula(loss: Any) -> tuple[np.ndarray, list[np.ndarray]]:
    """The loss, and its slopes in x_w, x_l and the two log-probabilities, in float64, from the printed formulas."""
    x, y, (m, n), (v, w) = CHOSEN, REJECTED, LENGTHS, LOGPS
    none = np.zeros_like(x)
    if isinstance(loss, p.Sum):
        parts = [(term.weight, *by_formula(term.loss)) for term in loss.terms]
        slopes = [sum((c * part[k] for c, _, part in parts), none) for k in range(4)]
        return sum((c * value for c, value, _ in parts), none), slopes
    if loss.needs_reference:
        value, in_x, in_y = _with_reference(loss, x, y, m, n)
        return value, [in_x, in_y, none, none]
    a, b = v / m, w / n
    match loss:
        case p.ORPO():
            d = np.log(np.exp(a) / (1 - np.exp(a))) - np.log(np.exp(b) / (1 - np.exp(b)))
            pull = -loss.weight * sigmoid(-d)
            value = -a + loss.weight * np.logaddexp(0, -d)
            return value, [none, none, (-1 + pull / (1 - np.exp(a))) / m, -pull / (1 - np.exp(b)) / n]
        case p.SIMPO():
            d = loss.beta * (a - b) - loss.gamma
            return np.logaddexp(0, -d), [none, none, -loss.beta * sigmoid(-d) / m, loss.beta * sigmoid(-d) / n]
        case p.ChosenNLL():
            return -a, [none, none, -1 / m, none]
    raise AssertionError(f"write out the slopes of {type(loss).__name__} here")


def _with_reference(loss: Any, x: Any, y: Any, m: Any, n: Any) -> Slopes:
    b = loss.beta
    d = b * (x - y)
    match loss:
        case p.Sigmoid():
            clipped = d if loss.clip is None else np.clip(d, -loss.clip, loss.clip)
            value = (1 - loss.flip) * np.logaddexp(0, -clipped) + loss.flip * np.logaddexp(0, clipped)
            slope = -b * (1 - loss.flip - sigmoid(clipped)) * (clipped == d)
            return value, slope, -slope
        case p.Robust():
            e = loss.flip
            value = ((1 - e) * np.logaddexp(0, -d) - e * np.logaddexp(0, d)) / (1 - 2 * e)
            slope = -b * ((1 - e) * sigmoid(-d) + e * sigmoid(d)) / (1 - 2 * e)
            return value, slope, -slope
        case p.Hinge():
            slope = np.where(d < 1, -b, 0.0)
            return np.maximum(0, 1 - d), slope, -slope
        case p.EXO():
            odds = math.log((1 - loss.smoothing) / loss.smoothing)
            q = sigmoid(d)
            value = -q * np.logaddexp(0, -d) - (1 - q) * np.logaddexp(0, d)
            value -= q * math.log(1 - loss.smoothing) + (1 - q) * math.log(loss.smoothing)
            slope = b * q * (1 - q) * (d - odds)
            return value, slope, -slope
        case p.IPO():
            off = x / m - y / n - 1 / (2 * b)
            return off**2, 2 * off / m, -2 * off / n
        case p.NormalisedSigmoid():
            d = b * (x / m - y / n)
            return np.logaddexp(0, -d), -b * sigmoid(-d) / m, b * sigmoid(-d) / n
        case p.NCA():
            value = np.logaddexp(0, -b * x) + 0.5 * np.logaddexp(0, b * x) + 0.5 * np.logaddexp(0, b * y)
            return value, b * (1.5 * sigmoid(b * x) - 1), 0.5 * b * sigmoid(b * y)
        case p.BCO():
            return np.logaddexp(0, -b * x) + np.logaddexp(0, b * y), -b * sigmoid(-b * x), b * sigmoid(b * y)
        case p.SPPOHard():
            t = 1 / (2 * b)
            return (x - t) ** 2 + (y + t) ** 2, 2 * (x - t), 2 * (y + t)
        case p.APOZero():
            up, down = sigmoid(b * x), sigmoid(b * y)
            return 1 - up + down, -b * up * (1 - up), b * down * (1 - down)
        case p.APODown():
            up, q = sigmoid(b * x), sigmoid(d)
            return up + 1 - q, b * up * (1 - up) - b * q * (1 - q), b * q * (1 - q)
        case p.DPOP():
            d = b * (x - y - loss.penalty * np.maximum(0, -x))
            return np.logaddexp(0, -d), -b * sigmoid(-d) * (1 + loss.penalty * (x < 0)), b * sigmoid(-d)
    raise AssertionError(f"write out the slopes of {type(loss).__name__} here")


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_and_gradients_are_those_of_the_formula(loss: Any, dtype: torch.dtype) -> None:
    leaves = [torch.tensor(side, dtype=dtype, requires_grad=True) for side in (CHOSEN, REJECTED, *LOGPS)]
    values = loss(pairs(*leaves[:2], LENGTHS, tuple(leaves[2:])))
    values.sum().backward()
    expected, slopes = by_formula(loss)
    close = {"rtol": 2e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 1e-10, "atol": 1e-12}
    np.testing.assert_allclose(values.detach().numpy(), expected, **close)
    for leaf, slope in zip(leaves, slopes, strict=True):
        gradient = np.zeros_like(CHOSEN) if leaf.grad is None else leaf.grad.numpy()
        np.testing.assert_allclose(gradient, slope, **close)


@pytest.mark.parametrize(("loss", "slope"), [(p.Sigmoid(), -0.05), (p.Sigmoid(beta=2.0), -1.0), (p.Hinge(), -0.1)])
def test_slope_at_the_start(loss: Any, slope: float) -> None:
    """Sigmoid: -beta / 2; hinge: -beta."""
    start = PairScores.zeros(1)
    start.chosen_logratios.requires_grad_(True)
    loss(start).sum().backward()
    assert start.chosen_logratios.grad.item() == pytest.approx(slope, abs=1e-7)


def test_the_conservative_slope_changes_sign_at_the_log_odds() -> None:
    loss, turn = p.Sigmoid(beta=0.1, flip=0.1), math.log(9) / 0.1
    x = torch.tensor([turn - 1, turn, turn + 1], requires_grad=True)
    loss(pairs(x, torch.zeros(3))).sum().backward()
    assert x.grad[0] < 0 < x.grad[2]
    assert x.grad[1].item() == pytest.approx(0.0, abs=1e-7)


@pytest.mark.parametrize("desirable", [True, False])
def test_the_slopes_of_kto_vanish_at_both_ends(desirable: bool) -> None:
    x = torch.tensor([-1e4, -3.0, 1.2, 8.0, 1e4], requires_grad=True)
    loss = KTO(beta=0.2, desirable=1.3, undesirable=0.7)
    values = loss(LabelledScores(x, torch.full((5,), desirable), torch.tensor(1.2)))
    values.sum().backward()
    q = sigmoid(0.2 * (np.array([-500.0, -3.0, 1.2, 8.0, 500.0]) - 1.2))
    weight, sign = (1.3, -1) if desirable else (0.7, 1)
    np.testing.assert_allclose(values.detach().numpy(), weight * (1 - q if desirable else q), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(x.grad.numpy(), sign * weight * 0.2 * q * (1 - q), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_d10_loss_and_gradient_stay_finite_at_extreme_values(loss: Any) -> None:
    sides = [1e4, -1e4, -100.0, -1e-9], [-1e4, 1e4, -100.0, -1e-9]
    logps = [-1e4, -1e-9, 0.0, -100.0], [-1e-9, -1e4, 0.0, -100.0]
    leaves = [torch.tensor(side, requires_grad=True) for side in (*sides, *logps)]
    values = loss(pairs(*leaves[:2], logps=tuple(leaves[2:])))
    values.sum().backward()
    assert torch.isfinite(values).all()
    for leaf in leaves:
        assert leaf.grad is None or torch.isfinite(leaf.grad).all()


def test_log1mexp_on_both_sides_of_its_branch() -> None:
    from treeward.losses.preference import log1mexp

    a = torch.tensor([-1e-7, -0.1, -0.6931, -0.6932, -3.0, -1e4], requires_grad=True)
    values = log1mexp(a)
    values.sum().backward()
    exact = [math.log(-math.expm1(v)) for v in a.tolist()]
    np.testing.assert_allclose(values.tolist(), exact, rtol=1e-6, atol=1e-7)
    slopes = [-1 / math.expm1(-v) if v > -700 else 0.0 for v in a.tolist()]
    np.testing.assert_allclose(a.grad.tolist(), slopes, rtol=1e-5, atol=1e-7)


def test_the_conservative_loss_rises_again_and_the_plain_one_does_not() -> None:
    assert one(p.Sigmoid(flip=0.1), 200.0) > one(p.Sigmoid(flip=0.1), 20.0)
    assert one(p.Sigmoid(), 200.0) < one(p.Sigmoid(), 20.0)
