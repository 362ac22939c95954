"""The head of a public sequence-classification model: where it is, how it starts, and its hash."""

import hashlib
from typing import Any

from torch import nn

from treeward.errors import UserError


def output_layer(module: Any) -> nn.Linear:
    """The last linear layer of a sequence-classification model: its head.

    Raises:
        UserError: it has none.
    """
    width = module.config.num_labels
    found = [part for part in module.modules() if isinstance(part, nn.Linear) and part.out_features == width]
    if not found:
        raise UserError(f"{type(module).__name__} has no linear head of {width} outputs")
    return found[-1]


def zero_head(module: nn.Module) -> nn.Module:
    """The same model with a head of zeros: its first score of every text is the same."""
    layer = output_layer(module)
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return module


def outside_backbone(module: Any) -> dict[str, nn.Parameter]:
    """The parameters of the head and, in encoders, of the layers before it."""
    prefix = str(module.base_model_prefix)
    return {name: p for name, p in module.named_parameters() if name.partition(".")[0] != prefix}


def head_hash(module: nn.Module) -> str:
    """SHA-256 over the bytes of the head's weights."""
    digest = hashlib.sha256()
    for parameter in output_layer(module).parameters():
        digest.update(parameter.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
