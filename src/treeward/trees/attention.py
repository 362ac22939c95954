"""Who sees whom in a forest, and which models can be told.

A token sees its own tree's prompt and its own branch, causally. Backends:

- `tree`: the packed row with a 4-D mask under SDPA, each prompt computed once. No token sees another tree, so products
  run tree by tree (small trees a few at a time) on slices of the mask: attention costs what the trees cost, not T x T;
- `rows`: one padded row a branch and no mask, for models that cannot take the packed layout.

The rule that chooses between them comes before any probe, because some classes drop their sliding window without a
word when a 4-D mask is given.
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

NAME = "treeward"
"""The attention implementation, registered with transformers, that reads a forest's mask tree by tree."""

SLICE = 192
"""Trees are attended to together until a slice has this many tokens; a larger tree is a slice of its own."""


def mask(forest: Forest) -> Bool[Tensor, "1 1 T T"]:
    """True where the token of the row may see the token of the column."""
    order = torch.arange(len(forest.tree), device=forest.tree.device)
    causal = order[:, None] >= order[None, :]
    same_tree = forest.tree[:, None] == forest.tree[None, :]
    same_branch = forest.branch[:, None] == forest.branch[None, :]
    trunk = forest.branch[None, :] == PROMPT
    seen: Any = (causal & same_tree & (same_branch | trunk))[None, None]
    seen.slices = slices([len(tree) for tree in forest.sources])
    return seen  # type: ignore[no-any-return]


def slices(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Consecutive trees grouped into (start, end) ranges of tokens."""
    found: list[tuple[int, int]] = []
    start = end = 0
    for length in lengths:
        if end > start and end - start + length > SLICE:
            found.append((start, end))
            start = end
        end += length
    return [*found, (start, end)]


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **named: Any
) -> tuple[Tensor, None]:
    """SDPA; a mask that carries `slices` is read slice by slice, any other is passed on as it stands."""
    parts = getattr(attention_mask, "slices", None)
    if attention_mask is None or parts is None:
        plain: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **named)
        return plain
    sizes = [end - start for start, end in parts]
    out = []
    for (start, end), q, k, v in zip(parts, *(torch.split(x, sizes, 2) for x in (query, key, value)), strict=True):
        seen = attention_mask[:, :, start:end, start:end]
        out.append(sdpa_attention_forward(module, q, k, v, seen, **named)[0])
    return torch.cat(out, 1), None


def use_slices(module: nn.Module) -> None:
    """Let a model that attends by SDPA read forests slice by slice; its numbers do not change."""
    if causal(module) and getattr(module.config, "_attn_implementation", None) == "sdpa":
        module.set_attn_implementation(NAME)  # type: ignore[operator]


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, sdpa_mask)


def rule(module: nn.Module, longest_path: int) -> tuple[Backend, str]:
    """The backend that this model must use for paths of this length, and the reason.

    A layer that is not full attention, a window shorter than the longest path, ALiBi (it counts distances in the row)
    or a class that takes no position ids means rows, always. What passes here is still compared with plain calls by
    `trees.verify.verify`.
    """
    config = module.config.get_text_config()  # type: ignore[operator, union-attr]
    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds - {"full_attention", "sliding_attention"}:
        return "rows", f"{', '.join(sorted(kinds))} layers cannot see a tree"
    if window is not None and getattr(config, "use_sliding_window", True) and window < longest_path:
        return "rows", f"the sliding window of {window} is shorter than the longest path of {longest_path}"
    if "sliding_attention" in kinds and window is None:
        return "rows", "sliding layers without a stated window"
    if not causal(module):
        return "rows", "the model is not a decoder"
    if getattr(config, "alibi", False):
        return "rows", "ALiBi counts distances along the packed row"
    if getattr(config, "_attn_implementation", None) not in ("sdpa", NAME):
        return "rows", f"attention is {getattr(config, '_attn_implementation', None)!r}, not sdpa"
    if "position_ids" not in signature(module.forward).parameters:
        return "rows", f"{type(module).__name__} takes no position_ids"
    return "tree", "full attention with SDPA"


def causal(module: nn.Module) -> bool:
    """Whether a model looks back only, as far as its class says so; `trees.verify` measures it for policies.

    A classifier over a decoder reads the last token with a layer that transformers calls `score`; any other classifier
    pools in its own way, as encoders do.
    """
    config: Any = module.config
    if getattr(config, "is_encoder_decoder", False) or getattr(config, "is_bidirectional", False):
        return False
    if getattr(config, "use_bidirectional_attention", None) is True:
        return False
    return hasattr(module, "score") or module.get_output_embeddings() is not None  # type: ignore[operator]
