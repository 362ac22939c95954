"""Preference losses against numbers that were computed independently: L1, L4, D1 to D5."""

import math
import typing
from typing import Any

import pytest
import torch
from losses_of_pairs import LOSSES, WITH_REFERENCE, one, pairs

from treeward.losses import preference
from treeward.losses.heads import Scalar
from treeward.losses.preference import (
    BCO,
    DPOP,
    EXO,
    IPO,
    KTO,
    NCA,
    ORPO,
    SIMPO,
    APODown,
    APOZero,
    ChosenNLL,
    Hinge,
    LabelledScores,
    NormalisedSigmoid,
    PairScores,
    PlackettLuce,
    Robust,
    Sigmoid,
    SPPOHard,
    Sum,
    Term,
)
from treeward.losses.reward import Branches

LN2 = 0.6931471805599453


def labelled(ratios: list[float], desirable: list[bool], z0: float = 0.0) -> LabelledScores:
    return LabelledScores(torch.tensor(ratios), torch.tensor(desirable), torch.tensor(z0))


def ranked(*rankings: list[float], ratings: list[float] | None = None) -> Branches:
    """Log-ratios of ranked branches, best first unless rated."""
    tree = torch.tensor([number for number, each in enumerate(rankings) for _ in each])
    outputs = torch.tensor([value for each in rankings for value in each])[:, None]
    return Branches(outputs, Scalar(), tree, None if ratings is None else torch.tensor(ratings)[:, None])


@pytest.mark.parametrize(
    ("loss", "value"),
    [
        (Sigmoid(), LN2),
        (Sigmoid(flip=0.1), LN2),
        (Sigmoid(beta=3.0, flip=0.49), LN2),
        (Sigmoid(clip=2.0), LN2),
        (Robust(), LN2),
        (Robust(beta=2.0, flip=0.4), LN2),
        (NormalisedSigmoid(), LN2),
        (DPOP(), LN2),
        (Hinge(), 1.0),
        (Hinge(beta=5.0), 1.0),
        (IPO(), 25.0),
        (IPO(beta=0.5), 1.0),
        (NCA(), 1.386294),
        (BCO(), 1.386294),
        (SPPOHard(), 50.0),
        (APOZero(), 1.0),
        (APODown(), 1.0),
        (EXO(smoothing=0.1), 0.510826),
        (EXO(smoothing=1e-3), 2.761230),
        (SIMPO(), 1.313262),
        (Sum((Term(2.0, Sigmoid()), Term(0.1, IPO()))), 2 * LN2 + 2.5),
    ],
)
def test_l1_and_l4_first_value_at_policy_equal_to_reference(loss: Any, value: float) -> None:
    assert loss(PairScores.zeros(3)).tolist() == pytest.approx([value] * 3, rel=1e-6)
    assert loss.at_start(PairScores.zeros(3)) == pytest.approx(value, rel=1e-6)


def test_l4_kto_begins_at_one_half_and_a_ranking_at_ln_n_factorial() -> None:
    assert KTO()(labelled([0.0, 0.0], [True, False])).tolist() == [0.5, 0.5]
    assert KTO(desirable=1.5).at_start() == pytest.approx(0.625)
    assert KTO(desirable=1.5).at_start(labelled([0.0] * 3, [True, True, False])) == pytest.approx(2 / 3)
    zeros = ranked([0.0] * 4, [0.0, 0.0])
    assert PlackettLuce()(zeros).tolist() == pytest.approx([math.log(24), LN2])
    assert PlackettLuce().at_start(zeros) == pytest.approx((math.log(24) + LN2) / 2)
    assert PlackettLuce().at_start() == pytest.approx(LN2)


@pytest.mark.parametrize("loss", WITH_REFERENCE, ids=repr)
@pytest.mark.parametrize("margin", [None, 0.6])
def test_at_start_is_the_value_on_zero_ratios(loss: Any, margin: float | None) -> None:
    """Also with margins, and with responses of several lengths."""
    lengths, logps = ([3, 1, 9], [2, 5, 4]), ([-4.0, -0.3, -30.0], [-7.0, -11.0, -2.5])
    zeros = pairs([0.0] * 3, [0.0] * 3, lengths, logps)
    margins = None if margin is None else torch.tensor([margin, 0.0, -0.2])
    start = PairScores(**{**vars(zeros), "margins": margins})
    assert loss(start).double().mean().item() == pytest.approx(loss.at_start(start), rel=1e-6)


@pytest.mark.parametrize("loss", [ORPO(), ORPO(weight=2.0), SIMPO(), SIMPO(beta=9.0, gamma=3.0), ChosenNLL()])
def test_at_start_without_a_reference_is_another_formula_on_the_same_data(loss: Any) -> None:
    lengths, logps = ([3, 1, 9], [2, 5, 4]), ([-4.0, -0.3, -30.0], [-7.0, -11.0, -2.5])
    start = pairs([math.nan] * 3, [math.nan] * 3, lengths, logps)
    assert loss(start).double().mean().item() == pytest.approx(loss.at_start(start), rel=1e-6)
    with pytest.raises(ValueError, match="depends on the data"):
        loss.at_start()


@pytest.mark.parametrize(
    ("loss", "at_ten", "at_minus_ten"),
    [
        (Sigmoid(beta=0.1), 0.313262, 1.313262),
        (Sigmoid(beta=0.1, flip=0.1), 0.413262, 1.213262),
        (Robust(beta=0.1, flip=0.1), 0.188262, 1.438262),
        (Hinge(beta=0.1), 0.0, 2.0),
    ],
)
def test_d1_values_at_a_difference_of_ten(loss: Any, at_ten: float, at_minus_ten: float) -> None:
    assert one(loss, 10.0) == pytest.approx(at_ten, abs=1e-6)
    assert one(loss, -10.0) == pytest.approx(at_minus_ten, abs=1e-6)


@pytest.mark.parametrize("margin", [None, 0.3, 1.0])
@pytest.mark.parametrize("flip", [0.1, 0.3, 0.45])
def test_d2_robust_is_the_sigmoid_loss_in_expectation_over_flips(flip: float, margin: float | None) -> None:
    """Also with a margin, which applies to both orders of a pair."""
    robust, plain = Robust(beta=0.1, flip=flip), Sigmoid(beta=0.1)
    for difference in (-70.0, -10.0, 0.0, 3.0, 10.0, 55.0):
        mean = (1 - flip) * one(robust, difference, margin) + flip * one(robust, -difference, margin)
        assert mean == pytest.approx(one(plain, difference, margin), abs=1e-5)


@pytest.mark.parametrize("flip", [0.1, 0.4])
def test_conservative_dpo_is_the_mean_of_the_sigmoid_loss_over_both_orders(flip: float) -> None:
    for difference, margin in ((-12.0, 0.3), (0.0, 1.0), (25.0, None)):
        plain = [one(Sigmoid(beta=0.1, clip=2.0), d, margin) for d in (difference, -difference)]
        value = one(Sigmoid(beta=0.1, clip=2.0, flip=flip), difference, margin)
        assert value == pytest.approx((1 - flip) * plain[0] + flip * plain[1], abs=1e-6)


def test_d3_conservative_dpo_has_its_minimum_at_the_log_odds_of_the_flip() -> None:
    beta = 0.1
    loss = Sigmoid(beta=beta, flip=0.1)
    best = math.log(9) / beta
    assert beta * best == pytest.approx(2.197225, abs=1e-6)
    assert one(loss, best) == pytest.approx(0.325083, abs=1e-6)
    grid = torch.linspace(best - 20, best + 20, 4001)
    values = loss(pairs(grid.tolist(), [0.0] * len(grid)))
    assert grid[values.argmin()].item() == pytest.approx(best, abs=0.06)
    assert values.min().item() >= 0.325083 - 1e-6


@pytest.mark.parametrize(("x", "slope"), [(1e4, -0.0125), (-1e4, -0.1125)])
def test_d4_the_slope_of_robust_far_out(x: float, slope: float) -> None:
    chosen = torch.tensor([x], requires_grad=True)
    Robust(beta=0.1, flip=0.1)(pairs(chosen, [0.0])).sum().backward()
    assert chosen.grad.item() == pytest.approx(slope, abs=1e-7)


def test_plain_sigmoid_and_robust_have_no_finite_minimum() -> None:
    for loss in (Sigmoid(beta=0.1), Robust(beta=0.1)):
        values = loss(pairs([0.0, 20.0, 40.0, 80.0], [0.0] * 4))
        assert (values.diff() < 0).all()


def test_d5_ipo_is_zero_where_the_per_token_means_differ_by_its_target() -> None:
    assert IPO(beta=0.1)(pairs([12.0], [-6.0], ([4], [3]))).item() == pytest.approx(0.0, abs=1e-6)


def test_d5_kto_of_a_chosen_response() -> None:
    assert KTO()(labelled([3.0], [True], 1.2)).item() == pytest.approx(0.455121, abs=1e-6)
    assert KTO()(labelled([3.0], [False], 1.2)).item() == pytest.approx(1 - 0.455121, abs=1e-6)


def test_d5_simpo_at_equal_means() -> None:
    assert SIMPO(beta=2.0, gamma=1.0)(pairs([0.0], [0.0], ([3], [8]))).item() == pytest.approx(1.313262, abs=1e-6)


def test_ipo_divides_each_side_by_its_own_length() -> None:
    value = IPO(beta=0.25)(pairs([6.0], [4.0], ([2], [8]))).item()
    assert value == pytest.approx((3.0 - 0.5 - 2.0) ** 2, abs=1e-6)


def test_hinge_is_zero_from_a_difference_of_one_over_beta() -> None:
    loss = Hinge(beta=0.05)
    assert one(loss, 19.0) == pytest.approx(0.05, abs=1e-6)
    assert one(loss, 20.0) == pytest.approx(0.0, abs=1e-6)
    assert one(loss, 25.0) == 0.0


def test_orpo_by_its_odds() -> None:
    """Mean token probabilities of 1/2 and 1/3: odds 1 and 1/2."""
    scores = pairs([math.nan], [math.nan], ([4], [6]), ([4 * math.log(1 / 2)], [6 * math.log(1 / 3)]))
    expected = LN2 + 0.1 * math.log(1 + 1 / 2)
    assert ORPO(weight=0.1)(scores).item() == pytest.approx(expected, rel=1e-6)


def test_dpop_penalises_a_negative_chosen_log_ratio() -> None:
    """x_w = -2, x_l = -5, omega 3, beta 0.5: the difference of 3 is less than the penalty of 6."""
    assert DPOP(beta=0.5, penalty=3.0)(pairs([-2.0], [-5.0])).item() == pytest.approx(math.log1p(math.exp(1.5)))
    assert DPOP(beta=0.5, penalty=3.0)(pairs([2.0], [-1.0])).item() == pytest.approx(math.log1p(math.exp(-1.5)))


def test_orpo_of_a_nearly_certain_response() -> None:
    """a = -1e-4 against -2 differs from certainty. At a = 0 the value and `at_start` are finite and equal."""
    scores = pairs([math.nan], [math.nan], logps=([-1e-4], [-2.0]))
    chosen_odds, rejected_odds = (math.exp(a) / -math.expm1(a) for a in (-1e-4, -2.0))
    expected = 1e-4 + 10 * math.log1p(rejected_odds / chosen_odds)
    assert ORPO(weight=10.0)(scores).item() == pytest.approx(expected, rel=1e-5)
    for logps in ([0.0], [-2.0]), ([-2.0], [0.0]), ([-900.0], [-2.0]):
        edge = pairs([math.nan], [math.nan], logps=logps)
        assert ORPO()(edge).item() == pytest.approx(ORPO().at_start(edge), rel=1e-5)


def test_a_sum_shows_the_rewards_of_its_first_term_on_log_ratios() -> None:
    scores = pairs([3.0], [-1.0], ([15], [5]))
    for terms in ((ChosenNLL(), Sigmoid(beta=0.3), IPO()), (Sigmoid(beta=0.3), ChosenNLL())):
        chosen, rejected = Sum(tuple(Term(loss=loss) for loss in terms)).rewards(scores)
        assert (chosen.item(), rejected.item()) == (pytest.approx(0.9), pytest.approx(-0.3))
    chosen, _ = Sum((Term(loss=SIMPO(beta=4.0)), Term(loss=ChosenNLL()))).rewards(scores)
    assert chosen.item() == -8.0


def test_the_clip_of_chi_po_limits_the_scaled_difference() -> None:
    loss = Sigmoid(beta=0.1, clip=2.0)
    assert one(loss, 19.9) == pytest.approx(one(Sigmoid(beta=0.1), 19.9))
    assert one(loss, 500.0) == pytest.approx(math.log1p(math.exp(-2.0)), rel=1e-6)
    assert one(loss, -500.0) == pytest.approx(math.log1p(math.exp(2.0)), rel=1e-6)
    assert loss.clipped(pairs([19.9, -20.1, 500.0], [0.0] * 3)).tolist() == [False, True, True]
    assert not Sigmoid(beta=0.1).clipped(pairs([1e4], [-1e4])).any()


def test_margins_shift_the_scaled_difference() -> None:
    """beta D = 0.4 and a margin of 0.3 leave 0.1, flipped -0.7; of the means, 2 * (0.2 - 0) - 0.3 = 0.1 too."""
    plain = pairs([3.0], [-1.0], ([15], [5]))
    scores = PairScores(**{**vars(plain), "margins": torch.tensor([0.3])})
    d, soft, flipped = 0.1, math.log1p(math.exp(-0.1)), math.log1p(math.exp(0.7))
    assert Sigmoid(beta=0.1)(scores).item() == pytest.approx(soft, rel=1e-5)
    assert Hinge(beta=0.1)(scores).item() == pytest.approx(1 - d, rel=1e-5)
    assert Robust(beta=0.1, flip=0.1)(scores).item() == pytest.approx((0.9 * soft - 0.1 * flipped) / 0.8, rel=1e-5)
    assert Sigmoid(beta=0.1, flip=0.1)(scores).item() == pytest.approx(0.9 * soft + 0.1 * flipped, rel=1e-5)
    means = PairScores(**{**vars(pairs([3.0], [0.0], ([15], [5]))), "margins": torch.tensor([0.3])})
    assert NormalisedSigmoid(beta=2.0)(means).item() == pytest.approx(soft, rel=1e-5)


def test_a_ranking_of_two_is_the_sigmoid_loss_and_of_three_its_likelihood() -> None:
    two = PlackettLuce(beta=0.3)(ranked([4.0, -1.0], [-2.0, 3.0]))
    assert two.tolist() == pytest.approx(Sigmoid(beta=0.3)(pairs([4.0, -2.0], [-1.0, 3.0])).tolist(), rel=1e-6)
    weights = [math.exp(0.5 * x) for x in (2.0, -1.0, 0.5)]
    chance = weights[0] / sum(weights) * weights[1] / (weights[1] + weights[2])
    assert PlackettLuce(beta=0.5)(ranked([2.0, -1.0, 0.5])).item() == pytest.approx(-math.log(chance), rel=1e-6)
    rated = ranked([-1.0, 0.5, 2.0], ratings=[2.0, 1.0, 3.0])
    assert PlackettLuce(beta=0.5)(rated).item() == pytest.approx(-math.log(chance), rel=1e-6)


BETAS = [type(loss) for loss in LOSSES if hasattr(loss, "beta")]


@pytest.mark.parametrize(
    ("kind", "fields", "named"),
    [
        *[
            (kind, {"beta": beta}, "loss.beta")
            for kind in dict.fromkeys([*BETAS, KTO, PlackettLuce])
            for beta in (0.0, -0.1, math.nan, math.inf)
        ],
        *[(kind, {"flip": flip}, "loss.flip") for kind in (Sigmoid, Robust) for flip in (0.5, -0.01, math.nan)],
        (Sigmoid, {"clip": 0.0}, "loss.clip"),
        (EXO, {"smoothing": 0.0}, "loss.smoothing"),
        (EXO, {"smoothing": 0.5}, "loss.smoothing"),
        (DPOP, {"penalty": -1.0}, "loss.penalty"),
        (ORPO, {"weight": 0.0}, "loss.weight"),
        (SIMPO, {"gamma": -0.1}, "loss.gamma"),
        (KTO, {"desirable": 0.0}, "loss.desirable"),
        (KTO, {"undesirable": math.nan}, "loss.undesirable"),
        (Term, {"weight": 0.0}, "loss.terms"),
        (Term, {"weight": math.inf}, "loss.terms"),
        (Sum, {"terms": ()}, "loss.terms is empty"),
    ],
)
def test_bad_hyper_parameters_are_refused_by_name(kind: Any, fields: dict[str, float], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        kind(**fields)


def test_the_registry_holds_every_loss_of_the_module() -> None:
    written = {v for v in vars(preference).values() if isinstance(v, type) and hasattr(v, "at_start")}
    registered = set(typing.get_args(preference.AnyPreferenceLoss))
    assert written == registered
    assert {kind.__name__ for kind in registered} | {"AnyPreferenceLoss", "PairScores"} <= set(preference.__all__)


def test_shapes_are_checked_while_tests_run() -> None:
    with pytest.raises(Exception, match="rejected"):
        PairScores(torch.zeros(2), torch.zeros(3), torch.ones(2, dtype=torch.long), torch.ones(2, dtype=torch.long))
