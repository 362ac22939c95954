"""Bradley and Terry's loss: L1, L5 and its margin and centring terms, by written-out numbers."""

import math

import pytest
import torch

from treeward.maths.reward import BradleyTerry, pair_nll


def at(loss: BradleyTerry, chosen: float, rejected: float, gap: float = 1.0) -> float:
    """The loss of one pair."""
    return loss(torch.tensor([chosen]), torch.tensor([rejected]), torch.tensor([gap])).item()


def test_l1_a_zero_head_costs_ln_two() -> None:
    assert at(BradleyTerry(), 0.0, 0.0) == pytest.approx(0.693147, abs=1e-6)
    assert at(BradleyTerry(centre=0.01), 0.0, 0.0) == pytest.approx(0.693147, abs=1e-6)


@pytest.mark.parametrize(("margin", "value"), [(1 / 3, 0.873639), (2 / 3, 1.081037), (1.0, 1.313262), (0.76, 1.143674)])
def test_l5_a_zero_head_under_a_margin(margin: float, value: float) -> None:
    assert at(BradleyTerry(margin=margin), 0.0, 0.0) == pytest.approx(value, abs=1e-6)
    assert at(BradleyTerry(margin=1.0), 0.0, 0.0, gap=margin) == pytest.approx(value, abs=1e-6)


def test_a_rating_gap_above_one_asks_for_no_more_margin() -> None:
    assert at(BradleyTerry(margin=0.5), 0.0, 0.0, gap=3.2) == pytest.approx(math.log1p(math.exp(0.5)), abs=1e-6)
    assert at(BradleyTerry(margin=0.5), 0.0, 0.0, gap=0.4) == pytest.approx(math.log1p(math.exp(0.2)), abs=1e-6)


def test_the_margin_is_subtracted_from_the_difference() -> None:
    assert at(BradleyTerry(margin=0.5), 2.0, 0.5) == pytest.approx(math.log1p(math.exp(-1.0)), abs=1e-6)


def test_centring_costs_the_square_of_the_sum() -> None:
    assert at(BradleyTerry(centre=0.01), 3.0, 2.0) == pytest.approx(math.log1p(math.exp(-1.0)) + 0.25, abs=1e-6)


def test_pair_nll_leaves_margin_and_centring_out() -> None:
    values = pair_nll(torch.tensor([0.0, 3.0, -3.0]), torch.tensor([0.0, 2.0, -2.0]))
    assert values.tolist() == pytest.approx([math.log(2), 0.313262, 1.313262], abs=1e-6)


def test_gradients_are_opposite_and_those_of_the_logistic() -> None:
    chosen, rejected = torch.tensor([0.4, -2.0], requires_grad=True), torch.tensor([1.0, 3.0], requires_grad=True)
    BradleyTerry(margin=0.5)(chosen, rejected, torch.tensor([1.0, 0.2])).sum().backward()
    expected = [-1 / (1 + math.exp(0.4 - 1.0 - 0.5)), -1 / (1 + math.exp(-2.0 - 3.0 - 0.1))]
    assert chosen.grad.tolist() == pytest.approx(expected, abs=1e-6)
    assert rejected.grad.tolist() == pytest.approx([-g for g in expected], abs=1e-6)


def test_the_centring_gradient_pulls_both_scores_alike() -> None:
    chosen, rejected = torch.tensor([30.0], requires_grad=True), torch.tensor([-10.0], requires_grad=True)
    BradleyTerry(centre=0.1)(chosen, rejected, torch.ones(1)).sum().backward()
    assert chosen.grad.item() == pytest.approx(4.0, abs=1e-5)
    assert rejected.grad.item() == pytest.approx(4.0, abs=1e-5)


def test_values_stay_finite_at_absurd_scores() -> None:
    values = BradleyTerry()(torch.tensor([1e4, -1e4]), torch.tensor([-1e4, 1e4]), torch.ones(2))
    assert values.tolist() == [0.0, 2e4]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"margin": -0.1}, "loss.margin"),
        ({"margin": 1.1}, "loss.margin"),
        ({"margin": math.nan}, "loss.margin"),
        ({"centre": -0.01}, "loss.centre"),
        ({"centre": math.nan}, "loss.centre"),
    ],
)
def test_bad_hyper_parameters_are_refused_by_name(fields: dict[str, float], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        BradleyTerry(**fields)
