"""The three training tasks: how each loads, checks, trains and measures its model. `jobs.train` drives them alike."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from treeward.checks import identities
from treeward.checks.check import Check
from treeward.data.shapes import Purpose
from treeward.evaluation import policies, rewards, versus
from treeward.losses.heads import Attributes, Scalar
from treeward.losses.preference import needs as preference_needs
from treeward.losses.reward import Graded
from treeward.methods.dpo import check_shape, dpo
from treeward.methods.dpo import objective as preference
from treeward.methods.reward import Judgement, check_judged, needs, reward, suited
from treeward.methods.sft import TokenNLL, sft
from treeward.models.policy import Policy
from treeward.models.reference import ReferenceModel, reference_for
from treeward.models.reward_model import RewardModel
from treeward.rewards import scorers
from treeward.runner.options import AnyRun, DPORun, RewardRun, SFTRun
from treeward.stats.tables import Comparison, Measurement, Table
from treeward.training.loop import Objective, Step, reached
from treeward.training.outputs import branches
from treeward.trees.forest import pack
from treeward.trees.tokens import TokenTree
from treeward.trees.verify import perturb_zero_parameters


@runtime_checkable
class Task(Protocol):
    """What `jobs.train` needs of a command."""

    @property
    def model(self) -> Policy | RewardModel: ...
    @property
    def start(self) -> ReferenceModel | None: ...
    @property
    def purpose(self) -> Purpose: ...
    @property
    def metric(self) -> str:
        """By which the best step is chosen and the verdict given."""
        ...

    @property
    def attributes(self) -> tuple[str, ...]:
        """The names of the ratings that the model learns, in its order; empty where it learns none by name."""
        ...

    def objective(self, trees: Sequence[TokenTree]) -> Objective:
        """The training objective, ready for these trees, at the start."""
        ...

    def suits(self, trees: Sequence[TokenTree]) -> list[Check]:
        """Whether the command can learn from all of its training trees.

        Raises:
            UserError: a tree has not the shape, the ratings or the margin that the loss asks for.
        """
        ...

    def identities(self, trees: Sequence[TokenTree]) -> list[Check]:
        """The identities that hold for this command alone."""
        ...

    def steps(self, trees: Sequence[TokenTree], resume: Path | None) -> Iterator[Step]:
        """The training steps."""
        ...

    def measure(self, trees: Sequence[TokenTree]) -> Measurement:
        """The model as it is now, on these held-out trees."""
        ...

    def pairs(self, trees: Sequence[TokenTree]) -> Table | None:
        """The model's pair accuracy on these trees, without any sampling; None where there are no pairs."""
        ...

    def verdict_groups(self, trees: Sequence[TokenTree]) -> int:
        """How many of these held-out trees' groups the metric of the verdict is measured on."""
        ...

    def rule(self, measured: Measurement) -> Comparison | None:
        """The trivial rule that the model must beat, if there is one."""
        ...

    def facts(self, measured: Measurement, trees: Sequence[TokenTree]) -> dict[str, Any]:
        """What the receipt says beside the compared metrics."""
        ...


class SFTTask:
    """Supervised fine-tuning: held-out NLL a token, or the score of fresh samples where a scorer is named."""

    purpose: Purpose = "sft"
    attributes: tuple[str, ...] = ()

    def __init__(self, config: SFTRun) -> None:
        self.config = config
        self.model = Policy.from_config(config.model, config.seed)
        self.start = ReferenceModel.of(self.model)
        self.scorer, self.judges = scorers.find_all(config.evaluation.scorer, config.evaluation.judges)
        self.metric = config.evaluation.metric or "nll"

    def objective(self, trees: Sequence[TokenTree]) -> Objective:
        return TokenNLL(self.model.packed)

    def suits(self, trees: Sequence[TokenTree]) -> list[Check]:
        return []

    def identities(self, trees: Sequence[TokenTree]) -> list[Check]:
        return _policy_identities(self.config, self.model, self.start, trees)

    def steps(self, trees: Sequence[TokenTree], resume: Path | None) -> Iterator[Step]:
        return sft(self.model, trees, self.config, resume)

    def measure(self, trees: Sequence[TokenTree]) -> Measurement:
        samples, shown = _samples(self, trees)
        return Measurement({"texts": policies.likelihood(self.model, trees), "samples": samples}, shown)

    def pairs(self, trees: Sequence[TokenTree]) -> Table | None:
        return None

    def verdict_groups(self, trees: Sequence[TokenTree]) -> int:
        return len(_groups(trees)) if self.metric == "nll" else len(_prompts(self, trees))

    def rule(self, measured: Measurement) -> Comparison | None:
        return None

    def facts(self, measured: Measurement, trees: Sequence[TokenTree]) -> dict[str, Any]:
        return {}


class RewardTask:
    """A reward model: held-out pair accuracy, against the rule that the longer wins; of ratings alone, CRPS."""

    start = None

    def __init__(self, config: RewardRun) -> None:
        self.config = config
        self.model = RewardModel.from_config(config.model, config.seed, config.head)
        self.loss = suited(config.loss, self.model.head)
        self.purpose: Purpose = needs(self.loss)
        head = self.model.head
        self.attributes: tuple[str, ...] = head.names if isinstance(head, Attributes) else ()
        self.metric = config.evaluation.metric or ("crps" if self.purpose == "graded" else "accuracy")

    def objective(self, trees: Sequence[TokenTree]) -> Objective:
        return Judgement(self.model.packed, self.loss)

    def suits(self, trees: Sequence[TokenTree]) -> list[Check]:
        check_judged(self.loss, self.model.head, trees)
        return []

    def identities(self, trees: Sequence[TokenTree]) -> list[Check]:
        objective = self.objective(trees)
        found = []
        if all(len(tree.branches) == 2 for tree in trees):
            found.append(identities.swapped(self._margins, trees))
        if not self.model.has_trained_head:
            with identities.exact(self.model.packed):
                zeros = self.model.outputs(trees)
            expected = self.loss.at_start(branches(pack(trees), zeros, self.model.head))
            found.append(identities.start_value(self.model.packed, objective, trees, expected))
        return found

    def steps(self, trees: Sequence[TokenTree], resume: Path | None) -> Iterator[Step]:
        return reward(self.model, trees, self.config, resume)

    def measure(self, trees: Sequence[TokenTree]) -> Measurement:
        judged = rewards.Judged.of(self.model, trees)
        graded = self.loss if isinstance(self.loss, Graded) else getattr(self.loss, "graded", None)
        tables = {"pairs": judged.pairs(), "graded": judged.graded(graded.scale) if graded else None}
        return Measurement({name: table for name, table in tables.items() if table is not None})

    def pairs(self, trees: Sequence[TokenTree]) -> Table | None:
        return rewards.Judged.of(self.model, trees).pairs()

    def verdict_groups(self, trees: Sequence[TokenTree]) -> int:
        paired = self.metric in rewards.OF_PAIRS
        return len(set(rewards.ordered(trees)[2])) if paired else len(_groups(trees))

    def rule(self, measured: Measurement) -> Comparison | None:
        return rewards.against_longer_wins(measured.tables["pairs"]) if "pairs" in measured.tables else None

    def facts(self, measured: Measurement, trees: Sequence[TokenTree]) -> dict[str, Any]:
        tables = measured.tables
        found: dict[str, Any] = {}
        if "pairs" in tables:
            found |= {"calibration": rewards.calibration_facts(tables["pairs"])}
            found |= {"length": rewards.length_facts(tables["pairs"])}
            found |= {"subsets": rewards.subset_facts(tables["pairs"], trees)}
        if "graded" in tables and not isinstance(self.model.head, Scalar):
            found |= {"graded": rewards.graded_facts(tables["graded"], self.model.head.bins)}
        return found

    def _margins(self, trees: Sequence[TokenTree]) -> Tensor:
        with identities.exact(self.model.packed), perturb_zero_parameters(self.model.packed):
            scores = self.model.score(trees).view(-1, 2)
        return scores[:, 0] - scores[:, 1]


class DPOTask:
    """A preference loss: the score of fresh samples where a scorer is named, else held-out implicit accuracy.

    Training measures log-ratios against `reference`; evaluation and checks against the start, `reference`.
    """

    attributes: tuple[str, ...] = ()

    def __init__(self, config: DPORun) -> None:
        self.config = config
        self.purpose: Purpose = preference_needs(config.loss)
        self.model = Policy.from_config(config.model, config.seed)
        self.reference = reference_for(self.model, config.reference)
        self.start = self.reference if config.reference.is_start else ReferenceModel.of(self.model)
        self.scorer, self.judges = scorers.find_all(config.evaluation.scorer, config.evaluation.judges)
        self.metric = config.evaluation.metric or ("score" if self.scorer else "accuracy")

    def objective(self, trees: Sequence[TokenTree]) -> Objective:
        with identities.exact(self.start.packed):
            return preference(self.model, self.start, trees, self.config)

    def suits(self, trees: Sequence[TokenTree]) -> list[Check]:
        check_shape(self.config.loss, trees)
        if not self.config.loss.needs_reference:
            return []
        budget = self.config.token_budget or self.model.token_budget
        found = self.reference.audit(reached(self.config, trees), budget)
        if found is None:
            return []
        name = "stored log-probabilities of the reference against those computed now, nats a token"
        passed = found.passed if found.entries else None
        return [Check("F22", name, passed, ("F22",), "before", found.deviation, found.limit, found.detail)]

    def identities(self, trees: Sequence[TokenTree]) -> list[Check]:
        with identities.exact(self.start.packed):
            objective = preference(self.model, self.start, trees, self.config)
            known = self.start.branch_logps(trees, self.model.token_budget)
        expected = objective.at_start(pack(trees), known)
        return [
            *_policy_identities(self.config, self.model, self.start, trees),
            identities.start_value(self.model.packed, objective, trees, expected),
        ]

    def steps(self, trees: Sequence[TokenTree], resume: Path | None) -> Iterator[Step]:
        return dpo(self.model, trees, self.config, self.reference, resume)

    def measure(self, trees: Sequence[TokenTree]) -> Measurement:
        samples, shown = _samples(self, trees)
        return Measurement({"pairs": self.pairs(trees), "samples": samples}, shown)

    def pairs(self, trees: Sequence[TokenTree]) -> Table:
        return policies.implicit(self.model, self.start, trees)

    def verdict_groups(self, trees: Sequence[TokenTree]) -> int:
        paired = self.metric in policies.OF_PAIRS
        return len(policies.opposed_groups(trees)) if paired else len(_prompts(self, trees))

    def rule(self, measured: Measurement) -> Comparison | None:
        return None

    def facts(self, measured: Measurement, trees: Sequence[TokenTree]) -> dict[str, Any]:
        return {}


def task_of(config: AnyRun) -> Task:
    """The task that a configuration's class names, its model loaded."""
    if isinstance(config, SFTRun):
        return SFTTask(config)
    if isinstance(config, RewardRun):
        return RewardTask(config)
    return DPOTask(config)


def _policy_identities(
    config: SFTRun | DPORun, policy: Policy, start: ReferenceModel, trees: Sequence[TokenTree]
) -> list[Check]:
    found = identities.start_checks(policy.packed, start, trees)
    return found if config.model.random else [*found, identities.knows_vocabulary(policy.packed, trees)]


def _samples(
    task: SFTTask | DPOTask, trees: Sequence[TokenTree], offset: int = 0
) -> tuple[Table, list[dict[str, object]]]:
    """Fresh samples for the first held-out prompts, one prompt a group; `offset` is added to the seed."""
    plan = task.config.evaluation.plan(task.config.seed + offset)
    return policies.fresh(task.model, task.start, _prompts(task, trees), plan, task.scorer, task.judges)


def _prompts(task: SFTTask | DPOTask, trees: Sequence[TokenTree]) -> list[TokenTree]:
    """The prompts that are sampled from, one a group."""
    by_group = {tree.group: TokenTree(tree.prompt, (), tree.group) for tree in trees}
    return list(by_group.values())[: task.config.evaluation.prompts]


def _groups(trees: Sequence[TokenTree]) -> set[str]:
    return {tree.group for tree in trees}


def with_again(task: Task, measured: Measurement, trees: Sequence[TokenTree]) -> Measurement:
    """The measurement with the start's samples under another seed beside it, where `evaluation.aa` asks for them."""
    if not isinstance(task, SFTTask | DPOTask) or not task.config.evaluation.aa:
        return measured
    again, _ = _samples(task, trees, offset=1)
    return replace(measured, tables={**measured.tables, versus.AGAIN: again})
