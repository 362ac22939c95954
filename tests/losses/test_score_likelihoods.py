"""Likelihoods of score distributions: L1 to L3, R1 to R3, gradients in closed form, and the far ends of float32."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from treeward.losses.heads import Attributes, Categorical, Logistic, Ordinal
from treeward.losses.reward import (
    Branches,
    Conditional,
    Graded,
    HalfTies,
    HLGauss,
    Joint,
    OneHot,
    Strict,
    TwoHot,
    log_preference,
    outcomes,
)

CHOSEN, REJECTED = (0.2, 0.3, 0.5), (0.5, 0.3, 0.2)
LOSSES = [HalfTies(), Strict(), Conditional()]


def pair(chosen: torch.Tensor, rejected: torch.Tensor, ratings: torch.Tensor | None = None) -> Branches:
    """One pair under a categorical head."""
    return Branches(torch.stack([chosen, rejected]), Categorical(len(chosen)), torch.tensor([0, 0]), ratings)


def test_r1_win_tie_lose_and_the_three_losses() -> None:
    chosen, rejected = torch.tensor(CHOSEN).log(), torch.tensor(REJECTED).log()
    probabilities = [value.exp().item() for value in outcomes(chosen[None], rejected[None])]
    assert probabilities == pytest.approx([0.55, 0.29, 0.16], abs=1e-6)
    values = [loss(pair(chosen, rejected)).item() for loss in (Strict(), HalfTies(), Conditional())]
    assert values == pytest.approx([0.597837, 0.363843, 0.255347], abs=1e-6)


def test_r2_gradients_of_half_ties() -> None:
    chosen = torch.tensor(CHOSEN).log().requires_grad_()
    rejected = torch.tensor(REJECTED).log().requires_grad_()
    HalfTies()(pair(chosen, rejected)).sum().backward()
    assert chosen.grad is not None
    assert rejected.grad is not None
    assert chosen.grad.tolist() == pytest.approx([0.128058, 0.019424, -0.147482], abs=1e-6)
    assert rejected.grad.tolist() == pytest.approx([-0.147482, 0.019424, 0.128058], abs=1e-6)


logits = st.lists(st.floats(-8, 8), min_size=5, max_size=5)


@given(logits, logits)
def test_gradients_are_those_of_the_closed_form(a: list[float], b: list[float]) -> None:
    """With U_ij = 1[i>j] (+ 1/2 on the diagonal): dL/dz_c(k) = -p_c(k) [(U p_r)_k / P - 1], and its fellows."""
    z = [torch.tensor(x, dtype=torch.float64).requires_grad_() for x in (a, b)]
    c, r = (torch.softmax(x.detach(), 0) for x in z)
    above = torch.ones(5, 5, dtype=torch.float64).tril(-1)
    half = above + 0.5 * torch.eye(5, dtype=torch.float64)
    other = 1 - torch.eye(5, dtype=torch.float64)
    win, differ = c @ above @ r, c @ other @ r
    expected = {
        HalfTies: (-c * (half @ r / (c @ half @ r) - 1), -r * (half.T @ c / (c @ half @ r) - 1)),
        Strict: (-c * (above @ r / win - 1), -r * (above.T @ c / win - 1)),
        Conditional: (
            -c * (above @ r / win - other @ r / differ),
            -r * (above.T @ c / win - other @ c / differ),
        ),
    }
    for loss in LOSSES:
        gradient = torch.autograd.grad(loss(pair(z[0], z[1])).sum(), z)
        for computed, wanted in zip(gradient, expected[type(loss)], strict=True):
            torch.testing.assert_close(computed, wanted, atol=1e-9, rtol=1e-7)
            assert computed.sum().item() == pytest.approx(0.0, abs=1e-9)


@given(logits, logits)
def test_r3_both_orders_share_the_probability(a: list[float], b: list[float]) -> None:
    one, two = (torch.tensor(x, dtype=torch.float64) for x in (a, b))
    tie = (one.softmax(0) * two.softmax(0)).sum().item()
    for loss, total in ((HalfTies(), 1.0), (Conditional(), 1.0), (Strict(), 1 - tie)):
        values = [math.exp(-loss(pair(*sides)).item()) for sides in ((one, two), (two, one))]
        assert sum(values) == pytest.approx(total, abs=1e-9)
    win, _, lose = outcomes(one[None], two[None])
    swapped = outcomes(two[None], one[None])
    assert (win.item(), lose.item()) == pytest.approx((swapped[2].item(), swapped[0].item()), abs=1e-12)


@pytest.mark.parametrize("head", [Categorical(), Ordinal(), Logistic()])
def test_l1_l2_l3_first_values(head: Categorical | Ordinal | Logistic) -> None:
    zeros = torch.zeros(2, head.width)
    if isinstance(head, Ordinal):
        zeros = head.thresholds().expand(2, -1)
    ratings = torch.tensor([[3.0], [1.0]])
    start = Branches(zeros, head, torch.tensor([0, 0]), ratings)
    for loss in (*LOSSES, Graded(), Joint(), Strict(entropy=0.1, smoothness=0.2)):
        assert loss(start).mean().item() == pytest.approx(loss.at_start(start), abs=1e-6)
    assert HalfTies()(start).item() == pytest.approx(0.693147, abs=1e-6)
    assert Conditional()(start).item() == pytest.approx(0.693147, abs=1e-5)
    if not isinstance(head, Logistic):
        assert Strict()(start).item() == pytest.approx(0.798508, abs=1e-6)
        assert Graded()(start).item() == pytest.approx(2.302585, abs=1e-6)
        assert Joint(weight=0.3)(start).item() == pytest.approx(2.074698, abs=1e-6)
        assert Joint(weight=1.0)(start).item() == pytest.approx(5.298317, abs=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("sign", [1, -1])
def test_values_and_gradients_stay_finite_for_logits_of_a_thousand(loss: HalfTies, sign: int) -> None:
    z = [torch.tensor([sign * 1000.0, 0.0, -sign * 1000.0]), torch.tensor([-sign * 1000.0, 0.0, sign * 1000.0])]
    both = [x.requires_grad_() for x in z]
    value = loss(pair(*both))
    value.sum().backward()
    assert torch.isfinite(value).all()
    assert all(torch.isfinite(x.grad).all() for x in both if x.grad is not None)


def test_the_uniform_gradient_has_the_published_size() -> None:
    z = torch.zeros(10, dtype=torch.float64, requires_grad=True)
    HalfTies()(pair(z, torch.zeros(10, dtype=torch.float64))).sum().backward()
    assert z.grad is not None
    assert z.grad.tolist() == pytest.approx([-(2 * k - 11) / 100 for k in range(1, 11)], abs=1e-9)


def test_the_entropy_bonus_widens_and_its_sign_is_right() -> None:
    z = torch.tensor([2.0, 0.0, -1.0], requires_grad=True)
    with_bonus = HalfTies(entropy=1.0)(pair(z, z))
    plain = HalfTies()(pair(z, z))
    p = z.softmax(0)
    entropy = -(p * p.log()).sum().item()
    assert (plain - with_bonus).item() == pytest.approx(2 * entropy, abs=1e-6)
    with_bonus.sum().backward()
    assert z.grad is not None
    wider = (z - 0.1 * z.grad).detach().softmax(0)
    assert -(wider * wider.log()).sum().item() > entropy


def test_smoothness_is_the_square_of_second_differences_of_logits() -> None:
    z = torch.tensor([1.0, 3.0, 2.0, 2.0])
    gap = HalfTies(smoothness=0.5)(pair(z, torch.zeros(4))) - HalfTies()(pair(z, torch.zeros(4)))
    assert gap.item() == pytest.approx(0.5 * (9.0 + 1.0), abs=1e-5)


def test_a_joint_loss_adds_both_branches_under_its_weight() -> None:
    chosen, rejected = torch.tensor(CHOSEN).log(), torch.tensor(REJECTED).log()
    ratings = torch.tensor([[4.0], [0.0]])
    joint = Joint(graded=Graded(OneHot()), weight=0.3)(pair(chosen, rejected, ratings)).item()
    assert joint == pytest.approx(0.363843 + 0.3 * (-math.log(0.5) - math.log(0.5)), abs=1e-6)


def test_a_permuted_batch_of_ratings_costs_something_else() -> None:
    """F-shape trap: labels that broadcast against other rows would give the same mean for every order."""
    outputs = torch.randn(6, 10, generator=torch.Generator().manual_seed(0))
    ratings = torch.tensor([[0.0], [1.0], [2.0], [3.0], [4.0], [0.5]])
    tree = torch.arange(6)
    for target in (OneHot(), TwoHot(), HLGauss()):
        loss = Graded(target)
        straight = loss(Branches(outputs, Categorical(), tree, ratings)).mean().item()
        turned = loss(Branches(outputs, Categorical(), tree, ratings.flip(0))).mean().item()
        assert abs(straight - turned) > 0.01


def test_a_graded_start_is_the_mean_over_trees_whatever_their_size() -> None:
    """Three branches rated 0 and one rated 2: half of each, not three quarters."""
    ratings = torch.tensor([[0.0], [0.0], [0.0], [2.0]])
    zeros = Branches(torch.zeros(4, 2), Logistic(), torch.tensor([0, 0, 0, 1]), ratings)
    for loss in (Graded(), Graded(HLGauss())):
        assert loss.at_start(zeros) == pytest.approx(loss(zeros).mean().item(), abs=1e-6)


def test_attributes_are_taught_by_their_own_grades() -> None:
    head = Attributes(("a", "b"), bins=3)
    outputs = torch.log(torch.tensor([[0.2, 0.3, 0.5, 0.7, 0.2, 0.1]]))
    loss = Graded(OneHot(), scale=(0.0, 2.0))
    value = loss(Branches(outputs, head, torch.tensor([0]), torch.tensor([[2.0, 0.0]]))).item()
    assert value == pytest.approx((-math.log(0.5) - math.log(0.7)) / 2, abs=1e-6)


def test_one_distribution_is_taught_the_mean_of_several_grades() -> None:
    outputs = torch.log(torch.tensor([[0.2, 0.3, 0.5]]))
    value = Graded(OneHot(), scale=(0.0, 2.0))(
        Branches(outputs, Categorical(3), torch.tensor([0]), torch.tensor([[2.0, 0.0]]))
    )
    assert value.item() == pytest.approx(-math.log(0.3), abs=1e-6)


def test_preferred_is_half_ties_without_regularisers() -> None:
    chosen, rejected = torch.tensor(CHOSEN).log(), torch.tensor(REJECTED).log()
    assert -log_preference(pair(chosen, rejected)).item() == pytest.approx(0.363843, abs=1e-6)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: HalfTies(entropy=-1.0), "loss.entropy"),
        (lambda: Strict(smoothness=-1.0), "loss.smoothness"),
        (lambda: Joint(weight=-0.1), "loss.weight"),
        (lambda: Graded(scale=(4.0, 0.0)), "loss.scale"),
    ],
)
def test_bad_fields_are_refused_by_name(make: object, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        make()  # type: ignore[operator]


def test_a_rating_outside_the_stated_scale_is_refused() -> None:
    wrong = Branches(torch.zeros(1, 10), Categorical(), torch.tensor([0]), torch.tensor([[5.0]]))
    with pytest.raises(ValueError, match=r"a rating is 5; the stated scale is \[0, 4\]"):
        Graded()(wrong)
