"""The forward pass over forests: the module that is trained.

`TreeLM` wraps a public causal-LM class and returns the log-probability of every scored token; `TreeScorer` wraps a
public sequence-classification class and returns its head's outputs by branch. The public model is called unchanged;
what is ours is the layout and the mask. `trees.verify` proves that the layout gives the numbers of plain calls.

Letters: T packed tokens, S scored tokens, N branches, V vocabulary, W outputs of a score head (K of
them from the public model), L padded width.
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

from treeward.losses.heads import AnyHead, Ordinal, Scalar, cumulative_logits, freed
from treeward.losses.logprobs import token_logps
from treeward.trees.attention import causal, mask, use_slices
from treeward.trees.forest import Backend, Forest, pack_to_budget
from treeward.trees.tokens import TokenTree

Precision = Literal["fp32", "bf16"]


class TreeModule(nn.Module):
    """What both kinds share: the wrapped public model, the backend and the precision of the products.

    `backend` is None until `verify` has chosen "tree" or "rows" for paths of up to `verified_path` tokens, unless one
    is given, which `verify` then tests. `verified_gradients` says whether it looked at more than values,
    `verified_budget` how large a forest it looked at, and `fallback` why the tree is not used, once it is not.
    `precision` "bf16" runs products under autocast, weights keep their dtype. `cache` is the name of the cache that the
    class decodes with, once a sampler has looked; "" where it has none. `dropout` is the share that was asked for in
    training; whatever the public model's own configuration says, none acts without it.
    """

    def __init__(
        self, module: nn.Module, precision: Precision = "fp32", backend: Backend | None = None, dropout: float = 0.0
    ) -> None:
        super().__init__()
        use_slices(module)
        self.model = module
        self.precision: Precision = precision
        self.asked = backend
        self.dropout = dropout
        self.backend: Backend | None = None
        self.fallback: str | None = None
        self.verified_path = 0
        self.verified_gradients = False
        self.verified_budget = 0
        self.cache: str | None = None
        self.eval()

    @contextmanager
    def training_mode(self, dropout: bool = True) -> Iterator[None]:
        """The modes in which a training step runs: eval mode, but for what was asked for.

        Train mode acts in places that no dropout flag names: router jitter (Mixtral, PhiMoE), LayerDrop (OPT),
        stochastic depth. So only the modules that hold a dropout that was asked for, adapters' dropout among them, and
        the layers that recompute their activations are put in train mode. `dropout` False leaves the dropouts out:
        what is left must be free of noise.
        """
        self.eval()
        for part in [*self._checkpointed(), *(self._with_dropout() if dropout else ())]:
            part.training = True
        try:
            yield
        finally:
            self.eval()

    def _with_dropout(self) -> Iterator[nn.Module]:
        """The modules with a dropout that was asked for: by the run, or in an adapter's own configuration."""
        for part in self.modules():
            if self.dropout and any(getattr(part, name) for name in dropout_fields(part)):
                yield part
            adapters: Any = getattr(part, "lora_dropout", None)
            if isinstance(adapters, nn.ModuleDict):
                yield part
                yield from adapters.modules()

    def _checkpointed(self) -> list[nn.Module]:
        """The modules that recompute their activations, which classes do in train mode alone."""
        parts = [part for part in self.modules() if getattr(part, "gradient_checkpointing", False)]
        return [part for part in parts if isinstance(part, GradientCheckpointingLayer)] or parts

    @property
    def device(self) -> torch.device:
        """Where the first parameter lies."""
        return next(self.model.parameters()).device

    @property
    def positions(self) -> int | None:
        """The longest path the model's positions can hold; None where there is no limit."""
        config: Any = self.model.config
        limit = getattr(config.get_text_config(), "max_position_embeddings", None)
        return int(limit) if isinstance(limit, int) and limit > 0 else None

    def products(self) -> AbstractContextManager[Any]:
        """The context in which the model's products run."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16")

    @property
    def layout(self) -> Backend:
        """The verified backend."""
        assert self.backend is not None, "verify the layout first (treeward.trees.verify.verified)"
        return self.backend

    def forests(self, trees: Sequence[TokenTree], budget: int) -> list[Forest]:
        """The trees in forests that cost at most `budget` tokens in this layout, padding included."""
        return pack_to_budget(trees, budget, self.positions, self.backend or "tree")

    @abstractmethod
    def forward(self, forest: Forest) -> Tensor:
        """One number a scored token, or W outputs a branch."""

    @abstractmethod
    def plain(self, tree: TokenTree, branch: int) -> Tensor:
        """The same numbers as `forward` for one branch, by a plain call on one unpadded row, no mask passed."""


class TreeLM(TreeModule):
    """forward(forest) -> log-probabilities of the scored tokens, Float[S], in nats, float32."""

    def forward(self, forest: Forest) -> Float[Tensor, "S"]:
        return token_logps(self.logits(forest), forest.targets.to(self.device))

    def logits(self, forest: Forest) -> Float[Tensor, "S V"]:
        """The logits that predict each scored token."""
        forest = forest.to(self.device)
        with self.products():
            if self.layout == "rows":
                return self._row_logits(forest)
            out = self.model(
                input_ids=forest.input_ids[None],
                position_ids=forest.position_ids[None],
                attention_mask=mask(forest),
                logits_to_keep=forest.predict_from,
                use_cache=False,
            )
            return out.logits[0]  # type: ignore[no-any-return]

    def plain(self, tree: TokenTree, branch: int) -> Float[Tensor, "S"]:
        ids = torch.tensor(tree.rows()[branch], device=self.device)
        with self.products():
            logits = self.model(input_ids=ids[None]).logits[0, len(tree.prompt) - 1 : -1]
        return token_logps(logits, ids[len(tree.prompt) :])

    def _row_logits(self, forest: Forest) -> Float[Tensor, "S V"]:
        rows = padded_rows(forest, self.model.config)[0].to(self.device)
        row, position = _scored_places(forest)
        first = min(position)
        arguments: dict[str, Any] = {}
        if "logits_to_keep" in signature(self.model.forward).parameters:
            arguments["logits_to_keep"] = torch.arange(first, max(position) + 1, device=self.device)
            position = [p - first for p in position]
        logits = self.model(input_ids=rows, use_cache=False, **arguments).logits
        return logits[row, position]  # type: ignore[no-any-return]


class TreeScorer(TreeModule):
    """forward(forest) -> the outputs of every branch, Float[N W], float32: what `head` turns into scores.

    A decoder is read at the branch's last token, by its index; an encoder by its class's own pooling and layers. With
    an ordinal head the outputs are cumulative logits, and its thresholds train here beside the public model.
    """

    def __init__(
        self, module: nn.Module, precision: Precision = "fp32", backend: Backend | None = None,
        head: AnyHead | None = None, dropout: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__(module, precision, backend, dropout)
        self.head: AnyHead = head or Scalar()
        start = freed(self.head.thresholds()) if isinstance(self.head, Ordinal) else None
        self.thresholds = None if start is None else nn.Parameter(start)

    def forward(self, forest: Forest) -> Float[Tensor, "N W"]:
        forest = forest.to(self.device)
        with self.products():
            if self.layout == "rows":
                return self.outputs_of(self._row_logits(forest))
            hidden = self.backbone(
                input_ids=forest.input_ids[None],
                position_ids=forest.position_ids[None],
                attention_mask=mask(forest),
                use_cache=False,
            )
            at_ends = hidden.last_hidden_state[0, forest.ends]
        return self.outputs_of(self._logits(at_ends))

    def scores(self, forest: Forest) -> Float[Tensor, "N"]:
        """The head's scalar, or its mean score."""
        return self.head.scores(self(forest))

    def plain(self, tree: TokenTree, branch: int) -> Float[Tensor, "1 W"]:
        ids = torch.tensor(tree.rows()[branch], device=self.device)
        with self.products():
            if self.encodes:
                return self.outputs_of(self.model(input_ids=ids[None]).logits)
            hidden = self.backbone(input_ids=ids[None]).last_hidden_state[:, -1]
        return self.outputs_of(self._logits(hidden))

    @property
    def encodes(self) -> bool:
        """Whether the public model looks both ways and pools by itself."""
        return not causal(self.model)

    @property
    def backbone(self) -> nn.Module:
        """The public model below the score head."""
        return self.model.base_model  # type: ignore[return-value]

    def _row_logits(self, forest: Forest) -> Float[Tensor, "N K"]:
        rows, real = (x.to(self.device) for x in padded_rows(forest, self.model.config))
        if self.encodes:
            return self.model(input_ids=rows, attention_mask=real).logits  # type: ignore[no-any-return]
        hidden = self.backbone(input_ids=rows, use_cache=False).last_hidden_state
        return self._logits(hidden[torch.arange(len(rows)), real.sum(1) - 1])

    def _logits(self, hidden: Float[Tensor, "N D"]) -> Float[Tensor, "N K"]:
        with torch.autocast(self.device.type, enabled=False):
            return self.model.score(hidden.float())  # type: ignore[operator, no-any-return]

    def outputs_of(self, logits: Float[Tensor, "N K"]) -> Float[Tensor, "N W"]:
        """What the head reads, from the public model's logits."""
        logits = logits.float()
        return logits if self.thresholds is None else cumulative_logits(logits, self.thresholds)


def dropout_fields(part: nn.Module) -> list[str]:
    """The attributes of a module, its children aside, that hold a share of dropout."""
    if isinstance(part, nn.Dropout):
        return ["p"]
    return [name for name, value in vars(part).items() if "drop" in name and isinstance(value, float)]


def padded_rows(forest: Forest, config: Any) -> tuple[Int[Tensor, "N L"], Int[Tensor, "N L"]]:
    """One row a branch, padded on the right, and 1 where a token is real; a decoder never looks at the padding."""
    rows = [torch.tensor(row) for tree in forest.sources for row in tree.rows()]
    padding = getattr(config, "pad_token_id", None) or 0
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=padding)
    lengths = torch.tensor([len(row) for row in rows])
    return ids, (torch.arange(ids.shape[1])[None, :] < lengths[:, None]).long()


def _scored_places(forest: Forest) -> tuple[list[int], list[int]]:
    row: list[int] = []
    position: list[int] = []
    for tree in forest.sources:
        for branch in tree.branches:
            number = row[-1] + 1 if row else 0
            row += [number] * len(branch)
            position += range(len(tree.prompt) - 1, len(tree.prompt) - 1 + len(branch))
    return row, position
