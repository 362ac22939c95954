"""A tiny model of the embedded world and its pairs: a check of a planted fault takes about a second."""

from typing import Any

import pytest


@pytest.fixture
def policy() -> Any:
    """A fresh policy of the embedded world."""
    from treeward.models.policy import Policy

    return Policy.load("world")


@pytest.fixture
def reward_model() -> Any:
    """A fresh reward model of the embedded world, head at zero."""
    from treeward.models.loading import ModelConfig
    from treeward.models.reward_model import RewardModel

    return RewardModel.from_config(ModelConfig())


@pytest.fixture
def prepared(policy: Any) -> Any:
    """Four hundred pairs of the world, split and rendered."""
    from treeward.data.prepare import DataConfig, prepare

    return prepare(DataConfig(limit=400), policy.tokenizer, "pairs")


@pytest.fixture
def pairs(prepared: Any) -> Any:
    """Four different pairs."""
    return prepared.train[:4]
