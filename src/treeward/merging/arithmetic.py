"""Averages of weights, on state dictionaries of equal keys and shapes."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from treeward.errors import UserError

Weights = Mapping[str, Tensor]


def average(members: Sequence[Weights]) -> dict[str, Tensor]:
    """The mean of each tensor over the members, summed in float64; other than floating tensors must be equal.

    Weight-averaged reward models (Rame et al. 2024, arXiv:2401.12187): M copies give the copy, and heads that are
    linear in shared features give exactly the ensemble's mean score.

    Raises:
        UserError: there are no members, or their keys or shapes differ; the first difference is named.
    """
    if not members:
        raise UserError("there are no members to average")
    first = members[0]
    for number, other in enumerate(members[1:], 1):
        if other.keys() != first.keys():
            raise UserError(f"member {number} differs in {sorted(other.keys() ^ first.keys())[0]!r}")
    return {name: _mean(name, [member[name] for member in members]) for name in first}


def _mean(name: str, tensors: Sequence[Tensor]) -> Tensor:
    shapes = {tuple(tensor.shape) for tensor in tensors}
    if len(shapes) > 1:
        raise UserError(f"{name!r} has the shapes {sorted(shapes)}; members must be alike")
    if not tensors[0].is_floating_point():
        if any(not torch.equal(tensors[0], tensor) for tensor in tensors[1:]):
            raise UserError(f"{name!r} is not floating and differs between members")
        return tensors[0].clone()
    return (torch.stack([tensor.double() for tensor in tensors]).sum(0) / len(tensors)).to(tensors[0].dtype)
