"""The attention mask of packed trees, and which models support it.

A token sees the prompt of its own tree and its own branch, causally. There are two backends:

- `tree`: one packed row with a 4-D mask under SDPA, so that each prompt is computed once. No token sees another tree,
  so attention runs on slices of the row (one large tree, or a few small ones) and never on T x T scores;
- `rows`: one padded row a branch and no 4-D mask, for models that cannot take the packed row.

`choose_backend` decides by what the class declares, because some classes silently drop their sliding window when they
are given a 4-D mask. `trees.verify` then compares the outputs.
"""

from collections.abc import Sequence
from inspect import signature
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from treeward.trees.forest import PROMPT, Backend, Forest

IMPLEMENTATION = "treeward"
"""The name under which our attention is registered with transformers: SDPA on slices of the packed row."""

SLICES = "tree_slices"
"""The keyword argument that carries the slices from the model's call to its attention layers."""

SLICE_TOKENS = 192
"""Consecutive trees share a slice of at most this many tokens; a larger tree has a slice of its own."""


def mask(forest: Forest) -> Bool[Tensor, "1 1 T T"]:
    """True where the token of the row may see the token of the column."""
    order = torch.arange(len(forest.tree), device=forest.tree.device)
    is_before = order[:, None] >= order[None, :]
    same_tree = forest.tree[:, None] == forest.tree[None, :]
    same_branch = forest.branch[:, None] == forest.branch[None, :]
    is_prompt = forest.branch[None, :] == PROMPT
    return (is_before & same_tree & (same_branch | is_prompt))[None, None]


def slices(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Consecutive trees of these lengths grouped into (start, end) ranges of tokens."""
    ranges: list[tuple[int, int]] = []
    start = end = 0
    for length in lengths:
        if end > start and end - start + length > SLICE_TOKENS:
            ranges.append((start, end))
            start = end
        end += length
    return [*ranges, (start, end)]


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
    return {SLICES: slices([len(tree) for tree in forest.sources])}


def _sliced_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **arguments: Any
) -> tuple[Tensor, None]:
    """SDPA, slice by slice where slices are given."""
    ranges: list[tuple[int, int]] | None = arguments.pop(SLICES, None)
    if attention_mask is None or ranges is None:
        whole: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **arguments)
        return whole
    sizes = [end - start for start, end in ranges]
    outputs = []
    for (start, end), q, k, v in zip(ranges, *(torch.split(x, sizes, 2) for x in (query, key, value)), strict=True):
        part = attention_mask[:, :, start:end, start:end]
        outputs.append(sdpa_attention_forward(module, q, k, v, part, **arguments)[0])
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
