"""A reward model: a public backbone with a score head, read at the response's last token by its index.

It is an `AutoModelForSequenceClassification` throughout, so what is saved loads elsewhere with plain transformers;
`models.artifact` says what its logits mean.
"""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from treeward.data.render import end_id
from treeward.errors import UserError
from treeward.losses.heads import AnyHead, Scalar, free_parameters
from treeward.models import artifact, loading, vocabulary
from treeward.models.device import DeviceOption, PrecisionOption
from treeward.models.loading import ModelConfig, load, seeded
from treeward.models.policy import TOKEN_BUDGET, in_order, precision_for, split_adapter, tokenized
from treeward.models.weights import output_layer, outside_backbone, zero_head
from treeward.trees.forest import Backend
from treeward.trees.forward import TreeScorer
from treeward.trees.text import Tree
from treeward.trees.tokens import Tokenizer, TokenTree
from treeward.trees.verify import verify_once


class RewardModel:
    """A sequence-classification model whose outputs score responses, with its tokenizer.

    `model` is the public model: a transformers `...ForSequenceClassification`, or the `PeftModel` around it. `packed`
    is the module that runs it over forests.

    Args:
        model: The public model.
        tokenizer: Its tokenizer.
        head: What the model's outputs mean; by default one scalar.
        precision: Precision of the matrix products: "fp32", "bf16" or "auto".
        backend: "tree" or "rows" to force a layout; None chooses one and verifies it.
        dropout: Dropout probability while training.

    Raises:
        UserError: `model` is not a module, for example a path (use `RewardModel.load`).
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Tokenizer,
        head: AnyHead | None = None,
        *,
        precision: PrecisionOption = "auto",
        backend: Backend | None = None,
        dropout: float = 0.0,
    ) -> None:
        adapter, base = split_adapter(model)
        self.adapter = adapter
        packed = TreeScorer(base, precision_for(base, precision), backend, head or Scalar(), dropout)
        self.packed = packed.to(next(base.parameters()).device)
        self.tokenizer = tokenizer
        self.reads_whole = False
        """Whether it was trained on whole texts, without prompts."""
        self.budgets: artifact.Budgets | None = None
        """Longest prompt and response of the data it was trained on; None if unknown."""

    @classmethod
    def load(
        cls, path: str | Path, *, precision: PrecisionOption = "auto", device: DeviceOption = "auto"
    ) -> "RewardModel":
        """Load a trained reward model from a directory (what `save` wrote, or a run's) or a hub id.

        Raises:
            UserError: nothing loadable is there, it has no trained head, or the tokenizer is not the one it was trained
                with.
        """
        return cls.trained(ModelConfig.of(path, {"precision": precision, "device": device}))

    @classmethod
    def trained(cls, config: ModelConfig, seed: int = 0) -> "RewardModel":
        """`load` for a `model` section of a configuration."""
        model = cls.from_config(config, seed)
        if not model.has_trained_head:
            raise UserError(f"model.path {config.path!r} has no trained head; train one with `treeward reward`")
        if config.tokenizer is not None:
            vocabulary.refuse_foreign(config, model.tokenizer, model.packed.model)
        return model

    @classmethod
    def from_config(cls, config: ModelConfig, seed: int = 0, head: AnyHead | None = None) -> "RewardModel":
        """The model of a `model` section. A head that is not in the weights starts at zero.

        `head` None is the saved model's head, else a scalar.

        Raises:
            UserError: as `load`, or the saved model has another head.
        """
        saved = None if config.random else artifact.read_reward(config.path)
        saved_head, thresholds = artifact.head_of(saved) if saved else (None, None)
        if saved_head is not None and head is not None and head != saved_head:
            raise UserError(
                f"model.path {config.path!r} has the head {saved_head} and cannot be trained as {head}; leave head out"
            )
        head = saved_head or head or Scalar()
        loaded = load(config, _Loader, seed, num_labels=head.width)
        vocabulary.check_end(config, loaded.tokenizer, loaded.model)
        if saved and not config.any_tokenizer:
            artifact.check_tokenizer(saved, loaded.tokenizer, config.path)
        if saved:
            artifact.check_head(saved, loaded.model, config.path)
        model: Any = loaded.model
        model.config.pad_token_id = padding_id(loaded.tokenizer)
        if config.train == "head":
            model.base_model.requires_grad_(False)
        fully_trained = tuple(sorted({name.partition(".")[0] for name in outside_backbone(model)}))
        if config.lora is not None:
            with seeded(config, seed):
                model = loading.add_lora(model, config.lora, "SEQ_CLS", fully_trained)
        reward_model = cls(
            model, loaded.tokenizer, head, precision=loaded.precision, backend=loaded.backend, dropout=config.dropout
        )
        if thresholds is not None and reward_model.packed.thresholds is not None:
            reward_model.packed.thresholds.data.copy_(free_parameters(thresholds))
        reward_model.reads_whole = (saved or {}).get("data", {}).get("format") == "text"
        reward_model.budgets = artifact.Budgets.of(saved)
        return reward_model

    @property
    def model(self) -> Any:
        """The public model: what was passed to the constructor."""
        return self.packed.model if self.adapter is None else self.adapter

    @property
    def head(self) -> AnyHead:
        """What the outputs mean."""
        return self.packed.head

    @property
    def has_trained_head(self) -> bool:
        """Whether the head is trained: an untrained one is all zeros."""
        return bool(output_layer(self.packed.model).weight.any())

    @property
    def token_budget(self) -> int:
        """Packed tokens of one forward pass on this device."""
        return TOKEN_BUDGET[self.packed.device.type]

    def outputs(self, trees: Sequence[Tree | TokenTree]) -> Float[Tensor, "N W"]:
        """The head's inputs for every branch, in order, without gradient. Text is cut at the model's budgets.

        Raises:
            UserError: a path is longer than the model's positions.
        """
        token_trees = tokenized(trees, self.tokenizer, self.budgets)
        with torch.no_grad():
            verify_once(self.packed, token_trees, self.token_budget)
            return in_order(token_trees, self.packed.forests(token_trees, self.token_budget), self.packed)

    def score(self, trees: Sequence[Tree | TokenTree]) -> Float[Tensor, "N"]:
        """The raw score of every branch, in order: the scalar, or the mean of the distribution on 1..B.

        Raises:
            UserError: a path is longer than the model's positions.
        """
        return self.head.scores(self.outputs(trees))

    def distribution(self, trees: Sequence[Tree | TokenTree]) -> Float[Tensor, "N *A B"]:
        """Probabilities over 1..B of every branch, in order; with several attributes one row each.

        Raises:
            UserError: the head is a scalar, or a path is longer than the model's positions.
        """
        if isinstance(self.head, Scalar):
            raise UserError("this reward model has a scalar head and no distribution; train one with another head.kind")
        probabilities = self.head.log_probs(self.outputs(trees)).exp()
        return probabilities[:, 0] if probabilities.shape[1] == 1 else probabilities

    def copy(self) -> "RewardModel":
        """The same model with its own weights."""
        twin = RewardModel(copy.deepcopy(self.model), self.tokenizer, self.head, precision=self.packed.precision)
        twin.packed.load_state_dict(self.packed.state_dict())
        twin.reads_whole, twin.budgets = self.reads_whole, self.budgets
        return twin

    def save(self, directory: str | Path, adapter_directory: Path | None = None) -> None:
        """Write the Hugging Face layout into `directory`: weights (adapter merged), tokenizer, template, and
        `treeward.json`. `load` reads it.

        The saved tokenizer pads with the model's own pad id, which never ends a response. With LoRA the adapter goes to
        `adapter_directory` in peft's layout, by default `directory/adapter`.

        Raises:
            UserError: a file stands at that place.
        """
        directory = loading.save_directory(directory)
        loading.save_model(self.adapter, self.packed.model, directory, adapter_directory)
        tokenizer = copy.deepcopy(self.tokenizer)
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(padding_id(self.tokenizer))
        tokenizer.save_pretrained(directory)
        artifact.write(directory, self.packed.model, self.head, self.packed.thresholds, self.tokenizer, self.budgets)


def branch_scores(model: RewardModel, trees: Sequence[Tree | TokenTree]) -> Float[Tensor, "N"]:
    """The raw score of every branch, in order: `model.score(trees)`."""
    return model.score(trees)


class _Loader:
    """`AutoModelForSequenceClassification` whose head starts at zero where the weights have none.

    A zero head makes the first loss exactly the known one and the first score of every text equal.
    """

    @staticmethod
    def from_config(plan: Any, **named: Any) -> nn.Module:
        return zero_head(AutoModelForSequenceClassification.from_config(plan, **named))

    @staticmethod
    def from_pretrained(path: str, **named: Any) -> nn.Module:
        try:
            module, info = AutoModelForSequenceClassification.from_pretrained(path, **named)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as problem:
            raise UserError(f"its head has another width: {str(problem).splitlines()[0]}") from None
        outside = set(outside_backbone(module))
        other = [key for key in info["missing_keys"] if key not in outside]
        if other:
            raise UserError(f"its weights lack {other[0]} and {len(other) - 1} more")
        return zero_head(module) if info["missing_keys"] else module


def padding_id(tokenizer: Tokenizer) -> int:
    """A pad id that never ends a response, since transformers pools before padding by comparing ids.

    The tokenizer's own pad where it is not an end token, else another special token, else the highest id left.
    """
    ends = {tokenizer.eos_token_id, end_id(tokenizer, chat=True)}
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id not in ends:
        return int(tokenizer.pad_token_id)
    special = sorted(set(tokenizer.all_special_ids) - ends - {tokenizer.bos_token_id})
    return int(special[0]) if special else max(set(tokenizer.get_vocab().values()) - ends)
