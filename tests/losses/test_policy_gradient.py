"""Policy gradients by enumeration: every draw of a three-armed bandit, every sequence of two tokens, in float64."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from treeward.errors import UserError
from treeward.losses.advantages import (
    AnyBaseline,
    Greedy,
    GroupMean,
    GroupZScore,
    LeaveOneOut,
    MovingAverage,
    NoBaseline,
    Rewards,
    Whitened,
)
from treeward.losses.policy_gradient import (
    AnyEstimator,
    AnyKL,
    ClippedResponses,
    ClippedTokens,
    InLoss,
    InReward,
    InRewardToGo,
    Reinforce,
    SampledTokens,
    k2_loss,
)

LOGITS = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64)
ARMS = torch.tensor([1.0, 0.0, -2.0], dtype=torch.float64)
EXACT = (0.520704, 0.065734, -0.586438)
"""The gradient of the mean reward of the bandit, by hand: pi_a (r_a - J)."""


def bandit_gradients(
    baseline: AnyBaseline, samples: int, arms: Tensor = ARMS, estimator: AnyEstimator | None = None, **facts: Any
) -> tuple[Tensor, Tensor]:
    """Over all draws of `samples` arms: the expectation of minus the loss's gradient, and its summed variance."""
    estimator = estimator or Reinforce()
    mean, square = torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    for draw in itertools.product(range(3), repeat=samples):
        logits = LOGITS.clone().requires_grad_()
        logps = logits.log_softmax(0)[list(draw)]
        rewards = Rewards(arms[list(draw)][None], torch.ones(1, samples, dtype=torch.bool), **facts)
        advantages = baseline(rewards)[0]
        tokens = SampledTokens(logps, logps.detach(), advantages, torch.arange(samples), samples)
        (gradient,) = torch.autograd.grad(-estimator(tokens).mean(), logits)
        probability = logps.detach().sum().exp()
        mean += probability * gradient
        square += probability * gradient.square()
    return mean, (square - mean.square()).sum()


UNBIASED: list[tuple[AnyBaseline, dict[str, Any]]] = [
    (NoBaseline(), {}),
    (MovingAverage(), {"average": -0.3}),
    (MovingAverage(), {"average": 7.0}),
    (Greedy(), {"greedy": torch.tensor([1.0], dtype=torch.float64)}),
    (LeaveOneOut(), {}),
]


@pytest.mark.parametrize("samples", [2, 3, 4])
@pytest.mark.parametrize(("baseline", "facts"), UNBIASED)
def test_g3_the_expected_gradient_is_that_of_the_mean_reward(
    baseline: AnyBaseline, facts: dict[str, Any], samples: int
) -> None:
    gradient, _ = bandit_gradients(baseline, samples, **facts)
    assert gradient.tolist() == pytest.approx(EXACT, abs=1e-6)


@pytest.mark.parametrize(("samples", "factor"), [(2, 1 / 2), (3, 2 / 3), (4, 3 / 4)])
@pytest.mark.parametrize("baseline", [GroupMean(), MovingAverage()])
def test_g4_an_own_mean_scales_the_gradient(baseline: AnyBaseline, samples: int, factor: float) -> None:
    """A moving average starts from the first rollout's own mean."""
    gradient, _ = bandit_gradients(baseline, samples)
    assert gradient.tolist() == pytest.approx([factor * value for value in EXACT], abs=1e-6)


def test_g5_the_z_score_is_another_direction() -> None:
    gradient, _ = bandit_gradients(GroupZScore(), 2)
    assert gradient.tolist() == pytest.approx([0.171341, -0.013217, -0.158124], abs=1e-6)


@pytest.mark.parametrize(
    ("baseline", "facts", "variance"),
    [(NoBaseline(), {}, 0.2512), (MovingAverage(), {"average": -0.3}, 0.2092), (LeaveOneOut(), {}, 1.0742)],
)
def test_g6_variance_with_two_samples(baseline: AnyBaseline, facts: dict[str, Any], variance: float) -> None:
    assert bandit_gradients(baseline, 2, **facts)[1].item() == pytest.approx(variance, abs=1e-4)


@pytest.mark.parametrize("estimator", [Reinforce(), ClippedTokens(), ClippedResponses()])
@pytest.mark.parametrize("baseline", [*(b for b, _ in UNBIASED), GroupMean(), GroupZScore(), Whitened()])
def test_g10_a_constant_reward_teaches_nothing(baseline: AnyBaseline, estimator: AnyEstimator) -> None:
    facts = {"greedy": torch.tensor([0.7], dtype=torch.float64), "average": 0.2}
    gradient, _ = bandit_gradients(baseline, 3, torch.full((3,), 0.7, dtype=torch.float64), estimator, **facts)
    assert gradient.abs().max().item() < 1e-12


@pytest.mark.parametrize("estimator", [ClippedTokens(), ClippedResponses()])
def test_clipped_losses_have_the_same_gradient_at_the_policy_that_sampled(estimator: AnyEstimator) -> None:
    gradient, _ = bandit_gradients(LeaveOneOut(), 3, estimator=estimator)
    assert gradient.tolist() == pytest.approx(EXACT, abs=1e-6)


def test_clipped_losses_by_hand() -> None:
    """Two responses of two and one tokens; ratios 1.5 and 0.5, then 0.5."""
    logps = torch.tensor([1.5, 0.5, 0.5]).log().requires_grad_()
    tokens = SampledTokens(logps, torch.zeros(3), torch.tensor([1.0, 1.0, -2.0]), torch.tensor([0, 0, 1]), 2)
    by_token = ClippedTokens(clip=0.2)(tokens)
    assert by_token.tolist() == pytest.approx([-(1.2 + 0.5), 2 * 0.8])
    (gradient,) = torch.autograd.grad(by_token.sum(), logps)
    assert gradient.tolist() == pytest.approx([0.0, -0.5, 0.0])
    whole = ClippedResponses(clip=0.2)(tokens)
    assert whole.tolist() == pytest.approx([-0.75, 2 * 0.8])  # the ratios of whole responses are 0.75 and 0.5
    assert ClippedTokens(clip=0.2, divisor=4)(tokens).tolist() == pytest.approx([-1.7 / 4, 1.6 / 4])


def test_reinforce_sums_over_tokens_and_divides_by_a_constant() -> None:
    logps = torch.tensor([-1.0, -2.0, -3.0])
    tokens = SampledTokens(logps, logps, torch.tensor([2.0, 2.0, -1.0]), torch.tensor([0, 0, 1]), 2)
    assert Reinforce()(tokens).tolist() == [6.0, -3.0]
    assert Reinforce(divisor=10)(tokens).tolist() == pytest.approx([0.6, -0.3])


REFERENCE = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
PLACES = [InReward(), InRewardToGo(), InLoss()]


def kl_gradient(kl: AnyKL, logits: Tensor, reference: Tensor, rewards: Tensor, beta: float) -> Tensor:
    """Minus the expected gradient of the loss over all sequences of two tokens: `logits` are those of the first token
    (row 0) and of the second after each first one (rows 1 to V); `reference` are log-probabilities of the same shape.
    """
    total = torch.zeros_like(logits)
    size = logits.shape[1]
    for first, second in itertools.product(range(size), repeat=2):
        parameters = logits.clone().requires_grad_()
        every = parameters.log_softmax(1)
        logps = torch.stack([every[0, first], every[1 + first, second]])
        q = torch.stack([reference[0, first], reference[1 + first, second]])
        returns = kl.returns(rewards[first, second].item(), (logps - q).detach(), beta)
        tokens = SampledTokens(logps, logps.detach(), returns, torch.zeros(2, dtype=torch.long), 1)
        loss = Reinforce()(tokens)
        if isinstance(kl, InLoss):
            loss = loss + beta * k2_loss(tokens, q)
        (gradient,) = torch.autograd.grad(-loss.sum(), parameters)
        total += logps.detach().sum().exp() * gradient
    return total


@pytest.mark.parametrize("kl", PLACES)
def test_g11_every_place_of_the_kl_has_the_gradient_of_the_reverse_kl(kl: AnyKL) -> None:
    generator = torch.Generator().manual_seed(0)
    logits, other = (torch.randn(4, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    rewards = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    reference, beta = other.log_softmax(1), 0.7
    parameters = logits.clone().requires_grad_()
    every = parameters.log_softmax(1)
    log_p = every[0][:, None] + every[1:]
    log_q = reference[0][:, None] + reference[1:]
    value = (log_p.exp() * (rewards - beta * (log_p - log_q))).sum()
    (exact,) = torch.autograd.grad(value, parameters)
    assert kl_gradient(kl, logits, reference, rewards, beta) == pytest.approx(exact, abs=1e-12)


@pytest.mark.parametrize("kl", PLACES)
def test_g8_the_fixed_point_is_the_reference_times_exp_reward_over_beta(kl: AnyKL) -> None:
    optimum = REFERENCE * (ARMS / 0.5).exp()
    optimum /= optimum.sum()
    assert optimum.tolist() == pytest.approx([0.745125, 0.252104, 0.002770], abs=1e-6)
    value = 0.5 * (REFERENCE * (ARMS / 0.5).exp()).sum().log()
    assert value.item() == pytest.approx(0.342383, abs=1e-6)
    if not isinstance(kl, InLoss):
        credited = [kl.returns(r.item(), (p.log() - q.log())[None], 0.5).item()
                    for r, p, q in zip(ARMS, optimum, REFERENCE, strict=True)]  # fmt: skip
        assert credited == pytest.approx([value.item()] * 3)
    # as the first token of two, with a second token that is the same whatever the policy
    certain = torch.zeros(3, 3, dtype=torch.float64)
    logits = torch.cat([optimum.log()[None], certain])
    reference = torch.cat([REFERENCE.log()[None], certain.log_softmax(1)])
    gradient = kl_gradient(kl, logits, reference, ARMS[:, None].expand(3, 3), 0.5)
    assert gradient.abs().max().item() < 1e-12


def test_the_adaptive_coefficient_moves_towards_the_target() -> None:
    kl = InReward(beta=0.1, target=2.0)
    assert kl.adapted(0.1, 2.0) == 0.1
    assert kl.adapted(0.1, 2.2) == pytest.approx(0.1 * 1.01)
    assert kl.adapted(0.1, 100.0) == pytest.approx(0.1 * 1.02)  # the error is clipped to 20 %
    assert kl.adapted(0.1, 0.0) == pytest.approx(0.1 * 0.98)
    assert InReward(beta=0.1).adapted(0.1, 100.0) == 0.1


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: MovingAverage(decay=1.0), "baseline.decay is 1.0"),
        (lambda: ClippedTokens(clip=0.0), "estimator.clip is 0.0"),
        (lambda: Reinforce(divisor=0.0), "estimator.divisor is 0.0"),
        (lambda: InReward(beta=-1.0), "kl.beta is -1.0"),
        (lambda: InReward(beta=0.0, target=1.0), "kl.target is 1.0"),
        (lambda: InLoss(rate=0.5), "kl.rate is 0.5, but kl.target is not set"),
    ],
)
def test_what_cannot_work_is_refused(build: Any, named: str) -> None:
    with pytest.raises(UserError, match=named):
        build()


# Baselines


def rewards_of(rows: list[list[float]], used: list[list[bool]] | None = None, **facts: Any) -> Rewards:
    values = torch.tensor(rows, dtype=torch.float64)
    return Rewards(values, torch.ones_like(values).bool() if used is None else torch.tensor(used), **facts)


def test_g1_leave_one_out_by_hand() -> None:
    rewards = rewards_of([[1, 2, 6, 3]])
    assert LeaveOneOut()(rewards)[0].tolist() == pytest.approx([-8 / 3, -4 / 3, 4, 0])
    assert LeaveOneOut()(rewards)[0].tolist() == pytest.approx((4 / 3 * GroupMean()(rewards))[0].tolist())


@pytest.mark.parametrize("baseline", [LeaveOneOut(), GroupMean(), GroupZScore(), Whitened()])
def test_equal_rewards_give_exactly_nothing(baseline: AnyBaseline) -> None:
    assert not baseline(rewards_of([[0.1] * 7, [0.1] * 7])).any()
    assert not baseline(rewards_of([[1e9 + 0.1] * 3])).any()


@pytest.mark.parametrize("baseline", [LeaveOneOut(), GroupMean(), GroupZScore()])
def test_prompts_do_not_see_each_other_and_a_constant_changes_nothing(baseline: AnyBaseline) -> None:
    rows = [[0.3, -1.0, 0.5], [2.0, 2.5, -4.0]]
    together = baseline(rewards_of(rows))
    assert together.sum(1).abs().max().item() < 1e-12
    shifted = baseline(rewards_of([[value + 100 * g for value in row] for g, row in enumerate(rows)]))
    assert torch.allclose(together, shifted, atol=1e-10)


def test_f66_the_variance_of_large_rewards_keeps_its_digits() -> None:
    """E[x^2] - E[x]^2 in float32 gives 0 or a negative number here, and an advantage of thousands."""
    scores = GroupZScore()(rewards_of([[1e4, 1e4 + 1], [1e8, 1e8 + 1]]))
    assert scores.tolist() == [pytest.approx([-math.sqrt(0.5), math.sqrt(0.5)])] * 2


def test_whitening_is_over_the_whole_rollout() -> None:
    whitened = Whitened()(rewards_of([[1.0, 2.0], [3.0, 6.0]]))
    assert whitened.mean().item() == pytest.approx(0)
    assert whitened.std().item() == pytest.approx(1)
    assert whitened[1, 1].item() == pytest.approx((6 - 3) / math.sqrt(14 / 3))


def test_the_moving_average_is_of_earlier_rollouts_only() -> None:
    """F35: a baseline that already holds this rollout's rewards would shrink the gradient."""
    first, second = rewards_of([[1.0, 3.0]]), rewards_of([[5.0, 7.0]], average=2.0)
    baseline = MovingAverage(decay=0.75)
    assert baseline(first).tolist() == [[-1.0, 1.0]]
    assert baseline.updated(first) == 2.0
    assert baseline(second).tolist() == [[3.0, 5.0]]
    assert baseline.updated(second) == 0.75 * 2.0 + 0.25 * 6.0


@pytest.mark.parametrize("baseline", [LeaveOneOut(), GroupMean(), GroupZScore(), Whitened(), MovingAverage()])
def test_masked_samples_get_nothing_and_enter_no_mean(baseline: AnyBaseline) -> None:
    masked = baseline(rewards_of([[1.0, 99.0, 4.0], [2.0, 5.0, -99.0]], [[True, False, True], [True, True, False]]))
    without = baseline(rewards_of([[1.0, 4.0], [2.0, 5.0]]))
    assert masked[0, 1] == masked[1, 2] == 0
    kept = torch.cat([masked[0, [0, 2]], masked[1, :2]])
    assert kept.tolist() == pytest.approx(without.flatten().tolist())


def test_a_prompt_with_one_sample_left_has_no_leave_one_out() -> None:
    assert not LeaveOneOut()(rewards_of([[1.0, 4.0]], [[True, False]])).any()
