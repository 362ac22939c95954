"""What every training command takes, beside its algorithm's own configuration."""

from dataclasses import dataclass, field
from typing import Literal

from treeward.data.prepare import DataConfig
from treeward.errors import UserError
from treeward.evaluation.policies import SamplePlan
from treeward.losses.heads import AnyHead, Scalar
from treeward.methods.dpo import DPOConfig
from treeward.methods.reward import RewardConfig, suited
from treeward.methods.sft import SFTConfig
from treeward.models.loading import ModelConfig
from treeward.stats.tables import JUDGE, metric


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How before and after are measured."""

    scorer: str | None = None
    """Scorer of fresh samples: `gold` (the embedded world), `length`, `count:WORD`, `FILE.py:FUNCTION`, or the
    directory of a reward model or classifier (`DIR#LABEL`)."""
    judges: tuple[str, ...] = ()
    """Further scorers that training never used; one that falls while the score rises makes the run worse."""
    aa: bool = False
    """Measure the start a second time under another seed: the difference must be none."""
    prompts: int = 64
    """Held-out prompts that are sampled from."""
    samples: int = 4
    """Samples a prompt."""
    max_new_tokens: int = 64
    """Longest sample, end token included."""
    temperature: float = 1.0
    """Sampling temperature; 1 samples the policy itself."""
    metric: str | None = None
    """By which the best step is chosen and the verdict given; by default the command's own."""

    def __post_init__(self) -> None:
        if self.metric is not None and self.metric.startswith(JUDGE):
            raise UserError(
                f"evaluation.metric is {self.metric!r}, but a judge that chooses the best step is none; name another"
            )
        if self.metric is not None:
            metric(self.metric)
        for name in ("prompts", "samples", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise UserError(f"evaluation.{name} is {getattr(self, name)}; it must be at least 1")
        if not self.temperature > 0:
            raise UserError(f"evaluation.temperature is {self.temperature}; it must be above 0 (1 samples the policy)")

    def refuse_samples(self) -> None:
        """For reward models, which answer no prompts. How samples would be drawn may stand: it promises no figure.

        Raises:
            UserError: a figure of samples is asked for.
        """
        for name in ("scorer", "judges", "aa"):
            value = getattr(self, name)
            if value:
                raise UserError(f"evaluation.{name} is {value!r}, but a reward model is not sampled from; drop it")

    def plan(self, seed: int) -> SamplePlan:
        """How samples are drawn, the same before and after."""
        return SamplePlan(self.samples, self.max_new_tokens, self.temperature, seed)


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Where a run reads and writes, and what it must show."""

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
    """Ids of checks whose failure is accepted, such as [F42]."""
    evaluate_every: int | None = None
    """Steps between measurements on the validation part; the best step's weights are kept. By default each epoch."""
    save_every: int = 100
    """Steps between checkpoints; the last one is kept."""

    def __post_init__(self) -> None:
        for name in ("evaluate_every", "save_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} is {value}; it must be at least 1")


@dataclass(frozen=True, kw_only=True)
class SFTRun(RunOptions, SFTConfig):
    """treeward sft: supervised fine-tuning."""

    data: DataConfig = field(default_factory=lambda: DataConfig(source="world-texts"))
    """The data."""

    def __post_init__(self) -> None:
        RunOptions.__post_init__(self)
        SFTConfig.__post_init__(self)


@dataclass(frozen=True, kw_only=True)
class RewardRun(RunOptions, RewardConfig):
    """treeward reward: a reward model from judged responses."""

    head: AnyHead = field(default_factory=Scalar)
    """What the model says of a response: one number, or a distribution over scores."""
    members: int = 1
    """Train an ensemble of this many models from one start, in different data orders, and join them."""

    def __post_init__(self) -> None:
        RunOptions.__post_init__(self)
        RewardConfig.__post_init__(self)
        self.evaluation.refuse_samples()
        suited(self.loss, self.head)
        if self.members < 1:
            raise UserError(f"members is {self.members}; it must be at least 1")


@dataclass(frozen=True, kw_only=True)
class DPORun(RunOptions, DPOConfig):
    """treeward dpo: direct preference optimisation."""

    def __post_init__(self) -> None:
        RunOptions.__post_init__(self)
        DPOConfig.__post_init__(self)


AnyRun = SFTRun | RewardRun | DPORun
"""Every training command's configuration; its class names the command."""

RUNS: dict[str, type[AnyRun]] = {"sft": SFTRun, "reward": RewardRun, "dpo": DPORun}


def verb_of(config: AnyRun) -> str:
    """The command of a configuration."""
    return next(verb for verb, cls in RUNS.items() if isinstance(config, cls))
