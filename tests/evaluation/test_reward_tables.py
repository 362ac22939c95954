"""What is measured of reward models, on outputs that are written out."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from treeward.data.splits import unit
from treeward.evaluation import rewards
from treeward.evaluation.rewards import ScoredTrees
from treeward.losses.heads import AnyHead, Categorical, Scalar
from treeward.stats import calibration
from treeward.stats.tables import Table
from treeward.trees.tokens import TokenTree


class Named:
    """As much of a reward model as the tables look at."""

    def __init__(self, head: AnyHead) -> None:
        self.head = head


def scored(head: AnyHead, trees: list[TokenTree], outputs: list[list[float]]) -> ScoredTrees:
    """Tables of these outputs; the class is filled by hand, for its type asks for a whole model."""
    tables = object.__new__(ScoredTrees)
    for name, value in (("model", Named(head)), ("trees", trees), ("outputs", torch.tensor(outputs))):
        object.__setattr__(tables, name, value)
    return tables


def tree(*lengths: int, group: str = "g", ratings: tuple[tuple[float, ...], ...] = ()) -> TokenTree:
    return TokenTree((1,), tuple((5,) * length for length in lengths), group, ratings)


def test_pairs_of_a_scalar_head() -> None:
    trees = [tree(3, 1, group="a"), tree(1, 2, group="b"), tree(2, 2, group="c")]
    table = scored(Scalar(), trees, [[1.0], [0.0], [0.0], [2.0], [0.5], [0.5]]).pairs()
    assert table is not None
    c = table.columns
    assert c["accuracy"].tolist() == [1.0, 0.0, 0.5]
    assert c["nll"].tolist() == pytest.approx([math.log1p(math.exp(-x)) for x in (1.0, -2.0, 0.0)], abs=1e-6)
    assert c["p"].tolist() == pytest.approx([1 / (1 + math.exp(-x)) for x in (1.0, -2.0, 0.0)], abs=1e-6)
    assert c["brier"].tolist() == pytest.approx([(1 - p) ** 2 for p in c["p"]], abs=1e-9)
    assert c["longer_wins"].tolist() == [1.0, 0.0, 0.5]
    assert table.interval("accuracy").n == 3


def test_lists_give_every_pair_that_the_ratings_tell_apart() -> None:
    trees = [tree(1, 1, 1, ratings=((2.0,), (5.0,), (2.0,)))]
    table = scored(Scalar(), trees, [[3.0], [1.0], [0.0]]).pairs()
    assert table is not None
    assert table.columns["chosen"].tolist() == [1.0, 1.0]
    assert table.columns["rejected"].tolist() == [3.0, 0.0]
    assert table.columns["accuracy"].tolist() == [0.0, 1.0]


def test_equal_ratings_leave_no_pair() -> None:
    assert scored(Scalar(), [tree(1, 1, ratings=((2.0,), (2.0,)))], [[3.0], [1.0]]).pairs() is None
    assert scored(Scalar(), [tree(1, 1, 1, ratings=((2.0,),) * 3)], [[3.0], [1.0], [0.0]]).pairs() is None


def test_a_pairs_own_order_stands_against_its_ratings() -> None:
    table = scored(Scalar(), [tree(1, 1, ratings=((1.0,), (2.0,)))], [[1.0], [0.0]]).pairs()
    assert table is not None
    assert table.columns["accuracy"].tolist() == [1.0]


def test_ratings_against_a_distribution() -> None:
    ratings = ((4.0,), (1.0,))
    outputs = torch.log(torch.tensor([[0.2, 0.3, 0.5], [1 / 3, 1 / 3, 1 / 3]])).tolist()
    table = scored(Categorical(3), [tree(1, 2, ratings=ratings)], outputs).graded((0.0, 4.0))
    assert table is not None
    c = table.columns
    assert c["rating"].tolist() == [3.0, 1.5]
    assert c["mae"].tolist() == pytest.approx([0.7, 0.5], abs=1e-6)
    assert c["cross_entropy"].tolist() == pytest.approx([-math.log(0.5), math.log(3)], abs=1e-6)
    assert c["sd"].tolist() == pytest.approx([math.sqrt(0.61), math.sqrt(2 / 3)], abs=1e-6)
    assert c["crps"][0] == pytest.approx(0.2**2 + 0.5**2, abs=1e-6)
    assert scored(Scalar(), [tree(1, 2, ratings=ratings)], [[0.0], [0.0]]).graded((0.0, 4.0)) is None


def test_what_ignores_its_input_is_said() -> None:
    trees = [tree(1, group=str(n), ratings=((g,),)) for n, g in enumerate((0.0, 0.0, 2.0, 4.0))]
    table = scored(Categorical(3), trees, [[0.0] * 3] * 4).graded((0.0, 4.0))
    assert table is not None
    facts = rewards.graded_facts(table, 3)
    assert facts["marginal_entropy"] == pytest.approx(1.5 * math.log(2), abs=1e-9)
    assert facts["marginal_mae"] == pytest.approx(0.75)
    assert math.isnan(facts["spearman"]["value"])


def test_levels_of_the_spread_hold_the_mean_error() -> None:
    """Sixteen responses of eight spreads: each level is a spread, and beside it the mean of its two errors."""
    sd = np.repeat(np.arange(1.0, 9.0), 2)
    mae = np.tile([0.25, 0.75], 8) + sd**2
    zeros = np.zeros(16)
    columns = {"sd": sd, "mae": mae, "mean_score": np.arange(16.0), "rating": np.arange(16.0)[::-1].copy()}
    facts = rewards.graded_facts(Table([str(n) for n in range(16)], columns), 10)
    assert [(level["x"], level["n"]) for level in facts["spread_levels"]] == [(float(n), 2) for n in range(1, 9)]
    assert [level["y"] for level in facts["spread_levels"]] == pytest.approx([n**2 + 0.5 for n in range(1, 9)])
    assert facts["spearman"]["value"] == pytest.approx(-1.0)
    assert facts["spread_ranks_error"]["value"] > 0.9
    assert "pit_counts" not in facts
    even = Table([str(n) for n in range(16)], {**columns, "rating": zeros + 5, "pit": np.repeat([0.05, 0.95], [10, 6])})
    assert rewards.graded_facts(even, 10)["pit_counts"] == [10, *[0] * 8, 6]


def test_length_bias_and_like_lengths() -> None:
    trees = [tree(20, 10, group="a"), tree(10, 20, group="b"), tree(20, 19, group="c"), tree(19, 20, group="d")]
    table = scored(Scalar(), trees, [[2.0], [1.0], [1.0], [2.0], [2.0], [1.9], [1.9], [2.0]]).pairs()
    assert table is not None
    facts = rewards.length_facts(table)
    assert facts["margin_against_length_difference"]["value"] == pytest.approx(1.0)
    assert facts["length_matched_accuracy"]["n"] == 2
    assert facts["length_matched_accuracy"]["value"] == 0.5
    assert facts["longer_wins"]["value"] == 0.5


def test_calibration_facts_split_their_halves_by_group() -> None:
    draw = np.random.default_rng(0)
    trees = [tree(1, 1, group=str(n)) for n in range(400)]
    margins = draw.normal(0, 6, 400)
    flips = draw.uniform(size=400) > 1 / (1 + np.exp(-np.abs(margins) / 3))
    margins = np.where(flips, -np.abs(margins), np.abs(margins))
    table = scored(Scalar(), trees, [[x] for m in margins for x in (m, 0.0)]).pairs()
    assert table is not None
    facts = rewards.calibration_facts(table)
    assert facts["temperature"] == pytest.approx(3.0, abs=0.8)
    assert facts["nll_with_temperature"] < facts["nll_without_temperature"]
    assert 120 < facts["n_temperature"] < 280
    asked = table.columns["p"][[unit(group, 1, "temperature") < 0.5 for group in table.groups]]
    assert facts["temperature"] == pytest.approx(calibration.fit_temperature(asked))
    assert facts["n_temperature"] == 400 - len(asked)
    assert set(facts["ece"]) == {"value", "plug_in", "expected_if_exact", "p", "n"}
    assert 0 < facts["ece"]["expected_if_exact"] < facts["ece"]["value"] < facts["ece"]["plug_in"] < 0.3
    assert facts["ece"]["p"] < 0.05
    assert sum(point["n"] for point in facts["reliability"]) == 400


def test_the_temperatures_halves_do_not_depend_on_the_datas_split() -> None:
    """A test part split with data.seed 1: all its groups had one half, and no temperature was fitted."""
    groups = [name for name in map(str, range(2000)) if unit(name, 1) < 0.1]
    draw = np.random.default_rng(0)
    outputs = [[x] for m in draw.normal(1, 3, len(groups)) for x in (m, 0.0)]
    table = scored(Scalar(), [tree(1, 1, group=name) for name in groups], outputs).pairs()
    assert table is not None
    assert 0.3 * len(groups) < rewards.calibration_facts(table)["n_temperature"] < 0.7 * len(groups)


def test_pairs_of_one_prompt_count_as_one() -> None:
    """Ten lists of three ranked texts: thirty pairs, but ten prompts, in every accuracy with an interval."""
    ranked = ((3.0,), (2.0,), (1.0,))
    trees = [replace(tree(9, 9, 9, group=str(n), ratings=ranked), subset="all") for n in range(10)]
    outputs = [[x] for n in range(10) for x in ((3.0, 2.0, 1.0) if n < 7 else (1.0, 2.0, 3.0))]
    table = scored(Scalar(), trees, outputs).pairs()
    assert table is not None
    assert len(table.groups) == 30
    lengths, rule = rewards.length_facts(table), rewards.against_longer_wins(table)
    subset = rewards.subset_facts(table, trees)["all"]
    assert lengths["length_matched_accuracy"] == subset == vars(table.interval("accuracy"))
    assert (subset["value"], subset["n"], lengths["longer_wins"]["n"]) == (0.7, 10, 10)
    assert (rule.before.n, rule.after.n, rule.difference.test) == (10, 10, "score test by group")


def test_subsets_are_reported_apart() -> None:
    trees = [replace(tree(1, 2, group=str(n)), subset=("easy", "hard", "")[n % 3]) for n in range(9)]
    table = scored(Scalar(), trees, [[x] for n in range(9) for x in ((1.0, 0.0) if n % 3 == 0 else (0.0, 1.0))]).pairs()
    assert table is not None
    result = rewards.subset_facts(table, trees)
    values = {name: (facts["value"], facts["n"]) for name, facts in result.items()}
    assert values == {"easy": (1.0, 3), "hard": (0.0, 3)}
