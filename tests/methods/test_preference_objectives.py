"""Labelled responses, rankings, margins, weights and divergences through the trainer, against plain rows."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from fixed_reference import FixedReference
from torch.nn.functional import softplus

from fixtures import BuildModel, BuildPolicy, Grow, PlainLogps
from treeward.errors import UserError
from treeward.losses import preference as p
from treeward.losses.divergences import Alpha, ChiSquaredMixed, ForwardKL, JensenShannon
from treeward.methods.dpo import (
    DPOConfig,
    LabelledObjective,
    PairObjective,
    RankingObjective,
    dpo_steps,
    labels,
    mismatched,
)
from treeward.models.policy import Policy
from treeward.models.reference import ReferenceModel
from treeward.training.loop import Loop
from treeward.training.objectives import Terms, prepare
from treeward.trees.forest import pack
from treeward.trees.tokens import TokenTree
from treeward.trees.verify import verify

Build = Callable[..., Any]
LN2 = math.log(2)


@pytest.fixture
def ratios(tiny: BuildModel, plain_logps: PlainLogps) -> Callable[..., list[torch.Tensor]]:
    """ratios(trees): seed 0 against seed 1, per branch of each tree, one plain row at a time."""

    def compute(trees: list[TokenTree]) -> list[torch.Tensor]:
        with torch.no_grad():
            sums = [
                [
                    torch.stack([plain_logps(model, TokenTree(t.prompt, (b,))).sum() for b in t.branches])
                    for model in (tiny("llama"), tiny("llama", seed=1))
                ]
                for t in trees
            ]
        return [logp - reference_logp for logp, reference_logp in sums]

    return compute


def first(policy: BuildPolicy, trees: list[TokenTree], config: DPOConfig) -> dict[str, float]:
    """The metrics of the first step of seed 0 against the reference of seed 1."""
    step = next(dpo_steps(policy(), trees, config, ReferenceModel.of(policy(seed=1))))
    return step.numbers()


def single(trees: list[TokenTree], label: Callable[[int], float]) -> list[TokenTree]:
    return [replace(tree, ratings=((label(n),),)) for n, tree in enumerate(trees)]


def test_kto_on_labelled_responses_by_plain_rows(policy: BuildPolicy, grow: Grow, ratios: Build) -> None:
    """z0 is the mean over each prompt with the next tree's response; here it is above 0."""
    trees = single(grow(7, branches=1), lambda n: float(n % 3 == 0))
    config = DPOConfig(steps=1, batch_size=7, loss=p.KTO(beta=0.05, desirable=1.4))
    batch = config.batches(trees).batch(0)
    others = [
        TokenTree(a.prompt, (b.branches[0][: max(t.longest_path for t in batch) - len(a.prompt)],))
        for a, b in zip(batch, [*batch[1:], batch[0]], strict=True)
    ]
    x = torch.cat(ratios(batch))
    mean = torch.cat(ratios(others)).mean().item()
    z = max(0.0, mean)
    above = torch.sigmoid(0.05 * (x - z))
    wanted = [1.4 * (1 - q) if t.ratings == ((1.0,),) else q for t, q in zip(batch, above, strict=True)]
    step = first(policy, trees, config)
    assert step["loss"] == pytest.approx(torch.stack(wanted).mean().item(), abs=1e-5)
    assert step["rewards/reference"] == pytest.approx(0.05 * z, abs=1e-5)
    signs = torch.tensor([1.0 if t.ratings == ((1.0,),) else -1.0 for t in batch])
    assert step["rewards/margins"] == pytest.approx((signs * 0.05 * (x - z)).mean().item(), abs=1e-5)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_reference_point_is_never_below_zero_and_has_no_gradient(
    sign: int, policy: BuildPolicy, grow: Grow, ratios: Build
) -> None:
    trees = single(grow(5, branches=1, seed=3), lambda n: float(n % 2))
    seeds = (0, 1) if sign > 0 else (1, 0)
    ours, reference = policy(seed=seeds[0]), ReferenceModel.of(policy(seed=seeds[1]))
    objective = LabelledObjective(p.KTO(), reference)
    prepare(objective, ours.packed, trees, 1000)
    mean = sign * torch.cat(ratios(mismatched(trees))).mean().item()
    assert abs(mean) > 0.1
    assert objective.z0 == pytest.approx(max(0.0, mean), abs=1e-4)
    assert isinstance(objective.z0, float)


def test_kto_takes_pairs_and_begins_at_one_half(policy: BuildPolicy, grow: Grow) -> None:
    config = DPOConfig(steps=1, batch_size=6, loss=p.KTO())
    mixed = [*grow(3), *single(grow(3, branches=1, seed=1), lambda n: float(n == 1))]
    (step,) = dpo_steps(policy(), mixed, config)
    assert step.numbers()["loss"] == pytest.approx(0.5, abs=1e-6)
    assert labels(mixed).tolist() == [True, False] * 3 + [False, True, False]


def test_kto_pulls_desirable_responses_above_the_others(policy: BuildPolicy, grow: Grow, ratios: Build) -> None:
    trees = single(grow(6, branches=1), lambda n: float(n % 2))
    *_, last = dpo_steps(policy(), trees, DPOConfig(steps=25, batch_size=6, lr=1e-2, loss=p.KTO(beta=0.3)))
    assert last.numbers()["rewards/accuracies"] == 1.0
    assert last.numbers()["loss"] < 0.3


def test_mismatched_trees_have_other_prompts_and_stay_within_the_longest_path(grow: Grow) -> None:
    trees = grow(6, longest=30)
    checks = mismatched(trees)
    assert len(checks) == 6
    assert max(tree.longest_path for tree in checks) <= max(tree.longest_path for tree in trees)
    for tree, original in zip(checks, trees, strict=True):
        assert tree.prompt == original.prompt
    twice = [trees[0], replace(trees[1], prompt=trees[0].prompt), trees[2]]
    assert [t.branches[0][:1] for t in mismatched(twice)[:2]] == [trees[2].branches[0][:1]] * 2
    assert mismatched([trees[0], replace(trees[1], prompt=trees[0].prompt)]) == []


@pytest.mark.parametrize("ratings", [(), ((0.5,),), ((2.0,),)])
def test_kto_refuses_a_response_without_a_label(ratings: Any, policy: BuildPolicy, grow: Grow) -> None:
    trees = [replace(tree, ratings=ratings) for tree in grow(2, branches=1)]
    with pytest.raises(UserError, match="labelled 1 or 0"):
        next(dpo_steps(policy(), trees, DPOConfig(steps=1, loss=p.KTO())))


def test_rankings_by_plain_rows(policy: BuildPolicy, grow: Grow, ratios: Build) -> None:
    trees = [*grow(3, branches=3), *grow(2, branches=2, seed=1), *grow(2, branches=4, seed=2)]
    config = DPOConfig(steps=1, batch_size=7, loss=p.PlackettLuce(beta=0.05))
    step = first(policy, trees, config)
    wanted = []
    for x in ratios(trees):
        r = 0.05 * x
        wanted.append(sum((r[k:].logsumexp(0) - r[k] for k in range(len(r))), torch.zeros(())))
    assert step["loss"] == pytest.approx(torch.stack(wanted).mean().item(), abs=1e-5)
    ends = torch.stack([0.05 * (x[0] - x[-1]) for x in ratios(trees)])
    assert step["rewards/margins"] == pytest.approx(ends.mean().item(), abs=1e-5)


def test_ratings_rank_the_branches_of_a_tree(policy: BuildPolicy, grow: Grow) -> None:
    trees = grow(4, branches=3)
    config = DPOConfig(steps=1, batch_size=4, loss=p.PlackettLuce(beta=0.05))
    mixed = [(t.branches[2], t.branches[0], t.branches[1]) for t in trees]
    rated = [
        replace(t, branches=b, ratings=((1.0,), (3.0,), (2.0,))) for t, b in zip(trees, mixed, strict=True)
    ]  # fmt: skip
    plain, other = first(policy, trees, config), first(policy, rated, config)
    for name in ("loss", "rewards/margins", "rewards/chosen"):
        assert other[name] == pytest.approx(plain[name], abs=1e-5)
    (start,) = dpo_steps(policy(), trees, config)
    assert start.numbers()["loss"] == pytest.approx(math.log(6), abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("divergence", [ForwardKL(), JensenShannon(), Alpha(0.3), ChiSquaredMixed()], ids=repr)
@pytest.mark.parametrize("loss", [p.Sigmoid(beta=0.05), p.PlackettLuce(beta=0.05), p.Sum()], ids=repr)
def test_a_divergence_changes_what_the_loss_sees(
    divergence: Any,
    loss: Any,
    policy: BuildPolicy,
    grow: Grow,
    ratios: Build,
    tiny: BuildModel,
    plain_logps: PlainLogps,
) -> None:
    trees = grow(6, longest=4)
    step = first(policy, trees, DPOConfig(steps=1, batch_size=6, loss=loss, divergence=divergence))
    s = torch.stack([divergence.score(x) for x in ratios(trees)])
    beta = 0.1 if isinstance(loss, p.Sum) else 0.05
    expected = softplus(-beta * (s[:, 0] - s[:, 1])).mean().item()
    if isinstance(loss, p.Sum):
        with torch.no_grad():
            nll = [-plain_logps(tiny("llama"), TokenTree(t.prompt, t.branches[:1])).mean().item() for t in trees]
        expected += sum(nll) / 6
    assert step["loss"] == pytest.approx(expected, rel=1e-4, abs=1e-5)
    x = torch.stack(ratios(trees))
    assert step["divergence/clamped"] == pytest.approx(divergence.clamped(x).float().mean())
    if not isinstance(loss, p.PlackettLuce):
        sides = [step["logratios/chosen"], step["logratios/rejected"]]
        assert sides == pytest.approx(x.mean(0).tolist(), abs=1e-4)


def terms_of(objective: Any, policy: Policy, trees: list[TokenTree]) -> Terms:
    """What the objective computes of these trees as one batch in one forest."""
    verify(policy.packed, trees)
    prepare(objective, policy.packed, trees, 1000)
    terms: Terms = objective(policy.packed, pack(trees))
    return terms


def test_the_clamp_rate_counts_both_sides(policy: BuildPolicy, grow: Grow) -> None:
    """Four log-ratios are put at -40, -40, 5 and -29: half of them lie in the tail of forward KL."""
    trees, ours = grow(2), policy()
    reference = FixedReference.at(ours, trees, [-40.0, -40.0], [5.0, -29.0])
    terms = terms_of(PairObjective(p.Sigmoid(), reference, ForwardKL()), ours, trees)
    assert terms.metrics["divergence/clamped"].tolist() == [1.0, 0.0]
    assert torch.isfinite(terms.values).all()
    assert "divergence/clamped" not in first(policy, trees, DPOConfig(steps=1, batch_size=2))


def test_the_clamp_rate_of_a_ranking_is_a_mean_over_its_branches(policy: BuildPolicy, grow: Grow) -> None:
    trees, ours = [*grow(1, branches=3), *grow(1, seed=1)], policy()
    reference = FixedReference.at(ours, trees, [-40.0, -40.0, 5.0], [0.0, -31.0])
    terms = terms_of(RankingObjective(p.PlackettLuce(), reference, ForwardKL()), ours, trees)
    assert terms.metrics["divergence/clamped"].tolist() == pytest.approx([2 / 3, 1 / 2])


def test_pairs_that_a_clip_holds_are_counted(policy: BuildPolicy, grow: Grow) -> None:
    """beta D is 1.9, 2.1 and -3, clipped to 2; in a sum too, and without a clip there is nothing to count."""
    trees, ours, loss = grow(3), policy(), p.Sigmoid(beta=0.1, clip=2.0)
    reference = FixedReference.at(ours, trees, [19.0, 0.0], [20.0, -1.0], [-30.0, 0.0])
    for clipped in (loss, p.Sum((p.Term(loss=p.ChosenNLL()), p.Term(loss=loss)))):
        terms = terms_of(PairObjective(clipped, reference), ours, trees)
        assert terms.metrics["loss/clipped"].tolist() == [0.0, 1.0, 1.0]
    assert "loss/clipped" not in terms_of(PairObjective(p.Sigmoid(), reference), ours, trees).metrics


def test_margins_come_from_ratings_and_are_capped(policy: BuildPolicy, grow: Grow) -> None:
    """Gaps of 0.5 and 3 under a margin of 0.4: softplus(0.2) and softplus(0.4); without ratings 0.4 for both."""
    gaps = (0.5, 3.0)
    trees = [replace(t, ratings=((1 + gap,), (1.0,))) for t, gap in zip(grow(2), gaps, strict=True)]
    (step,) = dpo_steps(policy(), trees, DPOConfig(steps=1, batch_size=2, margin=0.4))
    soft = [math.log1p(math.exp(value)) for value in (0.2, 0.4)]
    assert step.numbers()["loss"] == pytest.approx(sum(soft) / 2, abs=1e-6)
    (step,) = dpo_steps(policy(), grow(2), DPOConfig(steps=1, batch_size=2, margin=0.4))
    assert step.numbers()["loss"] == pytest.approx(soft[1], abs=1e-6)


def test_a_pairs_own_margin_goes_before_the_runs(policy: BuildPolicy, grow: Grow) -> None:
    """Own margins of 0 and 0.9 and none, under the run's 0.4."""
    trees = [replace(tree, margin=m) for tree, m in zip(grow(3), (0.0, 0.9, None), strict=True)]
    (step,) = dpo_steps(policy(), trees, DPOConfig(steps=1, batch_size=3, margin=0.4))
    soft = [math.log1p(math.exp(value)) for value in (0.0, 0.9, 0.4)]
    assert step.numbers()["loss"] == pytest.approx(sum(soft) / 3, abs=1e-6)
    (step,) = dpo_steps(policy(), trees, DPOConfig(steps=1, batch_size=3))
    assert step.numbers()["loss"] == pytest.approx((soft[0] + soft[1] + LN2) / 3, abs=1e-6)


@pytest.mark.parametrize("loss", [p.IPO(), p.KTO(), p.PlackettLuce(), p.SIMPO()], ids=repr)
def test_rows_with_margins_are_refused_by_losses_without(loss: Any, policy: BuildPolicy, grow: Grow) -> None:
    trees = [replace(tree, margin=0.5) for tree in grow(2)]
    with pytest.raises(UserError, match=r"2 rows have a margin, but loss.kind \w+ takes none; take the column out"):
        next(dpo_steps(policy(), trees, DPOConfig(steps=1, batch_size=2, loss=loss)))


@pytest.mark.parametrize("budget", [None, 30])
def test_weights_multiply_where_the_mean_is_taken(budget: int | None, policy: BuildPolicy, grow: Grow) -> None:
    trees = [replace(tree, weight=w) for tree, w in zip(grow(4), (0.0, 1.0, 2.0, 5.0), strict=True)]
    (step,) = dpo_steps(policy(), trees, DPOConfig(steps=1, batch_size=4, token_budget=budget))
    assert step.numbers()["loss"] == pytest.approx(LN2 * 8 / 4, abs=1e-6)
    (step,) = dpo_steps(policy(), trees, DPOConfig(steps=1, batch_size=4, loss=p.KTO()))
    assert step.numbers()["loss"] == pytest.approx(0.5 * 16 / 8, abs=1e-6)


def test_a_pair_of_weight_nought_teaches_nothing(policy: BuildPolicy, grow: Grow) -> None:
    trees = grow(3)
    gradients = []
    for used in ([*trees[:2], replace(trees[2], weight=0.0)], [trees[0], trees[1]]):
        ours = policy()
        verify(ours.packed, used)
        terms = terms_of(PairObjective(p.Sigmoid(), ReferenceModel.of(policy(seed=1))), ours, used)
        losses = terms.values if terms.weights is None else terms.weights * terms.values
        losses.sum().backward()
        gradients.append(torch.cat([q.grad.flatten() for q in ours.packed.parameters() if q.grad is not None]))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("loss", [p.ORPO(), p.SIMPO(), p.ChosenNLL(), p.Sum((p.Term(loss=p.ORPO()),))], ids=repr)
def test_losses_without_a_reference_compute_none(loss: Any, policy: BuildPolicy, grow: Grow) -> None:
    """One that is passed has no log-probabilities of any tree."""
    ours = policy()
    config = DPOConfig(steps=12, batch_size=4, lr=1e-2, loss=loss)
    first_step, *_, last = dpo_steps(ours, grow(4), config, FixedReference(ours, {}))
    assert last.numbers()["loss"] < first_step.numbers()["loss"]
    assert math.isfinite(last.numbers()["rewards/margins"])
    assert "logratios/chosen" not in last.numbers()


@pytest.mark.parametrize(
    "loss",
    [p.IPO(), p.NormalisedSigmoid(), p.KTO(), p.ORPO(), p.SIMPO(), p.APOZero(), p.APODown(), p.NCA(), p.BCO(), p.DPOP(),
     p.SPPOHard(), p.ChosenNLL(), p.Sum((p.Term(), p.Term(loss=p.IPO())))],
    ids=repr,
)  # fmt: skip
def test_a_divergence_that_does_not_go_with_the_loss_is_refused_with_the_reason(loss: Any) -> None:
    with pytest.raises(UserError, match=r"divergence\.kind JensenShannon does not go with loss\.kind"):
        DPOConfig(loss=loss, divergence=JensenShannon())
    DPOConfig(loss=loss)


@pytest.mark.parametrize("loss", [p.IPO(), p.KTO(), p.PlackettLuce(), p.SIMPO(), p.NCA()], ids=repr)
def test_a_margin_that_the_loss_does_not_take_is_refused(loss: Any) -> None:
    with pytest.raises(UserError, match=r"margin is 0\.2, but loss\.kind"):
        DPOConfig(loss=loss, margin=0.2)


def test_a_raw_rating_gap_is_refused_as_a_margin() -> None:
    with pytest.raises(UserError, match=r"margin is 2\.0; it must be in"):
        DPOConfig(margin=2.0)


def test_a_plain_function_is_a_loss(policy: BuildPolicy, grow: Grow) -> None:
    """The same numbers as the class that has the same equation."""

    def sigmoid(pairs: p.PairScores) -> torch.Tensor:
        return softplus(-0.1 * (pairs.chosen_logratios - pairs.rejected_logratios))

    trees, results = grow(5), []
    for loss in (sigmoid, p.Sigmoid(beta=0.1)):
        ours = policy()
        objective = PairObjective(loss, ReferenceModel.of(policy(seed=1)))
        step = Loop(ours, objective, lr=1e-3).step(trees)
        results.append((step.numbers(), [q.detach().clone() for q in ours.packed.parameters()]))
    (plain, ours_weights), (named, named_weights) = results
    assert plain["loss"] == pytest.approx(named["loss"], rel=1e-6)
    assert plain["grad_norm"] == pytest.approx(named["grad_norm"], rel=1e-5)
    for a, b in zip(ours_weights, named_weights, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    objective = PairObjective(sigmoid, ReferenceModel.of(policy()))
    assert objective.start_value(trees, torch.zeros(10)) is None, "a plain function declares no value at the start"


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda pairs: (pairs.chosen_logratios - pairs.rejected_logratios).mean(), "shape"),
        (lambda pairs: torch.stack([pairs.chosen_logratios, pairs.rejected_logratios], 1), "shape"),
        (lambda pairs: (pairs.chosen_logratios - pairs.rejected_logratios).detach(), "without a gradient"),
        (lambda pairs: 1.0, "tensor"),
    ],
    ids=["a mean", "two a pair", "detached", "a number"],
)
def test_what_a_loss_returns_is_checked(loss: Any, message: str, policy: BuildPolicy, grow: Grow) -> None:
    loop = Loop(policy(), PairObjective(loss, ReferenceModel.of(policy(seed=1))), lr=1e-3)
    with pytest.raises(UserError, match=message):
        loop.step(grow(3))
    assert loop.index == 0


@pytest.mark.parametrize(
    "loss",
    [p.Sigmoid(), p.IPO(), lambda pairs: pairs.chosen_logratios - pairs.rejected_logratios],
    ids=["sigmoid", "ipo", "function"],
)
def test_a_loss_that_needs_a_reference_without_one_is_refused(loss: Any) -> None:
    with pytest.raises(UserError, match=r"reference is not given, but the loss .* pass policy\.frozen_copy\(\)"):
        PairObjective(loss)
    PairObjective(p.ORPO())


@pytest.mark.parametrize("objective", [RankingObjective, LabelledObjective])
def test_rankings_and_labels_need_a_reference_too(objective: Any) -> None:
    with pytest.raises(UserError, match="reference is not given"):
        objective(p.KTO() if objective is LabelledObjective else p.PlackettLuce())


@pytest.mark.parametrize("budget", [None, 16])
def test_two_equal_trees_in_a_batch_are_two_units(budget: int | None, policy: BuildPolicy, grow: Grow) -> None:
    """The second pair twice: the mean over three, in one forest or in several."""
    one, two = grow(2)
    reference = ReferenceModel.of(policy(seed=1))
    losses = [
        Loop(policy(), PairObjective(p.Sigmoid(), reference), lr=0.0).step([tree]).numbers()["loss"]
        for tree in (one, two)
    ]
    assert abs(losses[0] - losses[1]) > 1e-3
    loop = Loop(policy(), PairObjective(p.Sigmoid(), reference), lr=0.0, token_budget=budget)
    for batch in ([one, two, two], [one, two, replace(two)]):
        loss = loop.step(batch).numbers()["loss"]
        assert loss == pytest.approx((losses[0] + 2 * losses[1]) / 3, abs=1e-6)


def test_two_equal_responses_of_a_tree_are_two_branches(policy: BuildPolicy, grow: Grow) -> None:
    """Sampled twice: their log-ratios are equal, so the loss of the pair is ln 2 whatever the reference."""
    (tree,) = grow(1)
    same = replace(tree, branches=(tree.branches[0], tree.branches[0]))
    loop = Loop(policy(), PairObjective(p.Sigmoid(), ReferenceModel.of(policy(seed=1))), lr=0.0)
    numbers = loop.step([same, same]).numbers()
    assert numbers["loss"] == pytest.approx(LN2, abs=1e-6)
    assert numbers["logratios/chosen"] == pytest.approx(numbers["logratios/rejected"], abs=1e-4)
    assert abs(numbers["logratios/chosen"]) > 0.1
