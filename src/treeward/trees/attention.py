"""The attention mask of packed trees, and which models support it.

A token sees the prompt of its own tree and its own branch, causally. There are two backends:

- `tree`: one packed row with a 4-D mask under SDPA, so that each prompt is computed once. No token sees another tree
  or another branch, so attention runs on slices of the row (a few small trees, one large tree, or some branches of a
  tree with many) and never on T x T scores;
- `rows`: one padded row a branch and no 4-D mask, for models that cannot take the packed row.

`choose_backend` decides by what the class declares, because some classes silently drop their sliding window when they
are given a 4-D mask. `trees.verify` then compares the outputs.
"""

from collections.abc import Sequence
from inspect import signature
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from treeward.trees.forest import PROMPT, Backend, Forest
from treeward.trees.tokens import TokenTree

IMPLEMENTATION = "treeward"
"""The name under which our attention is registered with transformers: SDPA on slices of the packed row."""

SLICES = "tree_slices"
"""The keyword argument that carries the slices from the model's call to its attention layers."""

SLICE_TOKENS = 192
"""Consecutive trees share a slice of at most this many tokens; a larger tree has a slice of its own, or several."""


class Slice(NamedTuple):
    """The tokens from `start` to `end` of a row, which attend to each other and to those from `prefix` to `prefix_end`:
    to nothing else of the row, or to the prompt of their tree.
    """

    start: int
    end: int
    prefix: int = 0
    prefix_end: int = 0

    @property
    def scores(self) -> int:
        """Attention scores that are computed."""
        size = self.end - self.start
        return size * (self.prefix_end - self.prefix + size)

    def keys(self, row: Tensor, dim: int) -> Tensor:
        """The part of a row of keys, values or mask columns that the slice attends to."""
        inside = row.narrow(dim, self.start, self.end - self.start)
        if self.prefix == self.prefix_end:
            return inside
        return torch.cat([row.narrow(dim, self.prefix, self.prefix_end - self.prefix), inside], dim)


def mask(forest: Forest) -> Bool[Tensor, "1 1 T T"]:
    """True where the token of the row may see the token of the column."""
    order = torch.arange(len(forest.tree), device=forest.tree.device)
    is_before = order[:, None] >= order[None, :]
    same_tree = forest.tree[:, None] == forest.tree[None, :]
    same_branch = forest.branch[:, None] == forest.branch[None, :]
    is_prompt = forest.branch[None, :] == PROMPT
    return (is_before & same_tree & (same_branch | is_prompt))[None, None]


def slices(trees: Sequence[TokenTree]) -> list[Slice]:
    """The slices of a row of these trees, in order.

    Consecutive small trees share one. A large tree has one of its own or, where that halves the attention scores (as
    with many long branches after a short prompt), one for its prompt with the first branches and more for the others.
    """
    parts_of_row: list[Slice] = []
    start = end = 0
    for tree in trees:
        if end > start and end - start + len(tree) > SLICE_TOKENS:
            parts_of_row.append(Slice(start, end))
            start = end
        parts = _branch_slices(tree, end) if start == end and len(tree) > SLICE_TOKENS else []
        end += len(tree)
        if parts and 2 * sum(part.scores for part in parts) <= Slice(start, end).scores:
            parts_of_row += parts
            start = end
    return [*parts_of_row, Slice(start, end)] if end > start else parts_of_row


def _branch_slices(tree: TokenTree, start: int) -> list[Slice]:
    """A tree in slices of at most `SLICE_TOKENS` tokens or one branch; the first has the prompt as well."""
    prompt_end = end = start + len(tree.prompt)
    parts = [Slice(start, end)]
    for branch in tree.branches:
        last = parts[-1]
        if end > prompt_end and end - last.start + len(branch) > SLICE_TOKENS:
            parts.append(Slice(end, end, start, prompt_end))
        end += len(branch)
        parts[-1] = parts[-1]._replace(end=end)
    return parts


def slice_arguments(module: nn.Module, forest: Forest) -> dict[str, Any]:
    """The keyword argument with the slices of a forest, where `module` uses our attention and accepts it.

    transformers passes unknown keyword arguments of a call on to the attention function. A class that does not pass
    them on (StableLM) attends to the whole row under the same mask: slower, with the same result up to rounding.
    """
    config: Any = module.config
    parameters = signature(module.forward).parameters.values()
    if getattr(config, "_attn_implementation", None) != IMPLEMENTATION:
        return {}
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return {}
    return {SLICES: slices(forest.sources)}


def _sliced_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **arguments: Any
) -> tuple[Tensor, None]:
    """SDPA, slice by slice where slices are given."""
    parts: list[Slice] | None = arguments.pop(SLICES, None)
    if attention_mask is None or parts is None:
        whole: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **arguments)
        return whole
    outputs = []
    for part in parts:
        rows = slice(part.start, part.end)
        seen = part.keys(attention_mask[:, :, rows], 3)
        k, v = part.keys(key, 2), part.keys(value, 2)
        outputs.append(sdpa_attention_forward(module, query[:, :, rows], k, v, seen, **arguments)[0])
    return torch.cat(outputs, 1), None


AttentionInterface.register(IMPLEMENTATION, _sliced_attention)
AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)


def use_sliced_attention(module: nn.Module) -> None:
    """Let a decoder that uses SDPA attend to packed trees slice by slice. Plain calls give the same numbers."""
    if is_decoder(module) and getattr(module.config, "_attn_implementation", None) == "sdpa":
        module.set_attn_implementation(IMPLEMENTATION)  # type: ignore[operator]


def choose_backend(module: nn.Module, longest_path: int) -> tuple[Backend, str]:
    """The backend for this model and paths of up to this many tokens, and the reason.

    `rows` is required by a layer that is not full attention, a sliding window shorter than the longest path, ALiBi
    (it counts distances along the row), attention other than SDPA, or a class without `position_ids`. A model that gets
    `tree` here is still compared with plain calls by `trees.verify.verify`.
    """
    config = module.config.get_text_config()  # type: ignore[operator, union-attr]
    window = getattr(config, "sliding_window", None)
    layers = set(getattr(config, "layer_types", None) or ["full_attention"])
    attention = getattr(config, "_attn_implementation", None)
    if layers - {"full_attention", "sliding_attention"}:
        return "rows", f"{', '.join(sorted(layers))} layers cannot use a tree mask"
    if window is not None and getattr(config, "use_sliding_window", True) and window < longest_path:
        return "rows", f"the sliding window of {window} is shorter than the longest path of {longest_path}"
    if "sliding_attention" in layers and window is None:
        return "rows", "the configuration has sliding layers but no sliding_window"
    if not is_decoder(module):
        return "rows", "the model is not a decoder"
    if getattr(config, "alibi", False):
        return "rows", "ALiBi counts distances along the packed row"
    if attention not in ("sdpa", IMPLEMENTATION):
        return "rows", f"attention is {attention!r}, not sdpa"
    if "position_ids" not in signature(module.forward).parameters:
        return "rows", f"{type(module).__name__} takes no position_ids"
    return "tree", "full attention with SDPA"


def is_decoder(module: nn.Module) -> bool:
    """Whether a model's class and configuration declare causal attention; `trees.verify` measures it for policies.

    A classifier over a decoder reads the last token with a layer that transformers calls `score`; other classifiers
    pool in their own way, as encoders do.
    """
    config: Any = module.config
    if getattr(config, "is_encoder_decoder", False) or getattr(config, "is_bidirectional", False):
        return False
    if getattr(config, "use_bidirectional_attention", None) is True:
        return False
    return hasattr(module, "score") or module.get_output_embeddings() is not None  # type: ignore[operator]
