"""A policy: a causal language model, its tokenizer, and the forward pass over forests."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AutoModelForCausalLM

from treeward.data.render import end_id, token_tree
from treeward.errors import UserError
from treeward.losses.logprobs import sum_by_branch
from treeward.models import adapters, artifact, vocabulary
from treeward.models.loading import CLASSIFIER, ModelConfig, head_of_config, load, seeded
from treeward.trees.forest import Forest
from treeward.trees.forward import TreeLM
from treeward.trees.text import Tree
from treeward.trees.tokens import Tokenizer, TokenTree
from treeward.trees.verify import verify_once

TOKEN_BUDGET = {"cpu": 1024, "cuda": 16384, "mps": 4096}
"""Packed tokens of one forward pass, by device; measured on the CPU only."""


class Policy:
    """A causal language model that is trained or measured. `tree` is the module, `adapter` the PeftModel or None."""

    def __init__(self, tree: TreeLM, tokenizer: Tokenizer, adapter: Any | None = None) -> None:
        self.packed = tree
        self.tokenizer = tokenizer
        self.adapter = adapter
        self.budgets: artifact.Budgets | None = None
        """The budgets of the data that it was trained with, where a run trained it."""

    @classmethod
    def load(cls, path: str | Path, *, seed: int = 0, **options: Any) -> "Policy":
        """Load a directory (what `save` wrote, or a run's), a hub id or "world"; `options` are the fields of
        `ModelConfig` (precision, device, ...).

        Raises:
            UserError: nothing loadable is there, or the tokenizer is another model's or has no end token.
        """
        return cls.trained(ModelConfig.of(path, options), seed)

    @classmethod
    def trained(cls, config: ModelConfig, seed: int = 0) -> "Policy":
        """As `load`, from a `model` section."""
        policy = cls.from_config(config, seed)
        vocabulary.refuse_foreign(config, policy.tokenizer, policy.packed.model)
        return policy

    @classmethod
    def from_config(cls, config: ModelConfig, seed: int = 0) -> "Policy":
        """The policy that a run's `model` section describes; `seed` draws random weights.

        Whether its tokenizer is the model's own is left to the checks before the first step (F09).

        Raises:
            UserError: nothing loadable is there, it is a reward model, or its tokenizer has no end token.
        """
        if not config.random and head_of_config(config.path) == CLASSIFIER:
            raise UserError(f"model.path {config.path!r} is a reward model or classifier; name a policy")
        loaded = load(config, AutoModelForCausalLM, seed)
        vocabulary.check_end(config, loaded.tokenizer, loaded.model)
        if config.random and config.tokenizer is not None:
            module: Any = loaded.model  # the ends in its config.json are ids of another tokenizer
            module.generation_config.eos_token_id = loaded.tokenizer.eos_token_id
        with seeded(config, seed):
            adapter = adapters.put_on(loaded.model, config.lora, "CAUSAL_LM") if config.lora else None
        tree = TreeLM(loaded.model, loaded.precision, loaded.backend, config.dropout)
        policy = cls(tree, loaded.tokenizer, adapter)
        policy.budgets = None if config.random else artifact.Budgets.of(artifact.read(config.path))
        return policy

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The tokens that end a response: the tokenizer's, in plain text and in chats, and every end of the model's
        generation configuration. The first one stands at the end of rendered responses.
        """
        chat = bool(self.tokenizer.chat_template)
        ends = [end_id(self.tokenizer, c) for c in ((True, False) if chat else (False,))]
        module: Any = self.packed.model
        named = getattr(getattr(module, "generation_config", None), "eos_token_id", None)
        ends += [named] if isinstance(named, int) else list(named or ())
        return tuple(dict.fromkeys(ends))

    @property
    def token_budget(self) -> int:
        """Packed tokens of one forward pass on this device."""
        return TOKEN_BUDGET[self.packed.device.type]

    def save(self, directory: str | Path, adapter_directory: Path | None = None) -> None:
        """Write the Hugging Face layout into `directory`: weights (adapter merged), tokenizer, template.

        `load` reads it. With LoRA the adapter goes to `adapter_directory` in peft's layout, by default
        `directory/adapter`.

        Raises:
            UserError: a file stands at that place.
        """
        directory = adapters.directory_for(directory)
        adapters.save(self.adapter, self.packed.model, directory, adapter_directory)
        self.tokenizer.save_pretrained(directory)
        artifact.write_policy(directory, self.tokenizer, self.budgets)


def tokenised(
    trees: Sequence[Tree | TokenTree], tokenizer: Tokenizer, budgets: artifact.Budgets | None = None
) -> list[TokenTree]:
    """Token trees, those given as text rendered and, with budgets, cut to them."""
    longest = (budgets.max_prompt, budgets.max_response) if budgets else (None, None)
    return [token_tree(tree, tokenizer, *longest) if isinstance(tree, Tree) else tree for tree in trees]


def token_logps(policy: Policy, trees: Sequence[Tree | TokenTree]) -> list[list[Float[Tensor, "L"]]]:
    """log pi of every scored token, by tree and branch, in nats; L differs from branch to branch. No gradient is kept.

    The layout is verified against plain calls first.

    Raises:
        UserError: a path is longer than the model's positions.
    """
    token_trees = tokenised(trees, policy.tokenizer)
    found: dict[int, list[Tensor]] = {}
    with torch.no_grad():
        verify_once(policy.packed, token_trees, policy.token_budget)
        for forest in policy.packed.forests(token_trees, policy.token_budget):
            parts = policy.packed(forest).cpu().split([len(b) for tree in forest.sources for b in tree.branches])
            for tree in forest.sources:
                found[id(tree)], parts = list(parts[: len(tree.branches)]), parts[len(tree.branches) :]
    return [found[id(tree)] for tree in token_trees]


def branch_logps(policy: Policy, trees: Sequence[Tree | TokenTree]) -> Float[Tensor, "N"]:
    """log pi(response | prompt) of every branch, in order: sums over response tokens, end token included, in nats.

    The layout is verified against plain calls first. No gradient is kept.

    Raises:
        UserError: a path is longer than the model's positions.
    """
    token_trees = tokenised(trees, policy.tokenizer)
    return branch_sums(policy.packed, token_trees, policy.token_budget)


def branch_sums(tree: TreeLM, trees: Sequence[TokenTree], budget: int) -> Float[Tensor, "N"]:
    """`branch_logps` of a bare module; verified for these trees, without gradient."""

    def sums(forest: Forest) -> Tensor:
        return sum_by_branch(tree(forest), forest.scored_branch.to(tree.device), forest.branches)

    with torch.no_grad():
        verify_once(tree, trees, budget)
        return in_order(trees, tree.forests(trees, budget), sums)


def in_order(
    trees: Sequence[TokenTree], forests: Sequence[Forest], values: Callable[[Forest], Tensor]
) -> Float[Tensor, "N *d"]:
    """Per-branch `values(forest)` of packed trees, put back in the order of `trees`, on the CPU."""
    found: dict[int, list[Tensor]] = {}
    for forest in forests:
        at = 0
        computed = values(forest).float().cpu()
        for tree in forest.sources:
            found.setdefault(id(tree), []).append(computed[at : at + len(tree.branches)])
            at += len(tree.branches)
    return torch.cat([found[id(tree)].pop(0) for tree in trees]) if trees else torch.zeros(0)
