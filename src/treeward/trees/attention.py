"""Who sees whom in a forest, and which models can be told.

A token sees its own tree's prompt and its own branch, causally. Backends:

- `tree`: the packed row with a 4-D mask under SDPA, each prompt computed once;
- `rows`: one padded row a branch and no mask, for models that cannot take the packed layout.

The rule that chooses between them comes before any probe, because some classes drop their sliding window without a
word when a 4-D mask is given.
"""

from inspect import signature
from typing import Literal

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from treeward.trees.forest import PROMPT, Forest

Backend = Literal["tree", "rows"]


def mask(forest: Forest) -> Bool[Tensor, "1 1 T T"]:
    """True where the token of the row may see the token of the column."""
    order = torch.arange(len(forest.tree), device=forest.tree.device)
    causal = order[:, None] >= order[None, :]
    same_tree = forest.tree[:, None] == forest.tree[None, :]
    same_branch = forest.branch[:, None] == forest.branch[None, :]
    trunk = forest.branch[None, :] == PROMPT
    return (causal & same_tree & (same_branch | trunk))[None, None]


def rule(module: nn.Module, longest_path: int) -> tuple[Backend, str]:
    """The backend that this model must use for paths of this length, and the reason.

    A layer that is not full attention, a window shorter than the longest path, or a class that takes no position ids
    means rows, always. What passes here is still compared with plain calls by `trees.forward.verify`.
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
    if getattr(config, "is_encoder_decoder", False) or not _causal(config):
        return "rows", "the model is not a decoder"
    if getattr(config, "_attn_implementation", None) != "sdpa":
        return "rows", f"attention is {getattr(config, '_attn_implementation', None)!r}, not sdpa"
    if "position_ids" not in signature(module.forward).parameters:
        return "rows", f"{type(module).__name__} takes no position_ids"
    return "tree", "full attention with SDPA"


def _causal(config: object) -> bool:
    return str(getattr(config, "model_type", "")) not in ENCODERS and not getattr(config, "is_bidirectional", False)


ENCODERS = frozenset({"bert", "distilbert", "roberta", "modernbert", "deberta-v2", "electra", "albert", "xlm-roberta"})
"""Model types whose attention looks both ways."""
