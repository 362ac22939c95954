"""Treeward aligns language models to preferences, and proves that it did.

Names are imported when they are first used, so importing treeward costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from treeward import data as data
    from treeward import losses as losses
    from treeward import merging as merging
    from treeward.api import Evaluation as Evaluation
    from treeward.api import best_worst as best_worst
    from treeward.api import check as check
    from treeward.api import evaluate as evaluate
    from treeward.api import receipt as receipt
    from treeward.api import render as render
    from treeward.api import sample as sample
    from treeward.api import score as score
    from treeward.checks.check import Check as Check
    from treeward.checks.receipt import Receipt as Receipt
    from treeward.data import Dataset as Dataset
    from treeward.data import load as load
    from treeward.errors import ChecksFailed as ChecksFailed
    from treeward.errors import UserError as UserError
    from treeward.losses import divergences as divergences
    from treeward.losses import heads as heads
    from treeward.losses import reward as reward_losses  # noqa: F401
    from treeward.losses.preference import PairScores as PairScores
    from treeward.methods.dpo import DPOConfig as DPOConfig
    from treeward.methods.dpo import LabelledObjective as LabelledObjective
    from treeward.methods.dpo import PairObjective as PairObjective
    from treeward.methods.dpo import RankingObjective as RankingObjective
    from treeward.methods.dpo import dpo as dpo
    from treeward.methods.dpo import dpo_steps as dpo_steps
    from treeward.methods.method import Method as Method
    from treeward.methods.method import RunConfig as RunConfig
    from treeward.methods.reinforce import PolicyGradientObjective as PolicyGradientObjective
    from treeward.methods.reinforce import ReinforceConfig as ReinforceConfig
    from treeward.methods.reinforce import reinforce as reinforce
    from treeward.methods.reinforce import reinforce_steps as reinforce_steps
    from treeward.methods.reward import RewardConfig as RewardConfig
    from treeward.methods.reward import RewardObjective as RewardObjective
    from treeward.methods.reward import reward as reward
    from treeward.methods.reward import reward_steps as reward_steps
    from treeward.methods.sft import SFTConfig as SFTConfig
    from treeward.methods.sft import TokenNLL as TokenNLL
    from treeward.methods.sft import sft as sft
    from treeward.methods.sft import sft_steps as sft_steps
    from treeward.methods.warp import Warped as Warped
    from treeward.methods.warp import warp as warp
    from treeward.models.ensemble import Ensemble as Ensemble
    from treeward.models.ensemble import warm as warm
    from treeward.models.loading import LoRA as LoRA
    from treeward.models.policy import Policy as Policy
    from treeward.models.policy import branch_logps as branch_logps
    from treeward.models.policy import token_logps as token_logps
    from treeward.models.reference import EMA as EMA
    from treeward.models.reference import EMAReference as EMAReference
    from treeward.models.reference import Frozen as Frozen
    from treeward.models.reference import ReferenceModel as ReferenceModel
    from treeward.models.reward_model import RewardModel as RewardModel
    from treeward.models.reward_model import branch_scores as branch_scores
    from treeward.rewards.scorers import BadScore as BadScore
    from treeward.runtime import Runtime as Runtime
    from treeward.stats.tables import Measurement as Measurement
    from treeward.stats.tables import Table as Table
    from treeward.training.batches import Batches as Batches
    from treeward.training.loop import Loop as Loop
    from treeward.training.loop import Result as Result
    from treeward.training.loop import Step as Step
    from treeward.training.objectives import Objective as Objective
    from treeward.training.objectives import Terms as Terms
    from treeward.trees.forest import Forest as Forest
    from treeward.trees.forest import pack as pack
    from treeward.trees.rollout import Rollout as Rollout
    from treeward.trees.rollout import Sample as Sample
    from treeward.trees.text import Response as Response
    from treeward.trees.text import Tree as Tree
    from treeward.trees.tokens import TokenTree as TokenTree
    from treeward.trees.verify import verify as verify

_NAMES = {
    "BadScore": "treeward.rewards.scorers",
    "Batches": "treeward.training.batches",
    "Check": "treeward.checks.check",
    "ChecksFailed": "treeward.errors",
    "DPOConfig": "treeward.methods.dpo",
    "Dataset": "treeward.data",
    "EMA": "treeward.models.reference",
    "EMAReference": "treeward.models.reference",
    "Ensemble": "treeward.models.ensemble",
    "Evaluation": "treeward.api",
    "Forest": "treeward.trees.forest",
    "Frozen": "treeward.models.reference",
    "LabelledObjective": "treeward.methods.dpo",
    "LoRA": "treeward.models.loading",
    "Loop": "treeward.training.loop",
    "Measurement": "treeward.stats.tables",
    "Method": "treeward.methods.method",
    "Objective": "treeward.training.objectives",
    "PairObjective": "treeward.methods.dpo",
    "PairScores": "treeward.losses.preference",
    "Policy": "treeward.models.policy",
    "PolicyGradientObjective": "treeward.methods.reinforce",
    "RankingObjective": "treeward.methods.dpo",
    "Receipt": "treeward.checks.receipt",
    "ReferenceModel": "treeward.models.reference",
    "ReinforceConfig": "treeward.methods.reinforce",
    "Response": "treeward.trees.text",
    "Result": "treeward.training.loop",
    "RewardConfig": "treeward.methods.reward",
    "RewardModel": "treeward.models.reward_model",
    "RewardObjective": "treeward.methods.reward",
    "Rollout": "treeward.trees.rollout",
    "RunConfig": "treeward.methods.method",
    "Runtime": "treeward.runtime",
    "SFTConfig": "treeward.methods.sft",
    "Sample": "treeward.trees.rollout",
    "Step": "treeward.training.loop",
    "Table": "treeward.stats.tables",
    "Terms": "treeward.training.objectives",
    "TokenNLL": "treeward.methods.sft",
    "TokenTree": "treeward.trees.tokens",
    "Tree": "treeward.trees.text",
    "UserError": "treeward.errors",
    "Warped": "treeward.methods.warp",
    "best_worst": "treeward.api",
    "branch_logps": "treeward.models.policy",
    "branch_scores": "treeward.models.reward_model",
    "check": "treeward.api",
    "dpo": "treeward.methods.dpo",
    "dpo_steps": "treeward.methods.dpo",
    "evaluate": "treeward.api",
    "load": "treeward.data",
    "pack": "treeward.trees.forest",
    "receipt": "treeward.api",
    "reinforce": "treeward.methods.reinforce",
    "reinforce_steps": "treeward.methods.reinforce",
    "render": "treeward.api",
    "reward": "treeward.methods.reward",
    "reward_steps": "treeward.methods.reward",
    "sample": "treeward.api",
    "score": "treeward.api",
    "sft": "treeward.methods.sft",
    "sft_steps": "treeward.methods.sft",
    "token_logps": "treeward.models.policy",
    "verify": "treeward.trees.verify",
    "warm": "treeward.models.ensemble",
    "warp": "treeward.methods.warp",
}
_MODULES = {
    "data": "treeward.data",
    "divergences": "treeward.losses.divergences",
    "heads": "treeward.losses.heads",
    "losses": "treeward.losses",
    "merging": "treeward.merging",
    "reward_losses": "treeward.losses.reward",
}

__all__ = [*_NAMES, *_MODULES]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(_MODULES[name])
    if name in _NAMES:
        return getattr(import_module(_NAMES[name]), name)
    raise AttributeError(f"module 'treeward' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
