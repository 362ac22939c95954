"""Several processes, where `torch.distributed` is initialised: each takes every n-th tree of a batch.

Gradients are summed, not averaged, because the loss is already divided by the count over all ranks; so the ranks need
not run equally many forests.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, distributed


def world() -> int:
    """How many processes train together."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """This process's number."""
    return distributed.get_rank() if world() > 1 else 0


def sum_gradients(parameters: Iterable[Tensor]) -> None:
    """Add up the gradients of all ranks, in place; a rank whose share was empty adds zeros."""
    if world() == 1:
        return
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        distributed.all_reduce(parameter.grad)


def sum_all(sums: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Add up named numbers of all ranks; a rank that saw nothing has none of the names."""
    if world() == 1:
        return sums
    gathered: list[dict[str, Tensor]] = [{} for _ in range(world())]
    distributed.all_gather_object(gathered, dict(sums))
    names = {name: None for part in gathered for name in part}
    return {name: torch.stack([part[name] for part in gathered if name in part]).sum() for name in names}
