"""Measuring policies: held-out likelihood, implicit rewards, and fresh samples with score and KL to the start model.

KL is Rao-Blackwellised (`losses.kl.exact_kl`): exact over the vocabulary at each sampled prefix, summed over the
response. The plain log-ratio (k1) of the same samples is reported as a cross-check, since both have the same
expectation. Intervals treat prompts as the independent unit.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from treeward.errors import UserError
from treeward.losses.kl import exact_kl, k1
from treeward.losses.logprobs import entropies, sum_by_branch, token_logps
from treeward.models.policy import Policy, in_order, summed_logps
from treeward.models.reference import ReferenceModel
from treeward.models.sampler import DecodeSampler, Noise, Sampler
from treeward.rewards import scorers
from treeward.rewards.scorers import Scorer
from treeward.stats.diversity import repetition, self_bleu
from treeward.stats.tables import JUDGE, Table, wins
from treeward.trees.forest import Forest
from treeward.trees.rollout import Rollout
from treeward.trees.text import joined_group
from treeward.trees.tokens import TokenTree, decode
from treeward.trees.verify import verify_once

log = logging.getLogger(__name__)

KL = ("kl", "k1", "kl_token")
"""Columns that estimate KL(policy, start) only at temperature 1."""
TO_START = (*KL, "start_nll")
"""Columns of fresh samples that need a start model."""
OF_PAIRS = ("accuracy", "log_ratio_chosen", "log_ratio_rejected")
"""Metrics of held-out pairs under the implicit reward; all others but `nll` are of fresh samples."""
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
    """`nll`: mean negative log-probability of each branch's tokens, in nats."""
    lengths = np.array([len(branch) for tree in trees for branch in tree.branches], dtype=np.float64)
    nll = -summed_logps(policy.packed, trees, policy.token_budget).numpy() / lengths
    return Table([tree.group for tree in trees for _ in tree.branches], {"nll": nll})


def implicit(policy: Policy, start: ReferenceModel, trees: Sequence[TokenTree]) -> Table:
    """Pairs under the implicit reward: `accuracy` (a tie counts half), and both log-ratios to the start, in nats.

    Of a ranking the first branch is compared with the last. Single labelled responses are paired in their order, a
    desirable one with an undesirable one; the log counts those left over.

    Raises:
        UserError: nothing can be compared.
    """
    logps = summed_logps(policy.packed, trees, policy.token_budget)
    with start.inference() as packed:
        start_logps = summed_logps(packed, trees, policy.token_budget)
    ratios = torch.split((logps - start_logps).double(), [len(tree.branches) for tree in trees])
    groups, *sides = zip(*_opposed(trees, [ratio.numpy() for ratio in ratios]), strict=True)
    chosen, rejected = map(np.array, sides)
    return Table(
        list(groups), {"accuracy": wins(chosen, rejected), "log_ratio_chosen": chosen, "log_ratio_rejected": rejected}
    )


def opposed_groups(trees: Sequence[TokenTree]) -> set[str]:
    """The groups of the comparisons that `implicit` makes of these trees."""
    desirable, undesirable = (
        [tree.group for tree in trees if len(tree.branches) == 1 and tree.grades == (label,)] for label in (1.0, 0.0)
    )
    several = {tree.group for tree in trees if len(tree.branches) > 1}
    return several | {joined_group(a, b) for a, b in zip(desirable, undesirable, strict=False)}


def _opposed(trees: Sequence[TokenTree], values: Sequence[np.ndarray]) -> list[tuple[str, float, float]]:
    """(group, value of the better, value of the worse) of each comparison."""
    comparisons = [
        (tree.group, float(value[0]), float(value[-1]))
        for tree, value in zip(trees, values, strict=True)
        if len(tree.branches) > 1
    ]
    singles = [(tree, float(value[0])) for tree, value in zip(trees, values, strict=True) if len(tree.branches) == 1]
    sides = [[(tree.group, value) for tree, value in singles if tree.grades == (label,)] for label in (1.0, 0.0)]
    comparisons += [(joined_group(a, b), good, bad) for (a, good), (b, bad) in zip(*sides, strict=False)]
    if not comparisons:
        raise UserError(
            "the held-out part has nothing to compare: it needs desirable and undesirable responses; raise data.test"
        )
    left_over = abs(len(sides[0]) - len(sides[1]))
    if left_over:
        log.warning("%d of %d labelled responses have no counterpart to compare with", left_over, len(singles))
    return comparisons


@dataclass(frozen=True)
class SampleEvaluation:
    """Fresh samples of a policy for the first held-out prompts, before and after training.

    `sampler` replaces the policy's own decoding, for tests and other engines.
    """

    policy: Policy
    start: ReferenceModel | None
    plan: SamplePlan
    prompts: int
    scorer: Scorer | None = None
    judges: Sequence[Scorer] = ()
    sampler: Sampler | None = None

    @classmethod
    def of(
        cls,
        policy: Policy,
        start: ReferenceModel | None,
        config: Any,
        sampler: Sampler | None = None,
        scorer: Scorer | None = None,
        judges: Sequence[Scorer] | None = None,
    ) -> "SampleEvaluation":
        """From a run's configuration (`config.evaluation`, `config.seed`). A scorer or judges that are passed replace
        those it names.
        """
        evaluation = config.evaluation
        named_scorer, named_judges = scorers.find_all(
            None if scorer is not None else evaluation.scorer, () if judges is not None else evaluation.judges
        )
        return cls(
            policy,
            start,
            evaluation.plan(config.seed),
            evaluation.prompts,
            scorer or named_scorer,
            judges if judges is not None else named_judges,
            sampler,
        )

    def prompts_of(self, trees: Sequence[TokenTree]) -> list[TokenTree]:
        """The prompts to sample from: one of each group, the first ones."""
        by_group = {tree.group: TokenTree(tree.prompt, (), tree.group, row=tree.row) for tree in trees}
        return list(by_group.values())[: self.prompts]

    def measure(self, trees: Sequence[TokenTree], offset: int = 0) -> tuple[Table, list[dict[str, object]]]:
        """Sample and measure; `offset` is added to the seed."""
        plan = replace(self.plan, seed=self.plan.seed + offset)
        return fresh(self.policy, self.start, self.prompts_of(trees), plan, self.scorer, self.judges, self.sampler)


def fresh(
    policy: Policy,
    start: ReferenceModel | None,
    prompts: Sequence[TokenTree],
    plan: SamplePlan,
    scorer: Scorer | None = None,
    judges: Sequence[Scorer] = (),
    sampler: Sampler | None = None,
) -> tuple[Table, list[dict[str, object]]]:
    """Sample K responses for each prompt and measure them. Without a start model nothing is measured against it.

    Returns a table with one row a sample, and the samples as text and ids with the same columns: `kl`, `k1` and
    `kl_token` (per token), at temperature 1 only; `entropy`; `start_nll`, the sample's NLL per token under the start;
    `length`; `ended`; `repetition`; with K of at least 2 the prompt's `self_bleu`; `score` with a scorer, and
    `judge:NAME` for each judge. `gap` and `gap_max` are the mean and largest difference between the log-probabilities
    recorded while sampling and those computed here for the same ids, in nats (`checks.identities.sampled`).
    """
    sampler = sampler or DecodeSampler.of(policy, plan.max_new_tokens, plan.temperature)
    rollout = sampler(prompts, plan.samples, Noise(plan.seed))
    trees = rollout.trees
    with torch.no_grad():
        verify_once(policy.packed, trees, policy.token_budget)
        if start is not None:
            start.verify_layout(trees)
    ends = set(policy.end_ids)
    branches = [(tree, branch) for tree in trees for branch in tree.branches]
    columns = _distances(policy, start, rollout)
    if plan.temperature != 1:
        columns = {name: column for name, column in columns.items() if name not in KL}
    columns["length"] = np.array([len(branch) for _, branch in branches], dtype=np.float64)
    columns["ended"] = np.array([branch[-1] in ends for _, branch in branches], dtype=np.float64)
    columns["repetition"] = np.array([repetition(branch) for _, branch in branches])
    if plan.samples > 1:
        columns["self_bleu"] = np.repeat([self_bleu(tree.branches) for tree in trees], plan.samples)
    if scorer is not None:
        columns["score"] = scorer(rollout).double().numpy()
    for judge in judges:
        columns[JUDGE + judge.name] = judge(rollout).double().numpy()
    rows: list[dict[str, object]] = [
        {
            "group": tree.group,
            "sample": i % plan.samples,
            "prompt": decode(tree.prompt, policy.tokenizer),
            "response": decode(branch, policy.tokenizer),
            "prompt_ids": list(tree.prompt),
            "ids": list(branch),
            **{name: float(column[i]) for name, column in columns.items()},
        }
        for i, (tree, branch) in enumerate(branches)
    ]
    return Table([tree.group for tree, _ in branches], columns), rows


def _distances(policy: Policy, start: ReferenceModel | None, rollout: Rollout) -> dict[str, np.ndarray]:
    """`entropy` of every branch, with a start model `kl`, `k1`, `kl_token` and `start_nll`, and the gaps to the
    log-probabilities that the sampler recorded; from one forward pass of each model.
    """
    trees = rollout.trees
    recorded = {id(tree): logps for tree, logps in zip(trees, rollout.logps or [], strict=rollout.logps is not None)}

    def measure(forest: Forest) -> Tensor:
        """One row a branch: kl, k1, entropy and NLL under the start, summed over tokens; then the gaps."""
        policy_logits = policy.packed.logits(forest)
        start_logits = None
        if start is not None:
            with start.inference() as packed:
                start_logits = packed.logits(forest)
        device = policy_logits.device
        targets, branch = forest.targets.to(device), forest.scored_branch.to(device)
        parts = []
        for i in range(0, len(policy_logits), ROWS):
            rows = slice(i, i + ROWS)
            logits = policy_logits[rows]
            logps = token_logps(logits, targets[rows])
            if start_logits is None:
                unknown = torch.full_like(logps, torch.nan)
                parts.append(torch.stack([unknown, unknown, entropies(logits), unknown, logps]))
            else:
                under_start = token_logps(start_logits[rows], targets[rows])
                kl = exact_kl(logits, start_logits[rows])
                parts.append(torch.stack([kl, k1(logps, under_start), entropies(logits), -under_start, logps]))
        *summed, logps = torch.cat(parts, 1)
        sums = [sum_by_branch(values, branch, forest.branches) for values in summed]
        return torch.stack([*sums, *gaps(forest, logps)], 1)

    def gaps(forest: Forest, logps: Tensor) -> list[Tensor]:
        """Sum and maximum of |recorded - computed| over each branch's tokens; empty if nothing was recorded."""
        if not recorded:
            return []
        then = [branch for tree in forest.sources for branch in recorded[id(tree)]]
        parts = torch.split((torch.cat(then).to(logps.device) - logps).abs(), [len(branch) for branch in then])
        return [torch.stack([part.sum() for part in parts]), torch.stack([part.max() for part in parts])]

    with torch.no_grad():
        forests = policy.packed.forests(trees, policy.token_budget)
        kl, ratio, entropy, nll, *off = in_order(trees, forests, measure).double().numpy().T
    lengths = np.array([len(branch) for tree in trees for branch in tree.branches], dtype=np.float64)
    columns = {"kl": kl, "k1": ratio, "kl_token": kl / lengths}
    columns |= {"entropy": entropy / lengths, "start_nll": nll / lengths}
    if start is None:
        columns = {name: column for name, column in columns.items() if name not in TO_START}
    return columns | ({"gap": off[0] / lengths, "gap_max": off[1]} if off else {})
