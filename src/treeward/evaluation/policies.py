"""Policies: held-out likelihood, implicit rewards, and fresh samples with their score and KL to the start.

KL is Rao-Blackwellised (`losses.kl.exact_kl`): exact over the vocabulary at each prefix that the policy itself
sampled, summed over the response; the plain log-ratio (k1) of the same samples stands beside it as a cross-check, since
both have one expectation. Prompts are the unit of every interval.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from treeward.errors import UserError
from treeward.losses.kl import exact_kl, k1
from treeward.losses.logprobs import entropies, sum_by_branch, token_logps
from treeward.models.policy import Policy, branch_sums, in_order
from treeward.models.reference import ReferenceModel
from treeward.models.sampler import DecodeSampler, Noise
from treeward.rewards.scorers import Scorer
from treeward.stats.diversity import repetition, self_bleu
from treeward.stats.tables import JUDGE, Table, wins
from treeward.trees.forest import Forest
from treeward.trees.rollout import Rollout
from treeward.trees.text import beside
from treeward.trees.tokens import TokenTree, decode
from treeward.trees.verify import verify_once

log = logging.getLogger(__name__)

KL = ("kl", "k1", "kl_token")
"""Columns that are KL(policy, start) only where the samples are the policy's own, at temperature 1."""
TO_START = (*KL, "start_nll")
"""Columns of fresh samples that say nothing where there is no start."""
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
    """`nll`: mean over the scored tokens of each branch, in nats."""
    lengths = np.array([len(branch) for tree in trees for branch in tree.branches], dtype=np.float64)
    nll = -branch_sums(policy.packed, trees, policy.token_budget).numpy() / lengths
    return Table([tree.group for tree in trees for _ in tree.branches], {"nll": nll})


def implicit(policy: Policy, reference: ReferenceModel, trees: Sequence[TokenTree]) -> Table:
    """Pairs under the implicit reward: `accuracy` (ties half), and the two log-ratios apart, in nats.

    Of a ranking the first branch stands against the last; single labelled responses are paired in their order, a
    desirable one with an undesirable one, and those without a counterpart are counted in the log.

    Raises:
        UserError: nothing can be compared.
    """
    now = branch_sums(policy.packed, trees, policy.token_budget)
    with reference.model() as tree:
        start = branch_sums(tree, trees, policy.token_budget)
    ratios = torch.split((now - start).double(), [len(tree.branches) for tree in trees])
    groups, *sides = zip(*_opposed(trees, [r.numpy() for r in ratios]), strict=True)
    chosen, rejected = map(np.array, sides)
    return Table(
        list(groups), {"accuracy": wins(chosen, rejected), "log_ratio_chosen": chosen, "log_ratio_rejected": rejected}
    )


def opposed_groups(trees: Sequence[TokenTree]) -> set[str]:
    """The groups of the comparisons that `implicit` makes of these trees."""
    good, bad = ([t.group for t in trees if len(t.branches) == 1 and t.grades == (label,)] for label in (1.0, 0.0))
    several = {tree.group for tree in trees if len(tree.branches) > 1}
    return several | {beside(a, b) for a, b in zip(good, bad, strict=False)}


def _opposed(trees: Sequence[TokenTree], values: Sequence[np.ndarray]) -> list[tuple[str, float, float]]:
    """(group, value of the better, value of the worse) of each comparison that the trees hold."""
    found = [(t.group, float(v[0]), float(v[-1])) for t, v in zip(trees, values, strict=True) if len(t.branches) > 1]
    alone = [(t, float(v[0])) for t, v in zip(trees, values, strict=True) if len(t.branches) == 1]
    sides = [[(t.group, v) for t, v in alone if t.grades == (label,)] for label in (1.0, 0.0)]
    found += [(beside(a, b), good, bad) for (a, good), (b, bad) in zip(*sides, strict=False)]
    if not found:
        raise UserError("nothing to compare is held out: there must be desirable and undesirable responses")
    left = abs(len(sides[0]) - len(sides[1]))
    if left:
        log.warning("%d of %d labelled responses have no counterpart to be compared with", left, len(alone))
    return found


def fresh(
    policy: Policy,
    reference: ReferenceModel,
    prompts: Sequence[TokenTree],
    plan: SamplePlan,
    scorer: Scorer | None = None,
    judges: Sequence[Scorer] = (),
) -> tuple[Table, list[dict[str, object]]]:
    """Sample K responses a prompt and measure them.

    Columns, one row a sample: at temperature 1 `kl`, `k1`, `kl_token` (a scored token); `entropy`, `start_nll` (of the
    sample under the start, a token), `length`, `ended`, `repetition`, where K is at least 2 the prompt's `self_bleu`,
    with a scorer `score`, and `judge:NAME` of each judge. `gap` and `gap_max` are how far the log-probabilities that
    were recorded while sampling lie from those of the same ids computed here, mean and largest of the tokens, in nats
    (`checks.identities.sampled`). Also returned: the samples as text and ids, with all that.
    """
    sampler = DecodeSampler.of(policy, plan.max_new_tokens, plan.temperature)
    rollout = sampler(prompts, plan.samples, Noise(plan.seed))
    trees = rollout.trees
    with torch.no_grad():
        verify_once(policy.packed, trees, policy.token_budget)
        reference.verify_once(trees)
    ends = set(policy.end_ids)
    branches = [(tree, branch) for tree in trees for branch in tree.branches]
    columns = _distances(policy, reference, rollout)
    if plan.temperature != 1:
        columns = {name: column for name, column in columns.items() if name not in KL}
    columns["length"] = np.array([len(b) for _, b in branches], dtype=np.float64)
    columns["ended"] = np.array([b[-1] in ends for _, b in branches], dtype=np.float64)
    columns["repetition"] = np.array([repetition(b) for _, b in branches])
    if plan.samples > 1:
        columns["self_bleu"] = np.repeat([self_bleu(tree.branches) for tree in trees], plan.samples)
    if scorer is not None:
        columns["score"] = scorer(trees, policy.tokenizer).double().numpy()
    for judge in judges:
        columns[JUDGE + judge.name] = judge(trees, policy.tokenizer).double().numpy()
    rows: list[dict[str, object]] = [
        {
            "group": tree.group, "sample": i % plan.samples, "prompt": decode(tree.prompt, policy.tokenizer),
            "response": decode(branch, policy.tokenizer), "ids": list(branch),
            **{name: float(c[i]) for name, c in columns.items()},
        }
        for i, (tree, branch) in enumerate(branches)
    ]  # fmt: skip
    return Table([tree.group for tree, _ in branches], columns), rows


def _distances(policy: Policy, reference: ReferenceModel, rollout: Rollout) -> dict[str, np.ndarray]:
    """`kl`, `k1`, `kl_token`, `entropy` and `start_nll` of every branch, from one forward pass of each model, and the
    gaps to the log-probabilities that the sampler recorded.
    """
    trees = rollout.trees
    recorded = {id(tree): logps for tree, logps in zip(trees, rollout.logps or [], strict=rollout.logps is not None)}

    def measure(forest: Forest) -> Tensor:
        own = policy.packed.logits(forest)
        with reference.model() as start:
            other = start.logits(forest)
        targets, branch = forest.targets.to(own.device), forest.scored_branch.to(own.device)
        parts = []
        for i in range(0, len(own), ROWS):
            a, b = own[i : i + ROWS], other[i : i + ROWS]
            logps, under_start = (token_logps(side, targets[i : i + ROWS]) for side in (a, b))
            parts.append(torch.stack([exact_kl(a, b), k1(logps, under_start), entropies(a), -under_start, logps]))
        *summed, logps = torch.cat(parts, 1)
        sums = [sum_by_branch(values, branch, forest.branches) for values in summed]
        return torch.stack([*sums, *gaps(forest, logps)], 1)

    def gaps(forest: Forest, logps: Tensor) -> list[Tensor]:
        """Sum and maximum of |recorded - computed| over each branch's tokens; nothing where none is recorded."""
        if not recorded:
            return []
        then = [branch for tree in forest.sources for branch in recorded[id(tree)]]
        parts = torch.split((torch.cat(then).to(logps.device) - logps).abs(), [len(branch) for branch in then])
        return [torch.stack([part.sum() for part in parts]), torch.stack([part.max() for part in parts])]

    with torch.no_grad():
        forests = policy.packed.forests(trees, policy.token_budget)
        kl, ratio, entropy, nll, *off = in_order(trees, forests, measure).double().numpy().T
    lengths = np.array([len(branch) for tree in trees for branch in tree.branches], dtype=np.float64)
    found = {"kl": kl, "k1": ratio, "kl_token": kl / lengths, "entropy": entropy / lengths, "start_nll": nll / lengths}
    return found | ({"gap": off[0] / lengths, "gap_max": off[1]} if off else {})
