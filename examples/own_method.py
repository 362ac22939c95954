"""A training method of your own, driven like the built-in ones: checks, validation, checkpoints, verdict, receipt.

    treeward train --method examples/own_method.py:ResponseNLL --steps 50 --out runs/mine
    treeward train --method examples/own_method.py:ResponseNLL --help

Supervised fine-tuning whose loss is the mean over responses of their mean negative log-probability, so that a long
response counts as much as a short one.
"""

from dataclasses import dataclass, field

import treeward as tw
from treeward.data.prepare import DataConfig
from treeward.evaluation.policies import likelihood
from treeward.losses.logprobs import branch_lengths, sum_by_branch


@dataclass(frozen=True, kw_only=True)
class Config(tw.RunConfig):
    """Supervised fine-tuning with a mean over responses."""

    lr: float = 3e-3
    """Peak learning rate."""
    data: DataConfig = field(default_factory=lambda: DataConfig(source="world-texts", limit=2000))
    """The data."""


class Objective:
    """The loss: one number a response."""

    def count(self, tree):
        return len(tree.branches)

    def __call__(self, model, forest):
        branch = forest.scored_branch.to(model.device)
        sums = sum_by_branch(model(forest), branch, forest.branches)
        return tw.Terms(-sums / branch_lengths(branch, forest.branches), {})


class ResponseNLL(tw.Method):
    """The method: which data it needs, what trains, and how success is measured."""

    Config = Config
    usual_lr = (1e-5, 5e-5, 3e-3)  # from 1B parameters, at 100M, under 20M
    purpose = "sft"  # one response to a prompt
    metric = "nll"  # a column of what `measure` returns

    def __init__(self, config):
        self.config = config
        self.model = tw.Policy.from_config(config.model, config.seed)
        self.start = self.model.frozen_copy()
        self.objective = Objective()

    def measure(self, trees):
        return tw.Measurement({"texts": likelihood(self.model, trees)})
