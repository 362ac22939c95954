"""Bradley and Terry's loss and rankings: L1, L5, margin, centring, Plackett-Luce, by written-out numbers."""

import itertools
import math

import pytest
import torch

from treeward.losses.heads import AnyHead, Attributes, Categorical, Logistic, Ordinal, Scalar
from treeward.losses.reward import AllPairs, BradleyTerry, Branches, PlackettLuce, log_preference, pair_margins


def pairs(chosen: torch.Tensor, rejected: torch.Tensor, gaps: list[float] | None = None) -> Branches:
    """Scalar scores of pairs, with ratings that lie `gaps` apart."""
    outputs = torch.stack([chosen, rejected], 1).reshape(-1, 1)
    tree = torch.arange(len(chosen)).repeat_interleave(2)
    ratings = None if gaps is None else torch.tensor([[g] for gap in gaps for g in (1.0 + gap, 1.0)])
    return Branches(outputs, Scalar(), tree, ratings)


def at(loss: BradleyTerry, chosen: float, rejected: float, gap: float | None = None) -> float:
    """The loss of one pair."""
    gaps = None if gap is None else [gap]
    return loss(pairs(torch.tensor([chosen]), torch.tensor([rejected]), gaps)).item()


def listed(scores: list[float], ratings: list[float] | None = None) -> Branches:
    """One tree of scalar scores."""
    grades = None if ratings is None else torch.tensor(ratings)[:, None]
    return Branches(torch.tensor(scores)[:, None], Scalar(), torch.zeros(len(scores), dtype=torch.long), grades)


def test_l1_a_zero_head_costs_ln_two() -> None:
    assert at(BradleyTerry(), 0.0, 0.0) == pytest.approx(0.693147, abs=1e-6)
    assert at(BradleyTerry(centre=0.01), 0.0, 0.0) == pytest.approx(0.693147, abs=1e-6)


@pytest.mark.parametrize(("margin", "value"), [(1 / 3, 0.873639), (2 / 3, 1.081037), (1.0, 1.313262), (0.76, 1.143674)])
def test_l5_a_zero_head_under_a_margin(margin: float, value: float) -> None:
    assert at(BradleyTerry(margin=margin), 0.0, 0.0) == pytest.approx(value, abs=1e-6)
    assert at(BradleyTerry(margin=1.0), 0.0, 0.0, gap=margin) == pytest.approx(value, abs=1e-6)
    zeros = pairs(torch.zeros(3), torch.zeros(3), [margin] * 3)
    assert BradleyTerry(margin=1.0).at_start(zeros) == pytest.approx(value, abs=1e-6)


def test_a_rating_gap_above_one_asks_for_no_more_margin() -> None:
    assert at(BradleyTerry(margin=0.5), 0.0, 0.0, gap=3.2) == pytest.approx(math.log1p(math.exp(0.5)), abs=1e-6)
    assert at(BradleyTerry(margin=0.5), 0.0, 0.0, gap=0.4) == pytest.approx(math.log1p(math.exp(0.2)), abs=1e-6)


def test_ratings_that_contradict_the_order_ask_for_no_margin() -> None:
    """Down to a gap of -4, where the margin would be -1.6: such a pair would be taught to be wrong."""
    assert [at(BradleyTerry(margin=0.4), 0.0, 0.0, gap=g) for g in (-0.1, -4.0)] == [pytest.approx(math.log(2))] * 2
    gaps, margins = torch.tensor([-4.0, 0.5, 3.0, math.nan, 0.5]), torch.tensor([math.nan] * 4 + [0.9])
    assert pair_margins(0.4, gaps, margins).tolist() == pytest.approx([0.0, 0.2, 0.4, 0.4, 0.9])
    assert pair_margins(0.4, gaps).tolist() == pytest.approx([0.0, 0.2, 0.4, 0.4, 0.2])


def test_a_tree_without_ratings_changes_nothing_for_its_neighbours() -> None:
    """Rated and unrated trees together: each is what it is alone; the unrated one is ranked by its order."""
    outputs, tree = torch.tensor([[0.3], [-1.2], [2.0], [0.7], [0.1], [-0.4]]), torch.tensor([0, 0, 0, 1, 1, 1])
    ratings = torch.tensor([[1.0], [3.0], [2.0], [math.nan], [math.nan], [math.nan]])
    both = Branches(outputs, Scalar(), tree, ratings)
    for loss in (PlackettLuce(), AllPairs()):
        alone = [loss(listed([0.3, -1.2, 2.0], [1.0, 3.0, 2.0])).item(), loss(listed([0.7, 0.1, -0.4])).item()]
        assert loss(both).tolist() == pytest.approx(alone, abs=1e-6)
    rated = torch.tensor([[1.5], [1.0], [math.nan], [math.nan]])
    mixed = Branches(torch.zeros(4, 1), Scalar(), torch.tensor([0, 0, 1, 1]), rated)
    expected = [math.log1p(math.exp(margin)) for margin in (0.2, 0.4)]
    assert BradleyTerry(margin=0.4)(mixed).tolist() == pytest.approx(expected, abs=1e-6)


def test_the_margin_is_subtracted_from_the_difference() -> None:
    assert at(BradleyTerry(margin=0.5), 2.0, 0.5) == pytest.approx(math.log1p(math.exp(-1.0)), abs=1e-6)


def test_centring_costs_the_square_of_the_sum() -> None:
    assert at(BradleyTerry(centre=0.01), 3.0, 2.0) == pytest.approx(math.log1p(math.exp(-1.0)) + 0.25, abs=1e-6)


@pytest.mark.parametrize(
    "head",
    [
        Scalar(),
        Categorical(),
        Logistic(),
        Attributes(("helpfulness", "verbosity"), weights=(0.65, -0.2)),
    ],
    ids=lambda head: type(head).__name__,
)
def test_centring_leaves_the_preference_probability_of_a_pair(head: AnyHead) -> None:
    """Where 70 % prefer one response, the best fit under strong centring says 70 %, with scores around the middle."""
    outputs = torch.zeros(2, head.width, dtype=torch.float64, requires_grad=True)
    loss, tree = BradleyTerry(centre=0.1), torch.tensor([0, 0])
    optimizer = torch.optim.LBFGS([outputs], max_iter=200, line_search_fn="strong_wolfe", tolerance_change=1e-14)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        both_orders = loss(Branches(outputs, head, tree)), loss(Branches(outputs.flip(0), head, tree))
        value = 0.7 * both_orders[0].sum() + 0.3 * both_orders[1].sum()
        value.backward()
        return value

    optimizer.step(closure)
    chosen, rejected = head.scores(outputs.detach()).tolist()
    assert 1 / (1 + math.exp(rejected - chosen)) == pytest.approx(0.7, abs=1e-4)
    assert (chosen + rejected) / 2 == pytest.approx(head.middle, abs=1e-3)


@pytest.mark.parametrize(
    "head", [Scalar(), Categorical(7), Ordinal(4), Logistic(), Attributes(), Attributes(weights=(1.0,) * 5)]
)
def test_the_middle_of_a_head_is_the_score_of_outputs_of_zero(head: AnyHead) -> None:
    zeros = torch.zeros(1, head.width) if not isinstance(head, Ordinal) else head.thresholds()[None]
    assert head.scores(zeros).item() == pytest.approx(head.middle, abs=1e-5)


def test_the_stated_preference_leaves_margin_and_centring_out() -> None:
    losses = -log_preference(pairs(torch.tensor([0.0, 3.0, -3.0]), torch.tensor([0.0, 2.0, -2.0]), [3.0, 3.0, 3.0]))
    assert losses.tolist() == pytest.approx([math.log(2), 0.313262, 1.313262], abs=1e-6)


def test_gradients_are_opposite_and_those_of_the_logistic() -> None:
    chosen, rejected = torch.tensor([0.4, -2.0], requires_grad=True), torch.tensor([1.0, 3.0], requires_grad=True)
    BradleyTerry(margin=0.5)(pairs(chosen, rejected, [1.0, 0.2])).sum().backward()
    expected = [-1 / (1 + math.exp(0.4 - 1.0 - 0.5)), -1 / (1 + math.exp(-2.0 - 3.0 - 0.1))]
    assert chosen.grad is not None
    assert rejected.grad is not None
    assert chosen.grad.tolist() == pytest.approx(expected, abs=1e-6)
    assert rejected.grad.tolist() == pytest.approx([-g for g in expected], abs=1e-6)


def test_the_centring_gradient_pulls_both_scores_alike() -> None:
    chosen, rejected = torch.tensor([30.0], requires_grad=True), torch.tensor([-10.0], requires_grad=True)
    BradleyTerry(centre=0.1)(pairs(chosen, rejected)).sum().backward()
    assert chosen.grad is not None
    assert rejected.grad is not None
    assert chosen.grad.item() == pytest.approx(4.0, abs=1e-5)
    assert rejected.grad.item() == pytest.approx(4.0, abs=1e-5)


def test_values_stay_finite_at_absurd_scores() -> None:
    values = BradleyTerry()(pairs(torch.tensor([1e4, -1e4]), torch.tensor([-1e4, 1e4])))
    assert values.tolist() == [0.0, 2e4]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"margin": -0.1}, "loss.margin"),
        ({"margin": 1.1}, "scaled, margin"),
        ({"margin": math.nan}, "loss.margin"),
        ({"centre": -0.01}, "loss.centre"),
        ({"centre": math.nan}, "loss.centre"),
    ],
)
def test_bad_hyper_parameters_are_refused_by_name(fields: dict[str, float], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        BradleyTerry(**fields)


def test_plackett_luce_is_the_probability_of_the_ranking() -> None:
    scores = [0.3, -1.2, 2.0]
    result = {
        order: math.exp(-PlackettLuce()(listed([scores[i] for i in order])).item())
        for order in itertools.permutations(range(3))
    }
    assert sum(result.values()) == pytest.approx(1.0, abs=1e-6)
    w = [math.exp(s) for s in scores]
    assert result[(2, 0, 1)] == pytest.approx(w[2] / sum(w) * w[0] / (w[0] + w[1]), abs=1e-6)


def test_plackett_luce_of_two_is_bradley_terry_and_starts_at_ln_n_factorial() -> None:
    assert PlackettLuce()(listed([1.5, -0.5])).item() == pytest.approx(at(BradleyTerry(), 1.5, -0.5), abs=1e-6)
    assert PlackettLuce().at_start(listed([0.0] * 4)) == pytest.approx(math.log(24), abs=1e-6)
    assert PlackettLuce()(listed([0.0] * 4)).item() == pytest.approx(math.log(24), abs=1e-6)


def test_rankings_follow_the_ratings_not_the_order() -> None:
    by_rating = PlackettLuce()(listed([0.3, -1.2, 2.0], [2.0, 1.0, 5.0])).item()
    assert by_rating == pytest.approx(PlackettLuce()(listed([2.0, 0.3, -1.2])).item(), abs=1e-6)
    tied = PlackettLuce()(listed([1.0, 0.5, 0.0], [3.0, 3.0, 1.0])).item()
    w = [math.exp(s) for s in (1.0, 0.5, 0.0)]
    assert tied == pytest.approx(-math.log(w[0] / sum(w)) - math.log(w[1] / sum(w)), abs=1e-6)


def test_all_pairs_is_the_mean_over_pairs_that_differ() -> None:
    loss = AllPairs()(listed([1.0, 0.5, -2.0], [3.0, 3.0, 1.0])).item()
    assert loss == pytest.approx((math.log1p(math.exp(-3.0)) + math.log1p(math.exp(-2.5))) / 2, abs=1e-6)
    assert AllPairs()(listed([1.0, 0.5])).item() == pytest.approx(math.log1p(math.exp(-0.5)), abs=1e-6)
    assert AllPairs()(listed([0.0] * 5)).item() == pytest.approx(math.log(2), abs=1e-6)


def test_all_pairs_starts_at_ln_two_but_where_all_are_tied() -> None:
    ratings = torch.tensor([2.0, 2.0, 2.0, 1.0, 3.0, 3.0, 3.0])[:, None]
    zeros = Branches(torch.zeros(7, 1), Scalar(), torch.tensor([0, 0, 1, 1, 1, 2, 2]), ratings)
    assert AllPairs()(zeros).tolist() == pytest.approx([0.0, math.log(2), 0.0])
    assert AllPairs().at_start(zeros) == pytest.approx(math.log(2) / 3)


def test_trees_do_not_see_each_other() -> None:
    outputs = torch.tensor([[1.0], [0.0], [-3.0], [2.0], [5.0]])
    both = Branches(outputs, Scalar(), torch.tensor([0, 0, 1, 1, 1]))
    for loss in (PlackettLuce(), AllPairs()):
        alone = [loss(listed([1.0, 0.0])).item(), loss(listed([-3.0, 2.0, 5.0])).item()]
        assert loss(both).tolist() == pytest.approx(alone, abs=1e-6)


def test_bradley_terry_teaches_a_distribution_through_its_mean() -> None:
    outputs = torch.zeros(2, 3)
    outputs[0, 2], outputs[1, 0] = 1.0, 1.0
    loss = BradleyTerry()(Branches(outputs, Categorical(3), torch.tensor([0, 0]))).item()
    gap = 2 * (math.e - 1) / (math.e + 2)
    assert loss == pytest.approx(math.log1p(math.exp(-gap)), abs=1e-6)
