"""Treeward aligns language models to preferences, and proves that it did.

The names below are loaded when they are first used, so that importing treeward costs nothing.
"""

from importlib import import_module
from typing import Any

_NAMES = {
    "ChecksFailed": "treeward.checks.check",
    "DPOConfig": "treeward.methods.dpo",
    "Ensemble": "treeward.models.ensemble",
    "Forest": "treeward.trees.forest",
    "Policy": "treeward.models.policy",
    "ReferenceModel": "treeward.models.reference",
    "Response": "treeward.trees.text",
    "RewardConfig": "treeward.methods.reward",
    "RewardModel": "treeward.models.reward_model",
    "SFTConfig": "treeward.methods.sft",
    "TokenTree": "treeward.trees.tokens",
    "Tree": "treeward.trees.text",
    "branch_logps": "treeward.models.policy",
    "branch_scores": "treeward.models.reward_model",
    "dpo": "treeward.methods.dpo",
    "pack_to_budget": "treeward.trees.forest",
    "reward": "treeward.methods.reward",
    "sft": "treeward.methods.sft",
    "token_logps": "treeward.models.policy",
    "verify": "treeward.trees.verify",
    "warm": "treeward.models.ensemble",
}
_MODULES = {
    "data": "treeward.data",
    "heads": "treeward.losses.heads",
    "losses": "treeward.losses",
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
