"""Weights as facts: hashes, counts, dropout, and the tensors that moved."""

import hashlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from treeward.trees.forward import dropout_fields


def fingerprint(module: nn.Module, without: str | None = None) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of the parameters, in name order; tied ones once.

    Parameters with `without` in their name are left out.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(module.named_parameters()):
        if without is not None and without in name:
            continue
        digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}".encode())
        digest.update(parameter.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def trainable(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters that train, by name, tied ones once."""
    return ((name, p) for name, p in module.named_parameters() if p.requires_grad)


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    """A copy of the trainable parameters, on the CPU: what movement is measured against."""
    return {name: p.detach().to("cpu", copy=True) for name, p in trainable(module)}


def movement(module: nn.Module, start: Mapping[str, Tensor]) -> dict[str, tuple[float, float]]:
    """(norm of the change, norm at the start) of each trainable parameter."""
    found = {}
    for name, parameter in trainable(module):
        now = parameter.detach().cpu()
        found[name] = ((now - start[name]).norm().item(), start[name].norm().item())
    return found


def set_dropout(module: nn.Module, share: float) -> None:
    """Set every dropout of a model: attention, residual, embedding and layer dropout."""
    for part in module.modules():
        for name in dropout_fields(part):
            setattr(part, name, share)
