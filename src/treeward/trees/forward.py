"""The forward pass over forests: the module that is trained.

`TreeLM` wraps a public causal-LM class and returns the log-probability of every scored token; `TreeScorer` wraps a
public sequence-classification class and returns one score a branch. The public model is called unchanged; what is ours
is the layout and the mask. `treeward.trees.verify` proves that the layout gives the numbers of plain calls.

Letters: T packed tokens, S scored tokens, N branches, V vocabulary.
"""

from abc import abstractmethod
from contextlib import AbstractContextManager
from inspect import signature
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from treeward.maths.logprobs import token_logps
from treeward.trees.attention import Backend, mask, use_slices
from treeward.trees.forest import Forest
from treeward.trees.tokens import TokenTree

Precision = Literal["fp32", "bf16"]


class TreeModule(nn.Module):
    """What both kinds share: the wrapped public model, the backend and the precision of the products.

    `backend` is None until `verify` has chosen "tree" or "rows" for paths of up to `verified_path` tokens, unless one
    is given, which `verify` then tests; `precision` "bf16" runs products under autocast, weights keep their dtype.
    """

    def __init__(self, module: nn.Module, precision: Precision = "fp32", backend: Backend | None = None) -> None:
        super().__init__()
        use_slices(module)
        self.module = module
        self.precision: Precision = precision
        self.asked = backend
        self.backend: Backend | None = None
        self.verified_path = 0
        self.eval()

    @property
    def device(self) -> torch.device:
        """Where the first parameter lies."""
        return next(self.module.parameters()).device

    @property
    def positions(self) -> int | None:
        """The longest path the model's positions can hold; None where there is no limit."""
        config: Any = self.module.config
        limit = getattr(config.get_text_config(), "max_position_embeddings", None)
        return int(limit) if isinstance(limit, int) else None

    def products(self) -> AbstractContextManager[Any]:
        """The context in which the model's products run."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16")

    @property
    def layout(self) -> Backend:
        """The verified backend."""
        assert self.backend is not None, "verify the layout first (treeward.trees.verify.verified)"
        return self.backend

    @abstractmethod
    def forward(self, forest: Forest) -> Tensor:
        """One number a scored token, or one a branch."""

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
            out = self.module(
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
            logits = self.module(input_ids=ids[None]).logits[0, len(tree.prompt) - 1 : -1]
        return token_logps(logits, ids[len(tree.prompt) :])

    def _row_logits(self, forest: Forest) -> Float[Tensor, "S V"]:
        rows = padded_rows(forest).to(self.device)
        row, position = _scored_places(forest)
        first = min(position)
        arguments: dict[str, Any] = {}
        if "logits_to_keep" in signature(self.module.forward).parameters:
            arguments["logits_to_keep"] = torch.arange(first, max(position) + 1, device=self.device)
            position = [p - first for p in position]
        logits = self.module(input_ids=rows, use_cache=False, **arguments).logits
        return logits[row, position]  # type: ignore[no-any-return]


class TreeScorer(TreeModule):
    """forward(forest) -> one raw score a branch, Float[N], read at the branch's last token by index, float32."""

    def forward(self, forest: Forest) -> Float[Tensor, "N"]:
        forest = forest.to(self.device)
        with self.products():
            if self.layout == "rows":
                hidden = self.backbone(input_ids=padded_rows(forest).to(self.device), use_cache=False)
                ends = [len(row) - 1 for tree in forest.sources for row in tree.rows()]
                at_ends = hidden.last_hidden_state[range(len(ends)), ends]
            else:
                hidden = self.backbone(
                    input_ids=forest.input_ids[None],
                    position_ids=forest.position_ids[None],
                    attention_mask=mask(forest),
                    use_cache=False,
                )
                at_ends = hidden.last_hidden_state[0, forest.ends]
        return self._score(at_ends)

    def plain(self, tree: TokenTree, branch: int) -> Float[Tensor, "1"]:
        ids = torch.tensor(tree.rows()[branch], device=self.device)
        with self.products():
            hidden = self.backbone(input_ids=ids[None]).last_hidden_state[:, -1]
        return self._score(hidden)

    @property
    def backbone(self) -> nn.Module:
        """The public model below the score head."""
        return self.module.base_model  # type: ignore[return-value]

    def _score(self, hidden: Float[Tensor, "N D"]) -> Float[Tensor, "N"]:
        with torch.autocast(self.device.type, enabled=False):
            return self.module.score(hidden.float())[:, 0]  # type: ignore[operator, no-any-return]


def padded_rows(forest: Forest) -> Tensor:
    """One row a branch, padded on the right, where a causal model cannot look; the pad's id is without effect."""
    rows = [torch.tensor(row) for tree in forest.sources for row in tree.rows()]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True)


def _scored_places(forest: Forest) -> tuple[list[int], list[int]]:
    row: list[int] = []
    position: list[int] = []
    for tree in forest.sources:
        for branch in tree.branches:
            number = row[-1] + 1 if row else 0
            row += [number] * len(branch)
            position += range(len(tree.prompt) - 1, len(tree.prompt) - 1 + len(branch))
    return row, position
