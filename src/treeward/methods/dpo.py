"""The DPO family: preference losses on pairs, rankings or single labelled responses.

Each starts from the log-ratio of a whole response,

    x = log pi(y | prompt) - log pi_ref(y | prompt)        summed over response tokens, end token included,

and under an f-divergence from its score s(x). The losses are in `losses.preference`. By default the reference model is
the policy as it was before the first step; its log-probabilities cannot change, so they are computed once, before
training. A reference that follows the policy (EMA) is evaluated at each batch. Losses that need no reference have none.

Letters: P pairs, N branches, G trees.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from treeward.checks import identities
from treeward.checks.check import Check, require
from treeward.data.formats import Purpose
from treeward.errors import UserError
from treeward.evaluation import policies
from treeward.losses.divergences import AnyDivergence, ReverseKL
from treeward.losses.heads import Scalar
from treeward.losses.logprobs import branch_lengths, sum_by_branch
from treeward.losses.preference import (
    KTO,
    AnyPairLoss,
    AnyPreferenceLoss,
    LabelledScores,
    PairScores,
    PlackettLuce,
    Sigmoid,
    Sum,
    checked_loss_values,
    divergence_refusal,
    implicit_rewards,
    loads_file,
    loss_name,
    needs_reference,
    required_data,
    takes_margins,
    value_at_start,
)
from treeward.losses.reward import Branches, check_margin, pair_margins
from treeward.methods.method import Method, RunConfig
from treeward.models.policy import Policy, summed_logps, tokenized
from treeward.models.reference import AnyReference, Frozen, Logps, ReferenceModel, reference_for
from treeward.models.sampler import Sampler
from treeward.rewards.scorers import Scorer
from treeward.runtime import Runtime
from treeward.stats.tables import Measurement, Table
from treeward.training.loop import Result, Step, TrainingConfig, result_of, training_steps
from treeward.training.objectives import Terms, forest_branches, refuse_margins, tree_margins, unit_weights
from treeward.trees.forest import Forest, pack
from treeward.trees.forward import TreeLM, TreeModule
from treeward.trees.text import Tree
from treeward.trees.tokens import TokenTree

WITH_MARGINS = "sigmoid, robust, hinge, exo or normalised-sigmoid"


@dataclass(frozen=True, kw_only=True)
class DPOConfig(TrainingConfig):
    """Direct preference optimisation."""

    lr: float = 1e-6
    """Peak learning rate: 1e-6 from 1B parameters, 1e-5 at 100M, up to 3e-4 under 20M or from random weights."""
    loss: AnyPreferenceLoss = field(default_factory=Sigmoid)
    """The preference loss, or FILE.py:NAME of a function."""
    divergence: AnyDivergence = field(default_factory=ReverseKL)
    """The f-divergence from the reference: the loss sees its score of each log-ratio."""
    reference: AnyReference = field(default_factory=Frozen)
    """The model that log-ratios are measured against."""
    margin: float = 0.0
    """Largest margin between the implicit rewards: margin * min(rating gap, 1), or margin itself without ratings."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_margin("margin", self.margin)
        if not loads_file(self.loss):  # building a configuration runs no file
            self.check_loss()

    def check_loss(self) -> None:
        """Whether the other fields go with the loss.

        Raises:
            UserError: they do not.
        """
        kind = loss_name(self.loss)
        refusal = divergence_refusal(self.loss)
        if refusal and not isinstance(self.divergence, ReverseKL):
            raise UserError(
                f"divergence.kind {type(self.divergence).__name__} does not go with loss.kind {kind}: {refusal}; use "
                "reverse-kl, or sigmoid, robust, hinge, exo or plackett-luce"
            )
        if self.margin and not takes_margins(self.loss):
            raise UserError(f"margin is {self.margin}, but loss.kind {kind} has none; use {WITH_MARGINS}")
        if not needs_reference(self.loss) and not self.reference.is_start:
            raise UserError(
                f"reference is {self.reference}, but loss.kind {kind} needs no reference; leave reference out"
            )
        if isinstance(self.loss, KTO) and self.batch_size < 2:
            raise UserError(
                f"batch_size is {self.batch_size}, but loss.kind KTO estimates its reference point on other prompts of "
                "the batch; use 8 or more"
            )


class ReferenceLogps:
    """The reference's log-probabilities of the trees of a batch.

    Those of a frozen reference may be computed ahead for all of training (`precompute`); what is missing is computed
    when a batch is prepared. Those of a reference that follows the policy are computed anew for each batch.
    """

    def __init__(self, reference: ReferenceModel) -> None:
        self.reference = reference
        self._ahead: Logps = {}
        self._batch: Logps = {}

    def precompute(self, trees: Sequence[TokenTree], token_budget: int) -> list[Check]:
        """Compute these trees' log-probabilities ahead, or read them from the store, which is checked."""
        if self.reference.follows_policy:
            return []
        self._ahead, checks = self._load(trees, token_budget)
        return checks

    def prepare(self, batch: Sequence[TokenTree], token_budget: int, runtime: Runtime) -> None:
        """Make this rank's share of a batch ready.

        Raises:
            ChecksFailed: the store has values of another reference.
        """
        missing = [tree for tree in runtime.share(batch) if tree not in self._ahead]
        if self.reference.follows_policy:
            self._batch = self.reference.compute_logps(missing, token_budget) if missing else {}
        else:
            self._batch, checks = self._load(missing, token_budget) if missing else ({}, [])
            require(checks)

    def _load(self, trees: Sequence[TokenTree], token_budget: int) -> tuple[Logps, list[Check]]:
        """From the store, or computed and stored, so that a later run reads the same bits; with the store's check."""
        logps, audit = self.reference.load_logps(trees, token_budget)
        return logps, [] if audit is None else [identities.stored_logps(audit)]

    def of(self, trees: Sequence[TokenTree]) -> Float[Tensor, "N"]:
        """One number a branch, in order."""
        return torch.cat([self._ahead[tree] if tree in self._ahead else self._batch[tree] for tree in trees])


@dataclass(frozen=True)
class LogRatios:
    """By branch: the policy's log-probability, the log-ratio to the reference (NaN without one), the scored tokens."""

    logps: Float[Tensor, "N"]
    x: Float[Tensor, "N"]
    lengths: Int[Tensor, "N"]

    @classmethod
    def of(cls, model: TreeModule, forest: Forest, reference: ReferenceLogps | None) -> "LogRatios":
        """Of every branch of the forest, in its order; differentiable in the policy."""
        scored_branch = forest.scored_branch.to(model.device)
        logps = sum_by_branch(model(forest), scored_branch, forest.branches)
        lengths = branch_lengths(scored_branch, forest.branches)
        if reference is None:
            return cls(logps, torch.full_like(logps, torch.nan), lengths)
        return cls(logps, logps - reference.of(forest.sources).to(logps.device), lengths)

    @classmethod
    def known(cls, trees: Sequence[TokenTree], logps: Float[Tensor, "N"], reference: Float[Tensor, "N"]) -> "LogRatios":
        """From log-probabilities that were computed elsewhere."""
        lengths = torch.tensor([len(branch) for tree in trees for branch in tree.branches])
        return cls(logps, logps - reference, lengths)


class _WithReference:
    """What the objectives share: the reference model and its log-probabilities."""

    loss: Any
    reference: ReferenceModel | None
    _logps: ReferenceLogps | None

    def _set_reference(self, reference: ReferenceModel | None) -> None:
        if needs_reference(self.loss) and reference is None:
            raise UserError(
                f"reference is not given, but the loss {loss_name(self.loss)} needs one: pass policy.frozen_copy()"
            )
        self.reference = reference if needs_reference(self.loss) else None
        self._logps = None if self.reference is None else ReferenceLogps(self.reference)

    def precompute(self, trees: Sequence[TokenTree], token_budget: int) -> list[Check]:
        """Compute the reference's log-probabilities of all training trees ahead; the check of stored values."""
        return [] if self._logps is None else self._logps.precompute(trees, token_budget)

    def prepare(self, model: TreeModule, batch: Sequence[TokenTree], token_budget: int, runtime: Runtime) -> None:
        """Make the reference's log-probabilities of a batch ready."""
        if self._logps is not None:
            self._logps.prepare(batch, token_budget, runtime)


class PairObjective(_WithReference):
    """A preference loss on pairs, the chosen response first; a unit is a pair.

    Args:
        loss: A loss of `treeward.losses`, or any function `loss(pairs: PairScores) -> Float[P]`.
        reference: The reference model; not needed for losses that declare so.
        divergence: The f-divergence; by default reverse KL, which is DPO.
        margin: Largest margin between implicit rewards, for losses that take one.
    """

    def __init__(
        self,
        loss: AnyPairLoss | Callable[[PairScores], Tensor],
        reference: ReferenceModel | None = None,
        divergence: AnyDivergence | None = None,
        margin: float = 0.0,
    ) -> None:
        self.loss = loss
        self.divergence = divergence or ReverseKL()
        self.margin = margin
        self._set_reference(reference)

    def count(self, tree: TokenTree) -> int:
        assert len(tree.branches) == 2, "a pair has two branches"
        return 1

    def __call__(self, model: TreeModule, forest: Forest) -> Terms:
        ratios = LogRatios.of(model, forest, self._logps)
        pairs = self.pair_scores(forest.sources, ratios)
        values = checked_loss_values(self.loss, self.loss(pairs), len(forest.sources))
        chosen, rejected = implicit_rewards(self.loss, pairs)
        metrics = {
            **reward_metrics(chosen, rejected),
            "logps/chosen": ratios.logps[0::2],
            "logps/rejected": ratios.logps[1::2],
            **clamped_metric(self.divergence, ratios.x.view(-1, 2)),
            **clipped_metric(self.loss, pairs),
        }
        if self.reference is not None:
            metrics |= {"logratios/chosen": ratios.x[0::2], "logratios/rejected": ratios.x[1::2]}
        return Terms(values, metrics, unit_weights(forest.sources, self.count, values.device))

    def pair_scores(self, trees: Sequence[TokenTree], ratios: LogRatios) -> PairScores:
        """What the loss sees of these pairs."""
        x, n, logps = self.divergence.score(ratios.x), ratios.lengths, ratios.logps
        margins = self._margins(trees, x)
        return PairScores(x[0::2], x[1::2], n[0::2], n[1::2], logps[0::2], logps[1::2], margins)

    def _margins(self, trees: Sequence[TokenTree], like: Tensor) -> Float[Tensor, "P"] | None:
        data_margins = tree_margins(trees, like)
        if self.margin == 0 and data_margins is None:
            return None
        gaps = [tree.grades[0] - tree.grades[1] if tree.ratings else torch.nan for tree in trees]
        return pair_margins(self.margin, like.new_tensor(gaps), data_margins)

    def start_value(self, trees: Sequence[TokenTree], logps: Float[Tensor, "N"]) -> float | None:
        """The mean loss where policy and reference are equal, in closed form; None if the loss declares none."""
        return value_at_start(self.loss, self.pair_scores(trees, LogRatios.known(trees, logps, logps)))

    def value(self, trees: Sequence[TokenTree], logps: Float[Tensor, "N"], reference: Float[Tensor, "N"]) -> float:
        """The mean loss for these log-probabilities of policy and reference."""
        return _mean(self.loss(self.pair_scores(trees, LogRatios.known(trees, logps, reference))))


class RankingObjective(_WithReference):
    """A loss on rankings (branches ordered by rating, else best first); a unit is a tree."""

    def __init__(
        self, loss: PlackettLuce, reference: ReferenceModel | None = None, divergence: AnyDivergence | None = None
    ) -> None:
        self.loss = loss
        self.divergence = divergence or ReverseKL()
        self._set_reference(reference)

    def count(self, tree: TokenTree) -> int:
        return 1

    def __call__(self, model: TreeModule, forest: Forest) -> Terms:
        ratios = LogRatios.of(model, forest, self._logps)
        branches = self._branches(forest, ratios.x)
        sizes = [len(tree.branches) for tree in forest.sources]
        rewards = torch.split(self.loss.beta * branches.scores(), sizes)
        orders = torch.split(branches.order(), sizes)
        best = torch.stack([reward[order.argmax()] for reward, order in zip(rewards, orders, strict=True)])
        worst = torch.stack([reward[order.argmin()] for reward, order in zip(rewards, orders, strict=True)])
        metrics = {**reward_metrics(best, worst), **clamped_metric(self.divergence, ratios.x, branches)}
        return Terms(self.loss(branches), metrics, unit_weights(forest.sources, self.count, ratios.x.device))

    def start_value(self, trees: Sequence[TokenTree], logps: Float[Tensor, "N"]) -> float | None:
        """The mean loss where policy and reference are equal, in closed form."""
        expected: float = self.loss.at_start(self._branches(pack(trees), torch.zeros(len(logps))))
        return expected

    def value(self, trees: Sequence[TokenTree], logps: Float[Tensor, "N"], reference: Float[Tensor, "N"]) -> float:
        """The mean loss for these log-probabilities of policy and reference."""
        return _mean(self.loss(self._branches(pack(trees), logps - reference)))

    def _branches(self, forest: Forest, x: Float[Tensor, "N"]) -> Branches:
        return forest_branches(forest, self.divergence.score(x)[:, None], Scalar())


class LabelledObjective(_WithReference):
    """KTO, on single labelled responses or on pairs (the first is desirable); a unit is a response.

    `z0` is the reference point of the batch that was prepared last: the mean log-ratio of `mismatched` responses, each
    under the prompt of another tree, or 0 if that is negative.
    """

    def __init__(self, loss: KTO, reference: ReferenceModel | None = None) -> None:
        self.loss = loss
        self.z0 = 0.0
        self.mismatched = 0
        self._set_reference(reference)

    def count(self, tree: TokenTree) -> int:
        return len(tree.branches)

    def prepare(self, model: TreeModule, batch: Sequence[TokenTree], token_budget: int, runtime: Runtime) -> None:
        """The reference's log-probabilities, and z0 = max(0, mean x) of the batch's responses under one another's
        prompts, over all ranks, each with the weight of its prompt's tree.
        """
        super().prepare(model, batch, token_budget, runtime)
        assert isinstance(model, TreeLM), "KTO trains a policy"
        assert self.reference is not None, "KTO has a reference"
        trees = runtime.share(mismatched(batch))
        sums: dict[str, Tensor] = {}
        if trees:
            reference = self.reference.compute_logps(trees, token_budget)
            x = summed_logps(model, trees, token_budget) - torch.cat([reference[tree] for tree in trees]).cpu()
            w = torch.tensor([tree.weight for tree in trees for _ in tree.branches], dtype=torch.float64)
            sums = {"x": (w * x).sum(), "w": w.sum(), "n": torch.tensor(len(x))}
        totals = runtime.sum_values(sums)
        self.z0 = max(0.0, (totals["x"] / totals["w"]).item()) if totals else 0.0
        self.mismatched = int(totals["n"]) if totals else 0

    def __call__(self, model: TreeModule, forest: Forest) -> Terms:
        ratios = LogRatios.of(model, forest, self._logps)
        desirable = labels(forest.sources).to(ratios.x.device)
        scores = LabelledScores(ratios.x, desirable, ratios.x.new_tensor(self.z0))
        signed = torch.where(desirable, 1.0, -1.0) * self.loss.beta * (ratios.x - scores.z0)
        metrics = {
            "rewards/margins": signed,
            "rewards/accuracies": _share_above_zero(signed),
            "rewards/reference": (self.loss.beta * scores.z0).expand_as(signed),
            "rewards/mismatched": torch.full_like(signed, self.mismatched),
            "logps": ratios.logps,
        }
        return Terms(self.loss(scores), metrics, unit_weights(forest.sources, self.count, ratios.x.device))

    def start_value(self, trees: Sequence[TokenTree], logps: Float[Tensor, "N"]) -> float | None:
        """The mean loss where policy and reference are equal, in closed form."""
        expected: float = self.loss.at_start(LabelledScores(torch.zeros(len(logps)), labels(trees), torch.zeros(())))
        return expected

    def value(self, trees: Sequence[TokenTree], logps: Float[Tensor, "N"], reference: Float[Tensor, "N"]) -> float:
        """The mean loss for these log-probabilities of policy and reference, at the z0 of the prepared batch."""
        return _mean(self.loss(LabelledScores(logps - reference, labels(trees), torch.tensor(self.z0))))


AnyPreferenceObjective = PairObjective | RankingObjective | LabelledObjective


def preference_objective(config: DPOConfig, reference: ReferenceModel | None) -> AnyPreferenceObjective:
    """The objective of a configuration.

    Raises:
        UserError: other fields do not go with the loss.
    """
    config.check_loss()
    if isinstance(config.loss, KTO):
        return LabelledObjective(config.loss, reference)
    if isinstance(config.loss, PlackettLuce):
        return RankingObjective(config.loss, reference, config.divergence)
    return PairObjective(config.loss, reference, config.divergence, config.margin)


def check_trees(loss: AnyPreferenceLoss, trees: Sequence[TokenTree]) -> None:
    """Refuse trees that this loss cannot learn from.

    Raises:
        UserError: a tree has the wrong number of responses, no label, or a margin that the loss ignores.
    """
    if not takes_margins(loss):
        refuse_margins(trees, loss_name(loss), WITH_MARGINS)
    if isinstance(loss, KTO):
        labels(trees)
        return
    for tree in trees:
        if required_data(loss) == "pairs" and len(tree.branches) != 2:
            raise UserError(f"{tree.group[:60]!r} has {len(tree.branches)} responses; a pair has two branches")
        if len(tree.branches) < 2:
            raise UserError(f"{tree.group[:60]!r} has {len(tree.branches)} responses; a ranking has two or more")


def mismatched(batch: Sequence[TokenTree]) -> list[TokenTree]:
    """Each tree's prompt with the responses of the next tree that has another prompt, cut to the batch's longest path.

    Trees of weight 0 are left out. A batch with one prompt gives none.
    """
    counted = [tree for tree in batch if tree.weight]
    longest = max((tree.longest_path for tree in counted), default=0)
    trees = []
    for place, tree in enumerate(counted):
        others = (*counted[place + 1 :], *counted[:place])
        other = next((other for other in others if other.prompt != tree.prompt), None)
        if other is not None:
            room = longest - len(tree.prompt)
            cut = tuple(branch[:room] for branch in other.branches)
            trees.append(TokenTree(tree.prompt, cut, tree.group, weight=tree.weight))
    return trees


def labels(trees: Sequence[TokenTree]) -> Bool[Tensor, "N"]:
    """Which branches are desirable: of a pair the first, of single responses those labelled 1.

    Raises:
        UserError: a single response has no label, or a tree has three branches; the first is named.
    """
    desirable: list[bool] = []
    for tree in trees:
        if len(tree.branches) == 2:
            desirable += [True, False]
        elif len(tree.branches) == 1 and tree.ratings in (((0.0,),), ((1.0,),)):
            desirable.append(tree.ratings == ((1.0,),))
        else:
            raise UserError(
                f"{tree.group[:60]!r} has {len(tree.branches)} responses and the ratings {list(tree.ratings)}; kto "
                "learns from single responses labelled 1 or 0, or from pairs"
            )
    return torch.tensor(desirable, dtype=torch.bool)


def reward_metrics(better: Float[Tensor, "P"], worse: Float[Tensor, "P"]) -> dict[str, Tensor]:
    """The metrics of two implicit rewards."""
    return {
        "rewards/chosen": better,
        "rewards/rejected": worse,
        "rewards/margins": better - worse,
        "rewards/accuracies": _share_above_zero(better - worse),
    }


def clamped_metric(divergence: AnyDivergence, x: Tensor, branches: Branches | None = None) -> dict[str, Tensor]:
    """The share of each unit's log-ratios in the linear tail of the divergence's score; nothing under reverse KL."""
    if isinstance(divergence, ReverseKL):
        return {}
    clamped = divergence.clamped(x).float()
    return {"divergence/clamped": clamped.mean(1) if branches is None else branches.tree_mean(clamped)}


def clipped_metric(loss: Any, pairs: PairScores) -> dict[str, Tensor]:
    """Whether `loss.clip` stops a pair's gradient; nothing without a clip."""
    losses = [term.loss for term in loss.terms] if isinstance(loss, Sum) else [loss]
    clipped = [each.clipped(pairs) for each in losses if isinstance(each, Sigmoid) and each.clip is not None]
    return {"loss/clipped": torch.stack(clipped).any(0).float()} if clipped else {}


def _share_above_zero(difference: Tensor) -> Tensor:
    return (difference > 0).float() + 0.5 * (difference == 0).float()


def _mean(values: Tensor) -> float:
    return values.double().mean().item()


def dpo_steps(
    policy: Policy,
    trees: Sequence[Tree | TokenTree],
    config: DPOConfig | None = None,
    reference: ReferenceModel | None = None,
) -> Iterator[Step]:
    """Train `policy` in place on pairs (chosen first), rankings or labelled responses, as the loss needs; yields each
    step after it was taken.

    Args:
        policy: The policy.
        trees: Text or token trees.
        config: Training, loss, divergence and reference.
        reference: A reference model; by default the one of `config.reference`.

    Raises:
        ChecksFailed: the store has log-probabilities of another reference.
        NonFinite: a loss or gradient is not finite.
        UserError: there are no trees, the loss cannot learn from one, or a path is longer than the model's positions.
    """
    config = config or DPOConfig()
    token_trees = tokenized(trees, policy.tokenizer)
    check_trees(config.loss, token_trees)
    if reference is None and needs_reference(config.loss):
        reference = reference_for(policy, config.reference)
    objective = preference_objective(config, reference)
    if token_trees:
        used = config.batches(token_trees).used_trees()
        require(objective.precompute(used, config.token_budget or policy.token_budget))
    yield from training_steps(policy, token_trees, objective, config)


def dpo(
    policy: Policy,
    trees: Sequence[Tree | TokenTree],
    config: DPOConfig | None = None,
    reference: ReferenceModel | None = None,
) -> Result:
    """Train `policy` in place: all steps of `dpo_steps`."""
    return result_of(dpo_steps(policy, trees, config, reference))


@dataclass(frozen=True, kw_only=True)
class DPORun(DPOConfig, RunConfig):
    """treeward dpo: direct preference optimisation."""


class DPO(Method):
    """Measured by the score of fresh samples if a scorer is named, else by held-out implicit-reward accuracy.

    Training measures log-ratios against the objective's reference model, evaluation against the start model.
    """

    name = "dpo"
    Config = DPORun
    usual_lr = (1e-6, 1e-5, 3e-4)

    def __init__(
        self,
        config: DPORun,
        *,
        sampler: Sampler | None = None,
        scorer: Scorer | None = None,
        judges: Sequence[Scorer] | None = None,
    ) -> None:
        self.config = config
        self.purpose: Purpose = required_data(config.loss)
        self.model: Policy = Policy.from_config(config.model, config.seed)
        reference = reference_for(self.model, config.reference)
        self.start: ReferenceModel = reference if config.reference.is_start else self.model.frozen_copy()
        self.objective: AnyPreferenceObjective = preference_objective(config, reference)
        self.samples: policies.SampleEvaluation = policies.SampleEvaluation.of(
            self.model, self.start, config, sampler, scorer, judges
        )
        self.metric = config.evaluation.metric or ("score" if self.samples.scorer else "accuracy")

    @property
    def token_budget(self) -> int:
        """Packed tokens of one forward pass."""
        return self.config.token_budget or self.model.token_budget

    def check_data(self, trees: Sequence[TokenTree]) -> list[Check]:
        check_trees(self.config.loss, trees)
        return []

    def identities(self, trees: Sequence[TokenTree]) -> list[Check]:
        return [
            *identities.policy_identities(self.model.packed, self.start, trees, self.config.model.random),
            *self._start_value(trees),
        ]

    def _start_value(self, trees: Sequence[TokenTree]) -> list[Check]:
        """I02: the objective's first loss against its closed form or, where the reference is another model than the
        policy, against the loss of log-probabilities from unpacked calls.
        """
        packed, reference = self.model.packed, self.objective.reference
        with identities.exact(packed):
            logps = identities.unpacked_logps(packed, trees)
        if reference is None or self.config.reference.is_start or reference.follows_policy:
            expected = self.objective.start_value(trees, logps)
        else:
            with reference.inference() as model, identities.exact(model):
                reference_logps = identities.unpacked_logps(model, trees)
            expected = self.objective.value(trees, logps, reference_logps)
        if expected is None:
            return [identities.start_value_not_declared(self.config.loss)]
        return [identities.start_value(packed, self.objective, trees, expected)]

    def precompute(self, trees: Sequence[TokenTree]) -> list[Check]:
        return self.objective.precompute(trees, self.token_budget)

    def measure(self, trees: Sequence[TokenTree]) -> Measurement:
        samples, rows = self.samples.measure(trees)
        return Measurement({"pairs": self.pair_accuracy(trees), "samples": samples}, rows)

    def measure_again(self, trees: Sequence[TokenTree]) -> Table | None:
        return self.samples.measure(trees, offset=1)[0] if self.config.evaluation.aa else None

    def pair_accuracy(self, trees: Sequence[TokenTree]) -> Table:
        return policies.implicit(self.model, self.start, trees)

    def verdict_groups(self, trees: Sequence[TokenTree]) -> int:
        if self.metric in policies.OF_PAIRS:
            return len(policies.opposed_groups(trees))
        return len(self.samples.prompts_of(trees))
