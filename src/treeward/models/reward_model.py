"""A reward model: a public backbone with a scalar head, read at the response's last token by its index.

It is an `AutoModelForSequenceClassification` throughout, so what is saved loads elsewhere with plain transformers.
"""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from treeward.data.render import Tokenizer, end_id
from treeward.models import adapters
from treeward.models.loading import ModelConfig, load
from treeward.models.policy import TOKEN_BUDGET, in_order, tokenised
from treeward.trees.forest import pack
from treeward.trees.forward import TreeScorer
from treeward.trees.text import Tree
from treeward.trees.tokens import TokenTree
from treeward.trees.verify import verified

HEAD = "score"


class RewardModel:
    """A backbone and its head. `tree` is the module that is trained, `adapter` the PeftModel or None."""

    def __init__(self, tree: TreeScorer, tokenizer: Tokenizer, adapter: Any | None = None) -> None:
        self.tree = tree
        self.tokenizer = tokenizer
        self.adapter = adapter

    @classmethod
    def load(cls, path: str, *, seed: int = 0, **options: Any) -> "RewardModel":
        """Load a trained reward model; `options` are the fields of `ModelConfig`.

        Raises:
            ValueError: nothing loadable is there, or it has no score head.
        """
        model = cls.from_config(ModelConfig(path=path, **options), seed)
        if not model.head.weight.any():
            raise ValueError(
                f"model.path {path!r} has no trained head ({HEAD}.weight); train one with `treeward reward`"
            )
        return model

    @classmethod
    def from_config(cls, config: ModelConfig, seed: int = 0) -> "RewardModel":
        """The model that a run's `model` section describes; a head that is not in the weights starts at zero."""
        loaded = load(config, _Loader, seed, num_labels=1)
        loaded.module.config.pad_token_id = padding_id(loaded.tokenizer)  # type: ignore[union-attr]
        adapter = adapters.put_on(loaded.module, config.lora, "SEQ_CLS", (HEAD,)) if config.lora else None
        return cls(TreeScorer(loaded.module, loaded.precision, loaded.backend), loaded.tokenizer, adapter)

    @property
    def head(self) -> Any:
        """The linear layer that turns the last hidden state into a score."""
        return self.tree.module.score

    @property
    def token_budget(self) -> int:
        """Packed tokens of one forward pass on this device."""
        return TOKEN_BUDGET[self.tree.device.type]

    def score(self, trees: Sequence[Tree | TokenTree]) -> Float[Tensor, "N"]:
        """The raw score of every branch, in order; no gradient is kept.

        Raises:
            ValueError: a path is longer than the model's positions.
        """
        planted = tokenised(trees, self.tokenizer)
        verified(self.tree, planted)
        with torch.no_grad():
            return in_order(planted, pack(planted, self.token_budget, self.tree.positions), self.tree)

    def save(self, directory: Path) -> None:
        """Write `directory/model` (adapter merged, tokenizer and template with it) and, with LoRA, `adapter`.

        The saved tokenizer pads with the model's own pad id, which never ends a response.
        """
        adapters.save(self.adapter, self.tree.module, directory)
        tokenizer = copy.deepcopy(self.tokenizer)
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(padding_id(self.tokenizer))
        tokenizer.save_pretrained(directory / "model")


def branch_scores(model: RewardModel, trees: Sequence[Tree | TokenTree]) -> Float[Tensor, "N"]:
    """The raw score of every branch, in order: `model.score(trees)`."""
    return model.score(trees)


class _Loader:
    """`AutoModelForSequenceClassification` whose head starts at zero where the weights have none.

    A zero head makes the first loss exactly ln 2 and the first score of every text equal.
    """

    @staticmethod
    def from_config(plan: Any, **named: Any) -> nn.Module:
        return _zero_head(AutoModelForSequenceClassification.from_config(plan, **named))

    @staticmethod
    def from_pretrained(path: str, **named: Any) -> nn.Module:
        module, info = AutoModelForSequenceClassification.from_pretrained(path, output_loading_info=True, **named)
        other = [key for key in info["missing_keys"] if not key.startswith(HEAD)]
        if other:
            raise ValueError(f"its weights lack {other[0]} and {len(other) - 1} more")
        return _zero_head(module) if info["missing_keys"] else module


def _zero_head(module: Any) -> nn.Module:
    if not isinstance(getattr(module, HEAD, None), nn.Linear):
        raise ValueError(f"{type(module).__name__} has no linear head named {HEAD!r}; only decoders are supported here")
    nn.init.zeros_(module.score.weight)
    if module.score.bias is not None:
        nn.init.zeros_(module.score.bias)
    return module  # type: ignore[no-any-return]


def padding_id(tokenizer: Tokenizer) -> int:
    """A pad id that never ends a response, since transformers pools before padding by comparing ids.

    The tokenizer's own pad where it is not an end token, else another special token, else the highest id left.
    """
    ends = {tokenizer.eos_token_id, end_id(tokenizer, chat=True)}
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id not in ends:
        return int(tokenizer.pad_token_id)
    special = sorted(set(tokenizer.all_special_ids) - ends - {tokenizer.bos_token_id})
    return int(special[0]) if special else max(set(tokenizer.get_vocab().values()) - ends)
