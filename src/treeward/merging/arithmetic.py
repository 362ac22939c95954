"""Arithmetic on weights: state dictionaries with equal keys and shapes."""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from treeward.errors import UserError

Weights: TypeAlias = Mapping[str, Tensor]
"""A state dictionary: parameters and buffers by name."""


def average(members: Sequence[Weights]) -> dict[str, Tensor]:
    """The mean of each tensor over the members: weight-averaged reward models (Rame et al. 2024, arXiv:2401.12187).

    The sum is taken in float64 and the mean has the dtype of the first member. Integer and boolean tensors are not
    averaged; they must be equal. The average of reward models whose heads are linear in the same features gives exactly
    the mean score of the ensemble.

    Args:
        members: At least one state dictionary.

    Raises:
        UserError: There are no members, or their keys, shapes or integer tensors differ; the first difference is named.
    """
    if not members:
        raise UserError("members is empty; name at least one model to average")
    first = members[0]
    for number, member in enumerate(members[1:], 1):
        if member.keys() != first.keys():
            name = sorted(member.keys() ^ first.keys())[0]
            raise UserError(f"member {number} and member 0 differ: only one has {name!r}; average models of one kind")
    return {name: _mean(name, [member[name] for member in members]) for name in first}


def _mean(name: str, tensors: Sequence[Tensor]) -> Tensor:
    shapes = {tuple(tensor.shape) for tensor in tensors}
    if len(shapes) > 1:
        raise UserError(f"{name!r} has the shapes {sorted(shapes)}; average models of equal shapes")
    if not tensors[0].is_floating_point():
        if any(not torch.equal(tensors[0], tensor) for tensor in tensors[1:]):
            raise UserError(
                f"{name!r} is of type {tensors[0].dtype} and differs between members; it cannot be averaged"
            )
        return tensors[0].clone()
    return (torch.stack([tensor.double() for tensor in tensors]).sum(0) / len(tensors)).to(tensors[0].dtype)
