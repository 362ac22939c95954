"""What a method is: its configuration, its model and objective, and how its success is measured.

`runner.run` drives every method through this interface, and the interface has a default for what most methods share.
A method needs a `Config`, the usual learning rates, and a constructor that sets `model`, `objective`, `purpose` and
`metric`, and `measure`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

from treeward.checks.check import Check
from treeward.data.formats import Purpose
from treeward.data.prepare import DataConfig, prepare
from treeward.data.store import Prepared
from treeward.errors import UserError
from treeward.evaluation.policies import SampleEvaluation, SamplePlan
from treeward.models.loading import ModelConfig
from treeward.models.policy import Policy
from treeward.models.reference import ReferenceModel
from treeward.models.reward_model import RewardModel
from treeward.stats.tables import JUDGE, Comparison, Measurement, Table, metric
from treeward.training.loop import TrainingConfig
from treeward.training.objectives import Objective
from treeward.trees.rollout import Rollout
from treeward.trees.tokens import Tokenizer, TokenTree

LONGEST_SAMPLE = 64
"""Longest sample of an evaluation in tokens, where nothing else is set."""


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How the model is measured before and after training."""

    scorer: str | None = None
    """Scores fresh samples: `gold` (the embedded world), `length`, `count:WORD`, `FILE.py:FUNCTION`, or the directory
    of a reward model or classifier (`DIR#LABEL`)."""
    judges: tuple[str, ...] = ()
    """More scorers, which training never used. If one falls while the score rises, the run is worse."""
    aa: bool = False
    """A/A test: measure the start model again with another seed; the difference should be near zero."""
    prompts: int = 64
    """Held-out prompts to sample from."""
    samples: int = 4
    """Samples for each prompt."""
    max_new_tokens: int | None = None
    """Longest sample in tokens, end token included; by default the `max_new_tokens` of training, and 64 where training
    samples nothing."""
    temperature: float = 1.0
    """Sampling temperature; 1 samples the policy itself."""
    metric: str | None = None
    """Metric of the verdict and of the best checkpoint; by default the method's own."""

    def __post_init__(self) -> None:
        if self.metric is not None and self.metric.startswith(JUDGE):
            raise UserError(
                f"evaluation.metric is {self.metric!r}, but a judge that selects the checkpoint is no longer "
                "independent; name another metric"
            )
        if self.metric is not None:
            metric(self.metric)
        for name in ("prompts", "samples", "max_new_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"evaluation.{name} is {value}; it must be at least 1")
        if not self.temperature > 0:
            raise UserError(f"evaluation.temperature is {self.temperature}; it must be above 0 (1 samples the policy)")

    def refuse_sampling(self) -> None:
        """For reward models, which are not sampled from.

        Raises:
            UserError: an option of sampling is set.
        """
        default = EvaluationConfig()
        for name in ("scorer", "judges", "aa", "prompts", "samples", "max_new_tokens", "temperature"):
            value = getattr(self, name)
            if value != getattr(default, name):
                raise UserError(f"evaluation.{name} is {value!r}, but a reward model is not sampled from; remove it")

    def plan(self, seed: int) -> SamplePlan:
        """How samples are drawn, the same before and after."""
        return SamplePlan(self.samples, self.max_new_tokens or LONGEST_SAMPLE, self.temperature, seed)


@dataclass(frozen=True, kw_only=True)
class RunConfig(TrainingConfig):
    """What every training command takes: training, model, data, evaluation, and where the run goes."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """The model."""
    data: DataConfig = field(default_factory=DataConfig)
    """The data."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """Measurement before and after."""
    name: str | None = None
    """The run's name: it goes to runs/NAME or the next free number; by default the recipe's or the command's."""
    out: str | None = None
    """The run's directory itself; it must not exist."""
    require: Literal["improved", "any"] = "improved"
    """The verdict below which the exit code is 3; `any` accepts all but broken."""
    skip_check: tuple[str, ...] = ()
    """Slugs or ids of checks whose failure is accepted, such as [learning-rate-usual]; see `treeward explain`."""
    evaluate_every: int | None = None
    """Steps between evaluations on the validation part; the best step's weights are kept. By default each epoch."""
    save_every: int = 100
    """Steps between checkpoints; the last one is kept."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("evaluate_every", "save_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} is {value}; it must be at least 1")
        if self.evaluation.max_new_tokens is None:
            object.__setattr__(self, "evaluation", replace(self.evaluation, max_new_tokens=self.longest_sample))

    @property
    def longest_sample(self) -> int | None:
        """`evaluation.max_new_tokens` where it is not set; None where the model is not sampled from."""
        return LONGEST_SAMPLE


class Method:
    """A training method. The attributes are set by the constructor, `__init__(self, config)`.

    `model` is what trains, `objective` its loss. `purpose` says which data the method needs: "pairs" (chosen first),
    "ranked", "graded", "unpaired", "sft" (one response) or "prompts". `metric` names the column of the measurement that
    decides the verdict and the best checkpoint. `start` is the start model of a policy, which KL is measured against.
    `samples` draws and measures fresh samples of a policy, where the method does.
    `attributes` are the names of the ratings that the model learns, in its order. `scorer_name` is the scorer of the
    samples, where it is not `evaluation.scorer`; `reward_name` the scorer that training uses, if it uses one.
    """

    name: ClassVar[str]
    Config: ClassVar[type[RunConfig]]
    usual_lr: ClassVar[tuple[float, float, float]]
    """Usual peak learning rates: from 1B parameters, at 100M, and under 20M or from random weights."""

    shown: ClassVar[tuple[str, ...]] = ("loss",)
    """Metrics of a step that the progress line shows."""

    config: Any
    model: Policy | RewardModel
    objective: Objective
    purpose: Purpose
    metric: str
    start: ReferenceModel | None = None
    samples: SampleEvaluation | None = None
    attributes: tuple[str, ...] = ()
    scorer_name: str | None = None
    reward_name: str | None = None

    def __init__(self, config: Any) -> None:
        self.config = config

    def prepare(self, tokenizer: Tokenizer) -> Prepared:
        """Read and render the data of the configuration.

        Raises:
            UserError: the data cannot be read.
        """
        return prepare(self.config.data, tokenizer, self.purpose, self.attributes)

    def batch(self, trees: Sequence[TokenTree], step: int) -> Sequence[TokenTree] | Rollout:
        """What the step of this number trains on, given its batch of trees: the trees, or samples of the policy."""
        return trees

    def examples(self, trees: Sequence[TokenTree]) -> tuple[Sequence[TokenTree], list[Check]]:
        """Trees with responses for the checks that run the model, and checks of them: the trees, or samples."""
        return trees, []

    def measure(self, trees: Sequence[TokenTree]) -> Measurement:
        """Measure the model as it is now on these held-out trees."""
        raise NotImplementedError(f"{type(self).__name__} has no measure(trees)")

    def measure_again(self, trees: Sequence[TokenTree]) -> Table | None:
        """Fresh samples of the model under another seed, for an A/A test; None where none is configured."""
        return None

    def check_data(self, trees: Sequence[TokenTree]) -> list[Check]:
        """Whether the objective can learn from all of these training trees.

        Raises:
            UserError: a tree lacks the responses, ratings or margin that the loss needs.
        """
        return []

    def identities(self, trees: Sequence[TokenTree]) -> list[Check]:
        """Identities that hold for this method alone, tested on a few training trees before the first step."""
        return []

    def step_checks(self, steps: Sequence[Mapping[str, Any]]) -> list[Check]:
        """Checks after each step, given the metrics of all steps so far; a failed one ends the run as broken."""
        return []

    def stop_reason(self, steps: Sequence[Mapping[str, Any]]) -> str | None:
        """Why training should end early without being broken, given the metrics of all steps so far; None to go on."""
        return None

    def may_keep(self, values: Mapping[str, float]) -> bool:
        """Whether the weights with these values on the validation part may be kept as the best."""
        return True

    def precompute(self, trees: Sequence[TokenTree]) -> list[Check]:
        """Compute what does not change while training on these trees, such as reference log-probabilities."""
        return []

    def pair_accuracy(self, trees: Sequence[TokenTree]) -> Table | None:
        """The model's pair accuracy on these trees, without sampling; None where there are no pairs."""
        return None

    def verdict_groups(self, trees: Sequence[TokenTree]) -> int:
        """How many groups of these held-out trees the metric of the verdict is measured on."""
        return len({tree.group for tree in trees})

    def exit_code(self, verdict: str, code: int) -> int:
        """The exit code of a finished run, given its verdict and the usual exit code."""
        return code

    def trivial_rule(self, measured: Measurement) -> Comparison | None:
        """A trivial rule that the model must beat, against the model; None if there is none."""
        return None

    def facts(self, measured: Measurement, trees: Sequence[TokenTree]) -> dict[str, Any]:
        """What the receipt reports besides the compared metrics."""
        return {}
