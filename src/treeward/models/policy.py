"""A policy: a causal language model, its tokenizer, and the forward pass over forests."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import peft
import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from treeward.data.render import end_id, token_tree
from treeward.errors import UserError
from treeward.losses.logprobs import sum_by_branch
from treeward.models import artifact, loading, vocabulary
from treeward.models.device import DeviceOption, PrecisionOption, choose_precision
from treeward.models.loading import CLASSIFIER, LoRA, ModelConfig, head_of_config, load, seeded
from treeward.trees.forest import Backend, Forest
from treeward.trees.forward import TreeLM
from treeward.trees.text import Tree
from treeward.trees.tokens import Tokenizer, TokenTree
from treeward.trees.verify import verify_once

if TYPE_CHECKING:
    from treeward.models.reference import ReferenceModel

TOKEN_BUDGET = {"cpu": 1024, "cuda": 16384, "mps": 4096}
"""Packed tokens of one forward pass by device type. Measured on CPU only."""


class Policy:
    """A causal language model that is trained or measured, with its tokenizer.

    `model` is the public model: a transformers `PreTrainedModel`, or the `PeftModel` around it. `packed` is the module
    that runs it over forests (trees packed into one row); its parameters are those of `model`.

    Args:
        model: A `PreTrainedModel` with a language-modelling head, or a `PeftModel` around one. It is used as it is; its
            attention implementation is switched to one that understands packed trees.
        tokenizer: Its tokenizer.
        precision: Precision of the matrix products: "fp32", "bf16", or "auto" (bf16 where the hardware has it and the
            model is large). The weights keep their dtype.
        backend: "tree" or "rows" to force a layout; None chooses one and verifies it.
        dropout: Dropout probability while training. Whatever the model's own configuration says, none is active without
            this.

    Raises:
        UserError: `model` is not a module, for example a path (use `Policy.load`).
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Tokenizer,
        *,
        precision: PrecisionOption = "auto",
        backend: Backend | None = None,
        dropout: float = 0.0,
    ) -> None:
        adapter, base = split_adapter(model)
        self.adapter: peft.PeftModel | None = adapter
        self.packed = TreeLM(base, precision_for(base, precision), backend, dropout)
        self.tokenizer = tokenizer
        self.budgets: artifact.Budgets | None = None
        """Longest prompt and response of the data it was trained on; None if unknown."""

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        precision: PrecisionOption = "auto",
        device: DeviceOption = "auto",
        lora: LoRA | None = None,
        seed: int = 0,
    ) -> "Policy":
        """Load a model directory, a run directory, a hub id, or "world" (the small embedded model, random weights).

        Args:
            path: Where the model is.
            precision: See the class.
            device: "cpu", "cuda", "mps", or "auto" for the fastest one present.
            lora: Train these adapters instead of all weights.
            seed: Seeds weights that are drawn at random (adapters, "world").

        Raises:
            UserError: nothing loadable is there, or the tokenizer belongs to another model or has no end token.
        """
        return cls.trained(ModelConfig.of(path, {"precision": precision, "device": device, "lora": lora}), seed)

    @classmethod
    def trained(cls, config: ModelConfig, seed: int = 0) -> "Policy":
        """`load` for a `model` section of a configuration."""
        policy = cls.from_config(config, seed)
        vocabulary.refuse_foreign(config, policy.tokenizer, policy.packed.model)
        return policy

    @classmethod
    def from_config(cls, config: ModelConfig, seed: int = 0) -> "Policy":
        """The policy of a `model` section, without the check that the tokenizer is the model's own (F09): the runner
        makes that check and reports it.

        Raises:
            UserError: nothing loadable is there, it is a reward model, or its tokenizer has no end token.
        """
        if not config.random and head_of_config(config.path) == CLASSIFIER:
            raise UserError(f"model.path {config.path!r} is a reward model or classifier; name a policy")
        loaded = load(config, AutoModelForCausalLM, seed)
        vocabulary.check_end(config, loaded.tokenizer, loaded.model)
        model: Any = loaded.model
        if config.random and config.tokenizer is not None:
            # The end ids in its config.json belong to another tokenizer.
            model.generation_config.eos_token_id = loaded.tokenizer.eos_token_id
        if config.lora is not None:
            with seeded(config, seed):
                model = loading.add_lora(model, config.lora, "CAUSAL_LM")
        policy = cls(
            model, loaded.tokenizer, precision=loaded.precision, backend=loaded.backend, dropout=config.dropout
        )
        policy.budgets = None if config.random else artifact.Budgets.of(artifact.read(config.path))
        return policy

    @property
    def model(self) -> Any:
        """The public model: what was passed to the constructor."""
        return self.packed.model if self.adapter is None else self.adapter

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The tokens that end a response: the tokenizer's, in plain text and in chats, and every end token of the
        model's generation configuration. The first one ends rendered responses.
        """
        chat = bool(self.tokenizer.chat_template)
        ends = [end_id(self.tokenizer, c) for c in ((True, False) if chat else (False,))]
        generation_ends = getattr(getattr(self.packed.model, "generation_config", None), "eos_token_id", None)
        ends += [generation_ends] if isinstance(generation_ends, int) else list(generation_ends or ())
        return tuple(dict.fromkeys(ends))

    @property
    def token_budget(self) -> int:
        """Packed tokens of one forward pass on this device."""
        return TOKEN_BUDGET[self.packed.device.type]

    def frozen_copy(self) -> "ReferenceModel":
        """This policy as it is now, frozen: the reference model of a loss, or the start model of an evaluation.

        With LoRA adapters that have not trained yet it is the base model under the adapters, so no weights are copied.
        """
        from treeward.models.reference import ReferenceModel  # noqa: PLC0415 - reference.py imports this module

        return ReferenceModel.of(self)

    def save(self, directory: str | Path, adapter_directory: Path | None = None) -> None:
        """Write the Hugging Face layout into `directory`: weights (adapters merged), tokenizer, chat template.

        `load` reads it. With LoRA the adapter is also written to `adapter_directory` in peft's layout, by default
        `directory/adapter`.

        Raises:
            UserError: `directory` is a file.
        """
        directory = loading.save_directory(directory)
        loading.save_model(self.adapter, self.packed.model, directory, adapter_directory)
        self.tokenizer.save_pretrained(directory)
        artifact.write_policy(directory, self.tokenizer, self.budgets)


def split_adapter(model: nn.Module) -> tuple[peft.PeftModel | None, nn.Module]:
    """(the PeftModel or None, the transformers model inside).

    Raises:
        UserError: it is neither.
    """
    if not isinstance(model, nn.Module) or not hasattr(model, "config"):
        raise UserError(
            f"model is {model!r:.60}, a {type(model).__name__}; give a transformers or peft model, or call load(path)"
        )
    if isinstance(model, peft.PeftModel):
        return model, model.get_base_model()
    return None, model


def precision_for(model: nn.Module, precision: PrecisionOption) -> Any:
    """The precision of the products of this model on its device."""
    parameters = list(model.parameters())
    return choose_precision(precision, parameters[0].device, sum(p.numel() for p in parameters))


def tokenized(
    trees: Sequence[Tree | TokenTree], tokenizer: Tokenizer, budgets: artifact.Budgets | None = None
) -> list[TokenTree]:
    """Text trees rendered (and cut to `budgets`), token trees as they are."""
    longest = (budgets.max_prompt, budgets.max_response) if budgets else (None, None)
    return [token_tree(tree, tokenizer, *longest) if isinstance(tree, Tree) else tree for tree in trees]


def bare_prompts(trees: Sequence[Tree | TokenTree], tokenizer: Tokenizer) -> list[TokenTree]:
    """The prompts of these trees to sample from, with their rows; responses are dropped and need not be renderable."""
    prompts = [Tree(t.prompt, (), t.group, row=t.row) if isinstance(t, Tree) else t for t in trees]
    return [TokenTree(t.prompt, (), t.group, row=t.row) for t in tokenized(prompts, tokenizer)]


def token_logps(policy: Policy, trees: Sequence[Tree | TokenTree]) -> list[list[Float[Tensor, "L"]]]:
    """log pi of every scored token, by tree and branch, in nats; L differs by branch. No gradient.

    The layout is verified against unpacked calls first.

    Raises:
        UserError: a path is longer than the model's positions.
    """
    token_trees = tokenized(trees, policy.tokenizer)
    by_tree: dict[int, list[Tensor]] = {}
    with torch.no_grad():
        verify_once(policy.packed, token_trees, policy.token_budget)
        for forest in policy.packed.forests(token_trees, policy.token_budget):
            parts = policy.packed(forest).cpu().split([len(b) for tree in forest.sources for b in tree.branches])
            for tree in forest.sources:
                by_tree[id(tree)], parts = list(parts[: len(tree.branches)]), parts[len(tree.branches) :]
    return [by_tree[id(tree)] for tree in token_trees]


def branch_logps(policy: Policy, trees: Sequence[Tree | TokenTree]) -> Float[Tensor, "N"]:
    """log pi(response | prompt) of every branch, in order: sums over response tokens, end token included, in nats.

    The layout is verified against unpacked calls first. No gradient.

    Raises:
        UserError: a path is longer than the model's positions.
    """
    return summed_logps(policy.packed, tokenized(trees, policy.tokenizer), policy.token_budget)


def summed_logps(packed: TreeLM, trees: Sequence[TokenTree], budget: int) -> Float[Tensor, "N"]:
    """`branch_logps` of a packed model."""

    def branch_sums(forest: Forest) -> Tensor:
        return sum_by_branch(packed(forest), forest.scored_branch.to(packed.device), forest.branches)

    with torch.no_grad():
        verify_once(packed, trees, budget)
        return in_order(trees, packed.forests(trees, budget), branch_sums)


def in_order(
    trees: Sequence[TokenTree], forests: Sequence[Forest], values: Callable[[Forest], Tensor]
) -> Float[Tensor, "N *d"]:
    """`values(forest)`, one row a branch, in the order of `trees`, on the CPU."""
    by_tree: dict[int, list[Tensor]] = {}
    for forest in forests:
        first = 0
        computed = values(forest).float().cpu()
        for tree in forest.sources:
            by_tree.setdefault(id(tree), []).append(computed[first : first + len(tree.branches)])
            first += len(tree.branches)
    return torch.cat([by_tree[id(tree)].pop(0) for tree in trees]) if trees else torch.zeros(0)
