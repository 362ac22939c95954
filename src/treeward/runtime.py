"""The process that trains: its device, its rank among several processes, and sums over all of them.

Several processes train together where `torch.distributed` is initialised (torchrun, accelerate launch). Each takes
every n-th tree of a batch. Gradients are summed and not averaged, because a loss is already divided by the count over
all ranks.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor, distributed

Item = TypeVar("Item")
BUCKET = 2**25
"""Elements of gradients that are summed in one collective."""


@dataclass(frozen=True)
class Runtime:
    """Where this process runs: `device`, its `rank`, and how many processes (`world`) train together."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    rank: int = 0
    world: int = 1

    @classmethod
    def current(cls, device: torch.device | str = "cpu") -> "Runtime":
        """The runtime of this process, by `torch.distributed`."""
        if distributed.is_available() and distributed.is_initialized():
            return cls(torch.device(device), distributed.get_rank(), distributed.get_world_size())
        return cls(torch.device(device))

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and reports progress."""
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """This process's part of a batch."""
        return items[self.rank :: self.world]

    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Add up the gradients of all ranks, in place. A rank whose share was empty adds zeros."""
        if self.world == 1:
            return
        bucket: list[Tensor] = []
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            if bucket and (
                bucket[0].dtype != parameter.grad.dtype or sum(g.numel() for g in bucket) + parameter.numel() > BUCKET
            ):
                _sum_in_place(bucket)
                bucket = []
            bucket.append(parameter.grad)
        if bucket:
            _sum_in_place(bucket)

    def sum_values(self, sums: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Add up named numbers of all ranks. A rank that saw nothing has none of the names."""
        if self.world == 1:
            return sums
        gathered: list[dict[str, Tensor]] = [{} for _ in range(self.world)]
        distributed.all_gather_object(gathered, {name: value.cpu() for name, value in sums.items()})
        names = {name: None for part in gathered for name in part}
        return {name: torch.stack([part[name] for part in gathered if name in part]).sum() for name in names}


def _sum_in_place(gradients: Sequence[Tensor]) -> None:
    """All-reduce several tensors of one dtype as one."""
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(flat)
    parts = torch.split(flat, [gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))
