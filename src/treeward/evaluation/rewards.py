"""Reward models on held-out pairs: accuracy, likelihood, and the trivial rule that a model must beat."""

from collections.abc import Sequence

import numpy as np
import torch

from treeward.evaluation.tables import Comparison, Metric, Table, wins
from treeward.maths import statistics
from treeward.maths.reward import pair_nll
from treeward.models.reward_model import RewardModel
from treeward.trees.tokens import TokenTree


def pairs(model: RewardModel, trees: Sequence[TokenTree]) -> Table:
    """`accuracy` (ties half), `nll` without margin or centring, both scores, and `longer_wins` of each pair."""
    chosen, rejected = model.score(trees).view(-1, 2).T
    columns = {
        "accuracy": wins(chosen.numpy(), rejected.numpy()),
        "nll": pair_nll(chosen.double(), rejected.double()).numpy(),
        "chosen": chosen.double().numpy(),
        "rejected": rejected.double().numpy(),
        "longer_wins": wins(*(np.array([len(tree.branches[b]) for tree in trees]) for b in (0, 1))),
    }
    return Table([tree.group for tree in trees], columns)


def against_longer_wins(table: Table) -> Comparison:
    """The model's accuracy against the rule "the longer response wins" (or, if that is better, the shorter)."""
    rule = table.columns["longer_wins"]
    if rule.mean() < 0.5:
        rule = 1 - rule
    own = table.columns["accuracy"]
    known = Metric("accuracy", True, "accuracy", "against the length rule")
    before = statistics.wilson(float(rule.sum()), len(rule))
    return Comparison(known, before, table.interval("accuracy"), statistics.mcnemar(rule, own))


def score_spread(table: Table) -> float:
    """Standard deviation of all scores: 0 means that the model gives every text the same one."""
    return float(torch.tensor(np.concatenate([table.columns["chosen"], table.columns["rejected"]])).std())
