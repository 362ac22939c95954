"""Policies: held-out likelihood, implicit rewards, and fresh samples with their score and KL to the start.

KL is Rao-Blackwellised (`maths.divergences.exact_kl`): exact over the vocabulary at each prefix that the policy itself
sampled, summed over the response; prompts are the unit of every interval.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from treeward.data.render import decode
from treeward.evaluation.tables import Table, wins
from treeward.maths.divergences import exact_kl
from treeward.maths.logprobs import entropies, sum_by_branch
from treeward.models.anchor import Anchor
from treeward.models.policy import Policy, branch_sums, in_order
from treeward.models.sampler import DecodeSampler
from treeward.rewards.scorers import Scorer
from treeward.trees.forest import Forest
from treeward.trees.tokens import TokenTree
from treeward.trees.verify import verified

ROWS = 128
"""Rows of logits compared at a time, to bound memory."""


@dataclass(frozen=True)
class SamplePlan:
    """How fresh samples are drawn: the same for every model that is compared."""

    samples: int = 4
    max_new_tokens: int = 64
    temperature: float = 1.0
    seed: int = 0


def likelihood(policy: Policy, trees: Sequence[TokenTree]) -> Table:
    """`nll`: mean over the scored tokens of each branch, in nats."""
    lengths = np.array([len(branch) for tree in trees for branch in tree.branches], dtype=np.float64)
    nll = -branch_sums(policy.tree, trees, policy.token_budget).numpy() / lengths
    return Table([tree.group for tree in trees for _ in tree.branches], {"nll": nll})


def implicit(policy: Policy, anchor: Anchor, trees: Sequence[TokenTree]) -> Table:
    """Pairs under the implicit reward: `accuracy` (ties half), and the two log-ratios apart, in nats."""
    now = branch_sums(policy.tree, trees, policy.token_budget)
    with anchor.model() as tree:
        start = branch_sums(tree, trees, policy.token_budget)
    chosen, rejected = (now - start).view(-1, 2).double().numpy().T
    columns = {"accuracy": wins(chosen, rejected), "chosen": chosen, "rejected": rejected}
    return Table([tree.group for tree in trees], columns)


def fresh(
    policy: Policy, anchor: Anchor, prompts: Sequence[TokenTree], plan: SamplePlan, scorer: Scorer | None = None
) -> tuple[Table, list[dict[str, object]]]:
    """Sample K responses a prompt and measure them: `kl`, `entropy`, `length`, `ended`, and `score` with a scorer.

    Returns the table, one row a sample, and the samples as text with their scores.
    """
    sampler = DecodeSampler.of(policy, plan.max_new_tokens, plan.temperature)
    trees = sampler(prompts, plan.samples, torch.Generator().manual_seed(plan.seed))
    verified(policy.tree, trees)
    anchor.verified(trees)
    ends = set(policy.end_ids)
    branches = [(tree, branch) for tree in trees for branch in tree.branches]
    columns = dict(zip(("kl", "entropy"), _distances(policy, anchor, trees), strict=True))
    columns["length"] = np.array([len(b) for _, b in branches], dtype=np.float64)
    columns["ended"] = np.array([b[-1] in ends for _, b in branches], dtype=np.float64)
    if scorer is not None:
        columns["score"] = scorer(trees, policy.tokenizer).double().numpy()
    rows: list[dict[str, object]] = [
        {
            "group": tree.group, "prompt": decode(tree.prompt, policy.tokenizer),
            "response": decode(branch, policy.tokenizer), **{name: float(c[i]) for name, c in columns.items()},
        }
        for i, (tree, branch) in enumerate(branches)
    ]  # fmt: skip
    return Table([tree.group for tree, _ in branches], columns), rows


def _distances(policy: Policy, anchor: Anchor, trees: Sequence[TokenTree]) -> list[np.ndarray]:
    """KL a response and mean entropy a token of every branch, in order."""
    forests = policy.tree.packed(trees, policy.token_budget)

    def kl(forest: Forest) -> Tensor:
        own = policy.tree.logits(forest)
        with anchor.model() as start:
            other = start.logits(forest)
        parts = [exact_kl(own[i : i + ROWS], other[i : i + ROWS]) for i in range(0, len(own), ROWS)]
        return sum_by_branch(torch.cat(parts), forest.scored_branch.to(own.device), forest.branches)

    def entropy(forest: Forest) -> Tensor:
        own = policy.tree.logits(forest)
        values = torch.cat([entropies(own[i : i + ROWS]) for i in range(0, len(own), ROWS)])
        branch = forest.scored_branch.to(own.device)
        sums = sum_by_branch(values, branch, forest.branches)
        return sums / torch.bincount(branch, minlength=forest.branches)

    with torch.no_grad():
        return [in_order(trees, forests, measure).double().numpy() for measure in (kl, entropy)]
