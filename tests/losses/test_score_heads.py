"""Heads and targets: R4 to R7, stable intervals, thresholds, and the decoding of grades."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from treeward.losses import risk
from treeward.losses.heads import (
    AnyHead,
    Attributes,
    Categorical,
    Logistic,
    Ordinal,
    cumulative_logits,
    expectation,
    free_parameters,
    log_intervals,
    rising_thresholds,
)
from treeward.losses.reward import HLGauss, OneHot, TwoHot, crps, marginal_entropy, pit, to_score

UNIFORM = torch.full((10,), 0.1, dtype=torch.float64).log()


def test_r4_risk_measures_of_the_uniform_distribution() -> None:
    assert expectation(UNIFORM).item() == pytest.approx(5.5, abs=1e-9)
    assert risk.variance(UNIFORM).item() == pytest.approx(8.25, abs=1e-9)
    for level, value in ((0.1, 1.0), (0.2, 1.5), (0.25, 1.8), (0.5, 3.0), (1.0, 5.5)):
        assert risk.cvar(UNIFORM, level).item() == pytest.approx(value, abs=1e-9)
    assert risk.entropic(UNIFORM, 0.5).item() == pytest.approx(3.753187, abs=1e-6)
    assert risk.entropic(UNIFORM, 1.0).item() == pytest.approx(2.843955, abs=1e-6)
    assert risk.entropic(UNIFORM, 1e-6).item() == pytest.approx(5.5 - 0.5e-6 * 8.25, abs=1e-6)
    assert risk.entropic(UNIFORM, 50.0).item() == pytest.approx(1.0, abs=0.06)
    assert risk.tail(UNIFORM, 8).item() == pytest.approx(0.3, abs=1e-9)
    assert [risk.quantile(UNIFORM, q).item() for q in (0.05, 0.1, 0.5, 0.51, 1.0)] == [1.0, 1.0, 5.0, 6.0, 10.0]
    assert risk.mean_minus_sd(UNIFORM, 2.0).item() == pytest.approx(5.5 - 2 * math.sqrt(8.25), abs=1e-9)


def test_risk_measures_refuse_levels_without_a_meaning() -> None:
    for call in (lambda: risk.cvar(UNIFORM, 0.0), lambda: risk.quantile(UNIFORM, 1.1)):
        with pytest.raises(ValueError, match="level"):
            call()
    with pytest.raises(ValueError, match="kappa"):
        risk.entropic(UNIFORM, 0.0)


def test_r5_hl_gauss() -> None:
    result = HLGauss()(torch.tensor([5.0], dtype=torch.float64), 10)[0]
    assert result[2:7].tolist() == pytest.approx([0.0223, 0.2297, 0.4950, 0.2297, 0.0223], abs=1e-4)
    assert risk.variance(result.log()).sqrt().item() == pytest.approx(0.804, abs=1e-3)
    for s, mean in ((1.0, 1.369), (2.0, 2.047), (10.0, 9.631)):
        target = HLGauss()(torch.tensor([s], dtype=torch.float64), 10)[0]
        assert (target @ torch.arange(1.0, 11, dtype=torch.float64)).item() == pytest.approx(mean, abs=1e-3)
        assert target.sum().item() == pytest.approx(1.0, abs=1e-12)


@given(st.floats(1, 10))
def test_r6_two_hot_keeps_the_mean(s: float) -> None:
    target = TwoHot()(torch.tensor([s], dtype=torch.float64), 10)[0]
    assert target.sum().item() == pytest.approx(1.0, abs=1e-12)
    assert (target @ torch.arange(1.0, 11, dtype=torch.float64)).item() == pytest.approx(s, abs=1e-9)
    assert -(target[target > 0] * target[target > 0].log()).sum().item() <= math.log(2) + 1e-9


def test_r6_an_ordinal_head_starts_uniform() -> None:
    head = Ordinal(10)
    outputs = cumulative_logits(torch.zeros(3, 1), free_parameters(head.thresholds()))
    torch.testing.assert_close(head.log_probs(outputs).exp(), torch.full((3, 1, 10), 0.1), atol=1e-6, rtol=1e-5)
    assert head.scores(outputs).tolist() == pytest.approx([5.5] * 3, abs=1e-5)


@given(st.lists(st.floats(-30, 30), min_size=9, max_size=9))
def test_thresholds_cannot_cross_and_come_back_from_their_free_parameters(free: list[float]) -> None:
    tau = rising_thresholds(torch.tensor(free, dtype=torch.float64))
    assert (tau.diff() > 0).all()
    torch.testing.assert_close(rising_thresholds(free_parameters(tau)), tau, atol=1e-6, rtol=1e-6)


def test_r7_crps_by_written_out_numbers() -> None:
    values = [crps(UNIFORM[None], torch.tensor([s], dtype=torch.float64)).item() for s in (1, 3, 4.6, 5.5, 10)]
    assert values == pytest.approx([2.85, 1.45, 0.93, 0.85, 2.85], abs=1e-9)
    point = torch.full((1, 10), -1e9, dtype=torch.float64)
    point[0, 6] = 0.0
    assert crps(point, torch.tensor([7.0], dtype=torch.float64)).item() == pytest.approx(0.0, abs=1e-9)
    assert crps(point, torch.tensor([4.0], dtype=torch.float64)).item() == pytest.approx(3.0, abs=1e-9)


@given(st.lists(st.floats(-3, 3), min_size=6, max_size=6), st.floats(1, 6))
def test_crps_is_the_energy_form(z: list[float], s: float) -> None:
    logp = torch.tensor(z, dtype=torch.float64).log_softmax(0)
    p, k = logp.exp(), torch.arange(1.0, 7, dtype=torch.float64)
    energy = (p * (k - s).abs()).sum() - 0.5 * (p[:, None] * p[None, :] * (k[:, None] - k[None, :]).abs()).sum()
    assert crps(logp[None], torch.tensor([s], dtype=torch.float64)).item() == pytest.approx(energy.item(), abs=1e-9)


def test_pit_of_draws_from_the_stated_distribution_is_uniform() -> None:
    draws = torch.Generator().manual_seed(0)
    logp = torch.tensor([0.1, 0.2, 0.4, 0.3]).double().log().expand(20_000, 4)
    s = torch.multinomial(logp[0].exp(), 20_000, replacement=True, generator=draws).double() + 1
    values = pit(logp, s, torch.rand(20_000, generator=draws, dtype=torch.float64))
    assert values.mean().item() == pytest.approx(0.5, abs=0.01)
    assert values.var().item() == pytest.approx(1 / 12, abs=0.003)


def test_f73_pit_of_ratings_between_two_bins_is_uniform_for_a_calibrated_model() -> None:
    """Ratings 3.25, 6.5 and 7.9 of 10: the model that states their two-hot distribution exactly has nothing to learn.
    Rounding each rating to its nearest bin put all of the first into the lower three quarters."""
    draws = torch.Generator().manual_seed(0)
    s = torch.tensor([3.25, 6.5, 7.9]).double()[torch.randint(0, 3, (6_000,), generator=draws)]
    logp = TwoHot()(s, 10).clamp(min=1e-30).log()
    uniform = torch.rand(6_000, generator=draws, dtype=torch.float64)
    for stated in (logp, TwoHot()(s, 10).mean(0).clamp(min=1e-30).log().expand(6_000, -1)):
        values = pit(stated, s, uniform)
        assert stats.kstest(values.numpy(), "uniform").pvalue > 0.01
    for end in (1.0, 10.0):
        at_end = pit(torch.full((4, 10), 0.1).double().log(), torch.full((4,), end).double(), uniform[:4])
        assert at_end.tolist() == pytest.approx([(end - 1 + u) / 10 for u in uniform[:4].tolist()])


def test_log_intervals_hold_where_the_plain_difference_is_zero() -> None:
    far = torch.tensor([[40.0, 41.0, 42.0]])
    result = log_intervals(far)[0]
    assert torch.isfinite(result).all()
    assert result[1].item() == pytest.approx(-40.0 + math.log1p(-math.exp(-1.0)), abs=1e-4)
    assert torch.isfinite(log_intervals(torch.tensor([[-1000.0, -999.0, 1000.0]]))).all()
    near = torch.tensor([[-1.0, 0.5, 2.0]], dtype=torch.float64)
    plain = torch.sigmoid(near)[0]
    wanted = [plain[0], plain[1] - plain[0], plain[2] - plain[1], 1 - plain[2]]
    assert log_intervals(near)[0].exp().tolist() == pytest.approx([w.item() for w in wanted], abs=1e-12)


@given(st.floats(-20, 20), st.floats(-20, 20))
def test_the_logistic_head_is_a_distribution_around_its_location(z0: float, z1: float) -> None:
    head = Logistic(10)
    outputs = torch.tensor([[z0, z1]], dtype=torch.float64)
    assert head.log_probs(outputs).exp().sum().item() == pytest.approx(1.0, abs=1e-9)
    higher = head.scores(outputs + torch.tensor([[1.0, 0.0]]))
    assert higher.item() >= head.scores(outputs).item() - 1e-9


def test_the_logistic_head_starts_in_the_middle_with_a_quarter_of_the_bins_as_scale() -> None:
    p = Logistic(10).log_probs(torch.zeros(1, 2, dtype=torch.float64)).exp()[0, 0]
    assert p.tolist() == pytest.approx(p.flip(0).tolist(), abs=1e-12)
    assert p[0].item() == pytest.approx(1 / (1 + math.exp((5.5 - 1.5) / 2.5)), abs=1e-9)


def test_attributes_weigh_their_means() -> None:
    outputs = torch.log(torch.tensor([[0.2, 0.3, 0.5, 0.7, 0.2, 0.1]]))
    assert Attributes(("a", "b"), 3).scores(outputs).item() == pytest.approx((2.3 + 1.4) / 2, abs=1e-6)
    assert Attributes(("a", "b"), 3, (1.0, -0.5)).scores(outputs).item() == pytest.approx(2.3 - 0.7, abs=1e-6)


def test_grades_become_scores_and_zero_never_wraps_to_the_top() -> None:
    grades = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0])
    assert to_score(grades, (0.0, 4.0), 10).tolist() == [1.0, 3.25, 5.5, 7.75, 10.0]
    assert OneHot()(torch.tensor([1.0, 3.25, 10.0]), 10).argmax(1).tolist() == [0, 2, 9]
    for wrong in (-0.1, 4.1, math.nan):
        with pytest.raises(ValueError, match="the stated scale is"):
            to_score(torch.tensor([wrong]), (0.0, 4.0), 10)


def test_a_constant_guess_costs_the_entropy_of_the_marginal() -> None:
    targets = OneHot()(torch.tensor([1.0, 1.0, 2.0, 3.0]), 3)
    assert marginal_entropy(targets) == pytest.approx(1.5 * math.log(2), abs=1e-9)


SENSELESS = [
    lambda: Categorical(1),
    lambda: Ordinal(0),
    lambda: Attributes((), 5),
    lambda: Attributes(("a",), 5, (1.0, 2.0)),
    lambda: Logistic(10, floor=3.0),
]


@pytest.mark.parametrize("make", SENSELESS)
def test_heads_without_a_meaning_are_refused(make: object) -> None:
    with pytest.raises(ValueError, match="head"):
        make()  # type: ignore[operator]


def test_every_head_scores_its_middle_at_zero() -> None:
    heads: list[AnyHead] = [Categorical(7), Logistic(7), Attributes(("a", "b"), 7)]
    for head in heads:
        assert head.scores(torch.zeros(2, head.width)).tolist() == pytest.approx([4.0, 4.0], abs=1e-5)
