"""Samples from a policy, as text."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from treeward.data.prepare import DataConfig, prepare
from treeward.data.render import token_tree
from treeward.errors import UserError
from treeward.models.loading import ModelConfig
from treeward.models.policy import Policy
from treeward.models.sampler import DecodeSampler, Noise, check_sampling
from treeward.trees.text import Tree
from treeward.trees.tokens import decode


@dataclass(frozen=True, kw_only=True)
class SampleRun:
    """treeward sample: responses to a prompt, or to the prompts of a data set."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """The policy."""
    prompt: str | None = None
    """One prompt, as it stands; else the prompts of the data."""
    data: DataConfig = field(default_factory=lambda: DataConfig(source="world-texts", limit=4, validation=0, test=0))
    """Where prompts come from, if none is given."""
    samples: int = 4
    """Samples a prompt."""
    max_new_tokens: int = 64
    """Longest sample, end token included."""
    temperature: float = 1.0
    """Sampling temperature; 1 samples the policy itself."""
    seed: int = 0
    """Seeds the samples."""

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise UserError(f"samples is {self.samples}; it must be at least 1")
        check_sampling(self.max_new_tokens, self.temperature)


def sample(config: SampleRun) -> Iterator[dict[str, Any]]:
    """One row a sample: prompt, response, whether it ended, its token count.

    Raises:
        UserError: the policy or the prompts cannot be loaded.
    """
    policy = Policy.trained(config.model, config.seed)
    if config.prompt is not None:
        prompts = [token_tree(Tree(config.prompt, (), group="prompt"), policy.tokenizer)]
    else:
        prompts = prepare(config.data, policy.tokenizer, "prompts").train
    sampler = DecodeSampler.of(policy, config.max_new_tokens, config.temperature)
    ends = set(policy.end_ids)
    for tree in sampler(prompts, config.samples, Noise(config.seed)).trees:
        prompt = decode(tree.prompt, policy.tokenizer)
        for branch in tree.branches:
            response = decode(branch, policy.tokenizer)
            yield {"prompt": prompt, "response": response, "ended": branch[-1] in ends, "tokens": len(branch)}
