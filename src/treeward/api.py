"""The functions of `treeward` that join its parts: sample, score, pick pairs, evaluate, check.

rollout = tw.score(tw.sample(policy, prompts, n=8, max_new_tokens=256, seed=0), reward)
pairs = tw.best_worst(rollout)
print(tw.evaluate(policy, held_out, scorer=reward, reference=reference))
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from treeward.checks import identities
from treeward.checks import receipt as receipts
from treeward.checks.check import Check
from treeward.checks.receipt import Receipt
from treeward.data.render import token_tree
from treeward.data.selection import BestWorst, clear
from treeward.errors import UserError
from treeward.evaluation.policies import SamplePlan, fresh
from treeward.models.policy import Policy, bare_prompts, tokenized
from treeward.models.reference import ReferenceModel
from treeward.models.reward_model import RewardModel
from treeward.models.sampler import DecodeSampler, Noise, Sampler
from treeward.rewards.scorers import AnyScorer, as_scorer
from treeward.stats import formatting
from treeward.stats.tables import Measurement, is_metric
from treeward.training.objectives import Objective
from treeward.trees.rollout import Rollout
from treeward.trees.text import Tree
from treeward.trees.tokens import Tokenizer, TokenTree
from treeward.trees.verify import verify

MAX_NEW_TOKENS = 256
"""Longest sample of an evaluation, unless given or the model's positions are fewer."""


def render(tree: Tree, tokenizer: Tokenizer) -> TokenTree:
    """The ids of a tree: the prompt tokenized once, each response on its own with its end token.

    Raises:
        UserError: the prompt is messages and the tokenizer has no chat template, or it has no token to end a response.
    """
    return token_tree(tree, tokenizer)


def sample(
    policy: Policy,
    prompts: Sequence[Tree | TokenTree],
    *,
    n: int,
    max_new_tokens: int,
    seed: int,
    step: int = 0,
    temperature: float = 1.0,
    sampler: Sampler | None = None,
) -> Rollout:
    """Sample `n` responses for each prompt; responses that the trees have are ignored.

    The noise of each token is a function of seed, step, prompt, sample number and position, and of nothing else. So
    pass the number of the optimizer step as `step` when the policy is sampled again while it trains.

    Args:
        policy: The policy as it is now.
        prompts: Trees; their rows are passed on to scorers.
        n: Samples for each prompt.
        max_new_tokens: Longest sample in tokens, end token included.
        seed: The run's seed.
        step: Number of the optimizer step.
        temperature: 1 samples the policy itself.
        sampler: Another sampler, for tests or other engines.

    Raises:
        UserError: a sample could exceed the model's positions, or an argument is out of range.
    """
    if n < 1:
        raise UserError(f"n is {n}; it must be at least 1")
    sampler = sampler or DecodeSampler.of(policy, max_new_tokens, temperature)
    return sampler(bare_prompts(prompts, policy.tokenizer), n, Noise(seed, step=step))


def score(rollout: Rollout, scorer: AnyScorer) -> Rollout:
    """The rollout with a score for each response; higher is better.

    Args:
        rollout: What was sampled.
        scorer: A function `(prompt, response, row) -> float` or `Sequence[Sample] -> Sequence[float]`, a reward model,
            or a scorer's name ("gold", "length", "count:WORD", "FILE.py:FUNCTION", a directory or hub id).

    Raises:
        BadScore: the scorer failed, or gave something else than a finite number.
        UserError: there is no such scorer.
    """
    return rollout.with_scores(as_scorer(scorer)(rollout).tolist())


def best_worst(rollout: Rollout, min_gap: float = 0.0) -> list[TokenTree]:
    """One pair for each prompt: the best response (chosen) against the worst (rejected).

    Prompts whose samples all have the same score, or scores less than `min_gap` apart, are left out. The scores become
    the pair's ratings.

    Raises:
        UserError: the rollout has no scores.
    """
    if rollout.scores is None:
        raise UserError("rollout has no scores; call treeward.score(rollout, scorer) first")
    pairs = []
    for tree, scores in zip(rollout.trees, rollout.scores, strict=True):
        for best, worst in clear(BestWorst()(scores, tree.group), scores, min_gap, None):
            if tree.branches[best] != tree.branches[worst]:
                branches = (tree.branches[best], tree.branches[worst])
                ratings = ((scores[best],), (scores[worst],))
                pairs.append(TokenTree(tree.prompt, branches, tree.group, ratings, row=tree.row))
    return pairs


@dataclass(frozen=True)
class Evaluation:
    """Fresh samples of a policy and what was measured on them; print it for a table with intervals."""

    measurement: Measurement

    @property
    def metrics(self) -> dict[str, dict[str, Any]]:
        """By metric: value, low, high and n (prompts) of the 95 % interval over prompts."""
        table = self.measurement.tables["samples"]
        return {name: asdict(table.interval(name)) for name in table.columns if is_metric(name)}

    @property
    def samples(self) -> Sequence[Mapping[str, Any]]:
        """One row a sample: prompt, response, ids and its numbers."""
        return self.measurement.samples

    def __str__(self) -> str:
        return "\n".join(
            f"{name:<12} {formatting.interval(facts)}, n={facts['n']}" for name, facts in self.metrics.items()
        )


def evaluate(
    policy: Policy,
    prompts: Sequence[Tree | TokenTree],
    *,
    scorer: AnyScorer | None = None,
    judges: Sequence[AnyScorer] = (),
    reference: ReferenceModel | None = None,
    n: int = 4,
    seed: int = 0,
    max_new_tokens: int | None = None,
) -> Evaluation:
    """Sample `n` responses for each prompt and measure score, judges, KL to the reference, entropy, length and more.

    Intervals treat prompts (groups) as the independent unit.

    Args:
        policy: The policy as it is now.
        prompts: Held-out prompts, one tree each.
        scorer: Scores the samples.
        judges: More scorers, which training does not use.
        reference: What KL is measured against; without one KL is left out.
        n: Samples for each prompt.
        seed: The same seed draws with the same noise, so two policies compared on it differ less by chance.
        max_new_tokens: Longest sample; by default 256 or what the model's positions allow.

    Raises:
        UserError: there are no prompts, or an argument cannot be used.
    """
    if not prompts:
        raise UserError("prompts is empty; give at least one held-out prompt")
    trees = bare_prompts(prompts, policy.tokenizer)
    if max_new_tokens is None:
        positions = policy.packed.positions
        room = MAX_NEW_TOKENS if positions is None else positions - max(len(tree.prompt) for tree in trees)
        max_new_tokens = max(1, min(MAX_NEW_TOKENS, room))
    table, rows = fresh(
        policy,
        reference,
        trees,
        SamplePlan(n, max_new_tokens, 1.0, seed),
        None if scorer is None else as_scorer(scorer),
        [as_scorer(judge) for judge in judges],
    )
    return Evaluation(Measurement({"samples": table}, rows))


def check(policy: Policy | RewardModel, objective: Objective, trees: Sequence[Tree | TokenTree]) -> list[Check]:
    """Check before training that the numbers are right: the packed layout equals plain calls, padding and neighbours
    change nothing, gradients of a batch are those of its parts and reach every trainable tensor, and the first loss has
    its known value where the loss declares one.

    Args:
        policy: What trains.
        objective: Its objective.
        trees: Training trees; all are verified for their layout, at most four small ones for the rest.

    Raises:
        UserError: there are no trees, or the model's layout cannot be verified at all.
    """
    token_trees = tokenized(trees, policy.tokenizer)
    if not token_trees:
        raise UserError("trees is empty; give at least one training tree")
    packed = policy.packed
    verification = verify(packed, token_trees, policy.token_budget)
    probe = identities.probe(token_trees)
    parameters = [p for p in packed.parameters() if p.requires_grad]
    gradients, _ = identities.reached(packed, objective, probe, parameters)
    checks = [
        identities.layout(verification),
        *identities.passes(packed, probe),
        identities.accumulation(packed, objective, probe),
        gradients,
    ]
    start_value: Callable[..., float | None] | None = getattr(objective, "start_value", None)
    if start_value is not None and isinstance(policy, Policy):
        with identities.exact(policy.packed), torch.no_grad():
            expected = start_value(probe, identities.unpacked_logps(policy.packed, probe))
        if expected is not None:
            checks.append(identities.start_value(packed, objective, probe, expected))
    return checks


def receipt(
    before: Evaluation | Measurement,
    after: Evaluation | Measurement,
    checks: Sequence[Check] = (),
    *,
    metric: str | None = None,
    scorer: str | None = None,
    require: str = "improved",
    random_start: bool = False,
) -> Receipt:
    """The verdict on a trained policy from what was measured before and after, on the same prompts with the same seed.

    Args:
        before: `evaluate` of the start.
        after: `evaluate` of the trained policy.
        checks: Results of `check`; a failed one makes the verdict "broken".
        metric: The metric that decides; by default the first of score, accuracy and nll that was measured.
        scorer: The scorer's name, for the reason.
        require: "improved" or "any": the verdict below which `exit_code` is not 0.
        random_start: The start has random weights, so its samples are not text and cannot collapse.

    Returns:
        A receipt with `.verdict` (word and reason), `.facts()` (the content of receipt.json) and `.exit_code`.

    Raises:
        UserError: the metric was not measured, or before and after are of different prompts.
    """
    old, new = (side.measurement if isinstance(side, Evaluation) else side for side in (before, after))
    for name in old.tables.keys() & new.tables.keys():
        if list(old.tables[name].groups) != list(new.tables[name].groups):
            raise UserError("before and after are measured on different prompts; evaluate both on the same ones")
    return receipts.receipt(old, new, checks, metric=metric, scorer=scorer, require=require, random_start=random_start)
