"""The forward pass over forests: the modules that are trained.

`TreeLM` wraps a public causal language model and returns the log-probability of every scored token. `TreeScorer` wraps
a public sequence classifier and returns the outputs of its head, one row a branch. The public model is called
unchanged; only the layout and the mask are ours. `trees.verify` compares the outputs with plain calls.

Letters: T packed tokens, S scored tokens, N branches, V vocabulary, D hidden size, K outputs of the public model's
head, W outputs that our head reads (K, or the cumulative logits of an ordinal head), L padded width.
"""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from inspect import signature
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from treeward.losses.heads import AnyHead, Ordinal, Scalar, cumulative_logits, free_parameters
from treeward.losses.logprobs import token_logps
from treeward.trees.attention import is_decoder, mask, slice_arguments, use_sliced_attention
from treeward.trees.forest import Backend, Forest, pack_to_budget
from treeward.trees.tokens import TokenTree

Precision = Literal["fp32", "bf16"]


class TreeModule(nn.Module):
    """A public model, the layout in which it reads forests, and the precision of its matrix products.

    - `model`: the transformers module that is called.
    - `precision`: "bf16" runs products under autocast; weights keep their dtype.
    - `requested_backend`: the backend that the user asked for, which `verify` then tests; None lets `verify` choose.
    - `backend`: "tree" or "rows" once `verify` has chosen, for paths of up to `verified_path` tokens.
    - `fallback`: why the backend is "rows"; None for "tree".
    - `verified_gradients`, `verified_budget`: whether gradients were compared, and the tokens of the largest forest.
    - `cache_name`: the name of the cache that the class decodes with: None before a sampler has looked, "" for none.
    - `dropout`: the dropout of training. Without it no dropout acts, whatever the public configuration says.
    """

    def __init__(
        self, module: nn.Module, precision: Precision = "fp32", backend: Backend | None = None, dropout: float = 0.0
    ) -> None:
        super().__init__()
        use_sliced_attention(module)
        self.model = module
        self.precision: Precision = precision
        self.requested_backend = backend
        self.dropout = dropout
        self.backend: Backend | None = None
        self.fallback: str | None = None
        self.verified_path = 0
        self.verified_gradients = False
        self.verified_budget = 0
        self.cache_name: str | None = None
        self.eval()

    @contextmanager
    def training_mode(self, dropout: bool = True) -> Iterator[None]:
        """Train mode for the modules that need it in a training step; all others stay in eval mode.

        Train mode also switches on noise that no dropout option controls: router jitter (Mixtral, PhiMoE), LayerDrop
        (OPT), stochastic depth. So only two kinds of modules are put in train mode: those with a dropout that the user
        set (in the run or in an adapter's configuration), and the layers that recompute their activations. With
        `dropout` False the first kind is left out, and the step is free of noise.
        """
        self.eval()
        for part in [*self._recomputing_modules(), *(self._dropout_modules() if dropout else ())]:
            part.training = True
        try:
            yield
        finally:
            self.eval()

    def _dropout_modules(self) -> Iterator[nn.Module]:
        """The modules with a dropout that the run or an adapter's own configuration sets."""
        for part in self.modules():
            if self.dropout and any(getattr(part, name) for name in dropout_fields(part)):
                yield part
            adapters: Any = getattr(part, "lora_dropout", None)
            if isinstance(adapters, nn.ModuleDict):
                yield part
                yield from adapters.modules()

    def _recomputing_modules(self) -> list[nn.Module]:
        """The modules with gradient checkpointing, which public classes apply in train mode only."""
        parts = [part for part in self.modules() if getattr(part, "gradient_checkpointing", False)]
        return [part for part in parts if isinstance(part, GradientCheckpointingLayer)] or parts

    @property
    def device(self) -> torch.device:
        """The device of the first parameter."""
        return next(self.model.parameters()).device

    @property
    def positions(self) -> int | None:
        """The longest path in tokens that the model's positions allow; None where there is no limit."""
        config: Any = self.model.config
        limit = getattr(config.get_text_config(), "max_position_embeddings", None)
        return int(limit) if isinstance(limit, int) and limit > 0 else None

    def autocast(self) -> AbstractContextManager[Any]:
        """The context in which the model's matrix products run."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16")

    @property
    def layout(self) -> Backend:
        """The verified backend."""
        assert self.backend is not None, "verify the layout first (treeward.trees.verify.verify_once)"
        return self.backend

    def forests(self, trees: Sequence[TokenTree], budget: int) -> list[Forest]:
        """The trees packed into forests that cost at most `budget` tokens in this layout, padding included."""
        return pack_to_budget(trees, budget, self.positions, self.backend or "tree")

    @abstractmethod
    def forward(self, forest: Forest) -> Tensor:
        """One number a scored token, or W outputs a branch."""

    @abstractmethod
    def unpacked(self, tree: TokenTree, branch: int) -> Tensor:
        """The output of `forward` for one branch, from a plain call: one unpadded row, no mask."""

    def _packed_arguments(self, module: nn.Module, forest: Forest) -> dict[str, Any]:
        """The arguments with which `module` (the public model or its backbone) reads a packed row."""
        return {
            "input_ids": forest.input_ids[None],
            "position_ids": forest.position_ids[None],
            "attention_mask": mask(forest),
            "use_cache": False,
            **slice_arguments(module, forest),
        }


class TreeLM(TreeModule):
    """forward(forest) -> log-probabilities of the scored tokens, Float[S], in nats, float32."""

    def forward(self, forest: Forest) -> Float[Tensor, "S"]:
        return token_logps(self.logits(forest), forest.targets.to(self.device))

    def logits(self, forest: Forest) -> Float[Tensor, "S V"]:
        """The logits that predict each scored token."""
        forest = forest.to(self.device)
        with self.autocast():
            if self.layout == "rows":
                return self._row_logits(forest)
            out = self.model(**self._packed_arguments(self.model, forest), logits_to_keep=forest.predict_from)
            return out.logits[0]  # type: ignore[no-any-return]

    def unpacked(self, tree: TokenTree, branch: int) -> Float[Tensor, "S"]:
        ids = torch.tensor(tree.rows()[branch], device=self.device)
        with self.autocast():
            logits = self.model(input_ids=ids[None]).logits[0, len(tree.prompt) - 1 : -1]
        return token_logps(logits, ids[len(tree.prompt) :])

    def _row_logits(self, forest: Forest) -> Float[Tensor, "S V"]:
        rows = padded_rows(forest, self.model.config)[0].to(self.device)
        row, position = _scored_positions(forest)
        first = min(position)
        arguments: dict[str, Any] = {}
        if "logits_to_keep" in signature(self.model.forward).parameters:
            arguments["logits_to_keep"] = torch.arange(first, max(position) + 1, device=self.device)
            position = [p - first for p in position]
        logits = self.model(input_ids=rows, use_cache=False, **arguments).logits
        return logits[row, position]  # type: ignore[no-any-return]


class TreeScorer(TreeModule):
    """forward(forest) -> the outputs of every branch, Float[N W], float32, which `head` turns into scores.

    A decoder is read at the branch's last token, by its index; an encoder through the pooling of its own class. With an
    ordinal head the outputs are cumulative logits, and its thresholds are a parameter of this module.
    """

    def __init__(
        self,
        module: nn.Module,
        precision: Precision = "fp32",
        backend: Backend | None = None,
        head: AnyHead | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(module, precision, backend, dropout)
        self.head: AnyHead = head or Scalar()
        start = free_parameters(self.head.thresholds()) if isinstance(self.head, Ordinal) else None
        self.thresholds = None if start is None else nn.Parameter(start)

    def forward(self, forest: Forest) -> Float[Tensor, "N W"]:
        forest = forest.to(self.device)
        with self.autocast():
            if self.layout == "rows":
                return self.outputs_of(self._row_logits(forest))
            hidden = self.backbone(**self._packed_arguments(self.backbone, forest))
            at_ends = hidden.last_hidden_state[0, forest.ends]
        return self.outputs_of(self._logits(at_ends))

    def scores(self, forest: Forest) -> Float[Tensor, "N"]:
        """The scalar of the head, or the mean of its distribution."""
        return self.head.scores(self(forest))

    def unpacked(self, tree: TokenTree, branch: int) -> Float[Tensor, "1 W"]:
        ids = torch.tensor(tree.rows()[branch], device=self.device)
        with self.autocast():
            if self.is_encoder:
                return self.outputs_of(self.model(input_ids=ids[None]).logits)
            hidden = self.backbone(input_ids=ids[None]).last_hidden_state[:, -1]
        return self.outputs_of(self._logits(hidden))

    @property
    def is_encoder(self) -> bool:
        """Whether the public model attends in both directions and pools by itself."""
        return not is_decoder(self.model)

    @property
    def backbone(self) -> nn.Module:
        """The public model below the score head."""
        return self.model.base_model  # type: ignore[return-value]

    def _row_logits(self, forest: Forest) -> Float[Tensor, "N K"]:
        rows, real_tokens = (x.to(self.device) for x in padded_rows(forest, self.model.config))
        if self.is_encoder:
            return self.model(input_ids=rows, attention_mask=real_tokens).logits  # type: ignore[no-any-return]
        hidden = self.backbone(input_ids=rows, use_cache=False).last_hidden_state
        return self._logits(hidden[torch.arange(len(rows)), real_tokens.sum(1) - 1])

    def _logits(self, hidden: Float[Tensor, "N D"]) -> Float[Tensor, "N K"]:
        with torch.autocast(self.device.type, enabled=False):
            return self.model.score(hidden.float())  # type: ignore[operator, no-any-return]

    def outputs_of(self, logits: Float[Tensor, "N K"]) -> Float[Tensor, "N W"]:
        """The outputs that the head reads, from the public model's logits."""
        logits = logits.float()
        return logits if self.thresholds is None else cumulative_logits(logits, self.thresholds)


def dropout_fields(part: nn.Module) -> list[str]:
    """The names of a module's own attributes (children left out) that are dropout rates."""
    if isinstance(part, nn.Dropout):
        return ["p"]
    return [name for name, value in vars(part).items() if "drop" in name and isinstance(value, float)]


def padded_rows(forest: Forest, config: Any) -> tuple[Int[Tensor, "N L"], Int[Tensor, "N L"]]:
    """One row a branch, padded on the right, and a mask with 1 for real tokens. A decoder never sees the padding."""
    rows = [torch.tensor(row) for tree in forest.sources for row in tree.rows()]
    padding = getattr(config, "pad_token_id", None) or 0
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=padding)
    lengths = torch.tensor([len(row) for row in rows])
    return ids, (torch.arange(ids.shape[1])[None, :] < lengths[:, None]).long()


def _scored_positions(forest: Forest) -> tuple[list[int], list[int]]:
    """The row and the position in it from which each scored token is predicted."""
    row: list[int] = []
    position: list[int] = []
    for tree in forest.sources:
        for branch in tree.branches:
            number = row[-1] + 1 if row else 0
            row += [number] * len(branch)
            position += range(len(tree.prompt) - 1, len(tree.prompt) - 1 + len(branch))
    return row, position
