"""Samples of a policy as text, for `treeward sample`."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from treeward.data.prepare import DataConfig, prepare
from treeward.data.render import token_tree
from treeward.errors import UserError
from treeward.models.loading import ModelConfig
from treeward.models.policy import Policy
from treeward.models.sampler import DecodeSampler, Noise, check_sampling
from treeward.runner.process import prepare_process
from treeward.trees.text import Tree
from treeward.trees.tokens import decode


@dataclass(frozen=True, kw_only=True)
class SampleRun:
    """treeward sample: samples of a policy for one prompt, or for the prompts of a data set."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """The policy."""
    prompt: str | None = None
    """A prompt as plain text; by default the prompts of the data."""
    data: DataConfig = field(default_factory=lambda: DataConfig(source="world-texts", limit=4, validation=0, test=0))
    """The prompts, where `prompt` is not given."""
    samples: int = 4
    """Samples per prompt."""
    max_new_tokens: int = 64
    """Length limit of a sample in tokens, with its end token."""
    temperature: float = 1.0
    """Sampling temperature; 1 leaves the policy's distribution unchanged."""
    seed: int = 0
    """Seed of the sampling."""

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise UserError(f"samples is {self.samples}; it must be at least 1")
        check_sampling(self.max_new_tokens, self.temperature)


def sample(config: SampleRun) -> Iterator[dict[str, Any]]:
    """One row per sample: prompt, response, whether it ended with an end token, its token count.

    Raises:
        UserError: the policy or the prompts cannot be loaded.
    """
    policy = Policy.trained(config.model, config.seed)
    prepare_process(policy)
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
