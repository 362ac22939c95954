"""Diversity of samples: written-out numbers, equal budgets, and intervals."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from treeward.stats import diversity
from treeward.stats.diversity import Pool, self_bleu

responses = st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=8), min_size=4, max_size=12)


def test_e2_entropy_miller_madow_and_distinct() -> None:
    """Counts 2, 1, 1 of two prompts; without the second prompt 2 of one n-gram are left."""
    counts = diversity.Counts(np.array([0, 1, 2]), np.array([0, 1, 1]), np.array([2.0, 1.0, 1.0]), 2)
    entropy, entropy_less = diversity.miller_madow(counts)
    assert entropy == pytest.approx(1.5 * math.log(2) + 2 / 8, abs=1e-12)
    assert entropy_less.tolist() == pytest.approx([math.log(2) + 1 / 4, 0.0], abs=1e-12)
    unique, unique_less = diversity.distinct(counts)
    assert (unique, unique_less.tolist()) == (0.75, [1.0, 0.5])
    table = diversity.measure([Pool([(1, 1), (2, 3)], ["a", "b"])])
    assert table["token_entropy"][0][0].value == pytest.approx(1.289721, abs=1e-6)
    assert table["distinct_1"][0][0].value == 0.75


@pytest.mark.slow
@given(responses)
def test_figures_without_a_prompt_are_those_of_the_other_prompts(drawn: list[list[int]]) -> None:
    """The jackknife's values without a prompt are those of a count without it."""
    groups = [str(i % 4) for i in range(len(drawn))]
    for statistic in (diversity.miller_madow, diversity.distinct):
        _, less = statistic(diversity._counts(Pool(drawn, groups), 1, list("0123")))
        for place, out in enumerate("0123"):
            left = [(ids, g) for ids, g in zip(drawn, groups, strict=True) if g != out]
            again, _ = statistic(diversity._counts(Pool(*map(list, zip(*left, strict=True))), 1, list("0123")))
            assert less[place] == pytest.approx(again, abs=1e-9)


def distinct(drawn: Sequence[Sequence[int]], n: int) -> float:
    """distinct-n of one model's responses, each to a prompt of its own."""
    (result,), _ = diversity.measure([Pool(drawn, [str(i) for i in range(len(drawn))])])[f"distinct_{n}"]
    return result.value


def test_distinct_n_stays_within_a_response() -> None:
    assert distinct([(1, 2), (2, 1)], 2) == 1.0
    assert distinct([(1, 2), (1, 2), (1, 2, 3)], 2) == 0.5
    assert distinct([(1,)], 3) == 0.0


def test_repetition_is_the_share_of_grams_seen_before() -> None:
    assert diversity.repetition((1, 2, 3, 4, 5)) == 0.0
    assert diversity.repetition((7,) * 8) == pytest.approx(4 / 5)
    assert diversity.repetition((1, 2)) == 0.0


def test_the_cut_takes_first_responses_of_every_prompt_first() -> None:
    pool = Pool([(1, 2), (3, 4), (5, 6), (7, 8)], ["a", "a", "b", "b"])
    part = diversity.cut(pool, 5)
    assert list(zip(part.responses, part.groups, strict=True)) == [((1, 2), "a"), ((5, 6), "b"), ((3,), "a")]


@given(responses, st.integers(1, 20))
def test_a_cut_pool_has_the_budget(drawn: list[list[int]], budget: int) -> None:
    pool = Pool(drawn, [str(i % 3) for i in range(len(drawn))])
    assert diversity.cut(pool, budget).tokens == min(budget, pool.tokens)


@pytest.mark.slow
@given(responses)
def test_e1_a_model_compared_with_itself_has_no_interval(drawn: list[list[int]]) -> None:
    pool = Pool(drawn, [str(i % 4) for i in range(len(drawn))])
    nll, lengths = [float(len(ids)) * 1.7 for ids in drawn], [len(ids) for ids in drawn]
    again = diversity.perplexity([nll, nll], [lengths, lengths], [pool.groups, pool.groups])
    for _, gaps in [*diversity.measure([pool, pool]).values(), again]:
        assert (gaps[1].value, gaps[1].reliable) == (0, False)
        assert math.isnan(gaps[1].low)
        assert math.isnan(gaps[1].high)


def test_the_longer_pool_is_cut_so_that_length_is_no_diversity() -> None:
    draw = np.random.default_rng(0)
    short = [tuple(draw.integers(0, 500, 10).tolist()) for _ in range(80)]
    long = [tuple(draw.integers(0, 500, 40).tolist()) for _ in range(80)]
    groups = [str(i // 4) for i in range(80)]
    table = diversity.measure([Pool(short, groups), Pool(long, groups)])
    assert table["distinct_1"][1][1].low < 0 < table["distinct_1"][1][1].high
    assert distinct(long, 1) < distinct(short, 1) / 2


def test_a_collapsed_model_is_told_apart() -> None:
    draw = np.random.default_rng(1)
    varied = [tuple(draw.integers(0, 100, 12).tolist()) for _ in range(120)]
    narrow = [tuple(draw.integers(0, 5, 12).tolist()) for _ in range(120)]
    groups = [str(i // 4) for i in range(120)]
    for name, (_, gaps) in diversity.measure([Pool(varied, groups), Pool(narrow, groups)]).items():
        assert gaps[1].high < 0, name


def test_f73_two_samples_of_one_source_are_not_told_apart() -> None:
    """60 draws of two pools of 24 prompts, two responses each, with words of their prompt: intervals of all figures
    exclude 0 in at most 6 of them (intervals that cover 95 % do so more often with probability .03)."""
    draw = np.random.default_rng(2)
    groups = [str(i // 2) for i in range(48)]
    covered = dict.fromkeys(("token_entropy", "distinct_1", "distinct_2", "distinct_3"), 0)
    for _ in range(60):
        topics = draw.integers(0, 300, (24, 5)).repeat(2, axis=0)
        pools = [
            Pool(
                [
                    tuple(np.where(draw.random(15) < 0.4, draw.choice(topic, 15), draw.geometric(0.05, 15)).tolist())
                    for topic in topics
                ],
                groups,
            )
            for _ in range(2)
        ]
        for name, (_, gaps) in diversity.measure(pools).items():
            covered[name] += not (gaps[1].low > 0 or gaps[1].high < 0)
    assert min(covered.values()) >= 54, covered


def test_one_prompt_has_no_interval() -> None:
    intervals, gaps = diversity.measure([Pool([(1, 2)], ["a"]), Pool([(1, 1)], ["a"])])["distinct_1"]
    assert (intervals[1].value, gaps[1].value) == (0.5, -0.5)
    assert all(math.isnan(bound) for bound in (intervals[1].low, intervals[1].high, gaps[1].low, gaps[1].high))


def test_perplexity_is_a_ratio_of_sums() -> None:
    intervals, _ = diversity.perplexity([[2.0, 9.0]], [[1, 9]], [["a", "b"]])
    assert intervals[0].value == pytest.approx(math.exp(11 / 10))


def test_the_interval_of_a_perplexity_is_the_jackknifes_over_prompts() -> None:
    """Two responses to b: each prompt is left out with both its numbers."""
    nll, lengths, groups = [2.0, 9.0, 3.0, 12.0], [1, 9, 2, 5], ["a", "b", "b", "c"]
    intervals, _ = diversity.perplexity([nll], [lengths], [groups])
    less = np.exp([24 / 16, 14 / 6, 14 / 12])
    error = math.sqrt(2 / 3 * ((less - less.mean()) ** 2).sum())
    value = math.exp(26 / 17)
    assert intervals[0].high == pytest.approx(value + 4.302652730 * error)
    assert intervals[0].low == 0.0
    assert not intervals[0].reliable


def test_other_prompts_are_no_comparison() -> None:
    with pytest.raises(AssertionError, match="same prompts"):
        diversity.measure([Pool([(1,)], ["a"]), Pool([(1,)], ["b"])])


def test_self_bleu_of_equal_and_of_disjoint_samples() -> None:
    assert self_bleu([(1, 2, 3, 4, 5)] * 3) == pytest.approx(1.0)
    assert self_bleu([(1, 2)] * 2) == pytest.approx(1.0)
    assert self_bleu([(1, 2, 3, 4, 5), (6, 7, 8, 9, 10)]) == 0.0
    with pytest.raises(ValueError, match="set samples to 2"):
        self_bleu([(1, 2)])


def test_self_bleu_by_hand() -> None:
    """Matches 4/5, 3/4, 2/3, 1/2 of the n-grams at equal length: their geometric mean."""
    expected = (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25
    assert self_bleu([(1, 2, 3, 4, 5), (1, 2, 3, 4, 6)]) == pytest.approx(expected)


def test_the_interval_of_a_share_stays_a_share() -> None:
    """Three prompts repeat a token: the plain jackknife interval would exceed 1. If none does, there is no interval."""
    rows = [(9 * n, 9 * n + 1, 9 * n + 2) for n in range(40)]
    pool = Pool([*rows[:37], *[(1, 1, 1)] * 3], [f"p{n:02}" for n in range(40)])
    (result,), _ = diversity.measure([pool])["distinct_2"]
    assert result.low < result.value < result.high == 1.0
    (result,), _ = diversity.measure([Pool(rows, [f"p{n}" for n in range(40)])])["distinct_2"]
    assert (result.value, result.reliable) == (1.0, False)
    assert math.isnan(result.high)
