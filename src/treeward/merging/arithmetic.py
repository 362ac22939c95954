"""Arithmetic on weights: state dictionaries with equal names and shapes.

A task vector is a model's weights minus those of the model that it was trained from. Every rule here adds up task
vectors: merged = start + sum_j c_j (member_j - start). The coefficients c of a group of tensors follow from the task
vectors' inner products alone. So a rule is a short function of a Gram matrix, and models need not be in memory: they
are read twice, a tensor at a time.

    lerp(start, towards=end, weight=w)       (1 - w) start + w end: also a step of an EMA, and LITI
    linear(start, members)                   the mean of the members, with the geometry of their task vectors
    slerp(start, members)                    spherical interpolation of the task vectors, one member after another
    balanced_slerp(start, members)           the same length for any order of the members
    average(members)                         the mean of models without a common start

All sums are in float64 and results in float32 or wider, whatever the weights' dtype. Integer and boolean tensors are
not merged: they must be equal.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from treeward.errors import UserError

Weights: TypeAlias = Mapping[str, Tensor]
"""A state dictionary: parameters and buffers by name."""
Grouping: TypeAlias = Literal["block", "tensor", "all"]
"""What has an angle of its own: a transformer block (and each module outside the blocks), a tensor, or the model."""
Gram: TypeAlias = Float[Tensor, "M M"]
"""Inner products of the members' task vectors, in float64."""
Rule: TypeAlias = Callable[[Gram], tuple[list[float], bool]]
"""The coefficient of each member, and whether the rule fell back to linear interpolation."""

CHUNK = 1 << 17
"""Elements of a tensor that are summed at a time: float64 copies of a chunk stay in the cache."""
LEAST_MOVEMENT = 1e-5
"""A member whose task vector is shorter than this share of the start's norm was not trained."""
PARALLEL = 1e-6
"""Below this sine of the angle, or this length of the sum of unit vectors, interpolation is linear."""
BLOCK = re.compile(r"^(.*?\.\d+)\.")


@dataclass(frozen=True)
class Group:
    """How one group of tensors was merged.

    Attributes:
        name: The block, module or tensor; "all" for the whole model.
        start: Norm of the start's weights.
        norms: Norm of each member's task vector.
        angles: Angle in degrees between the task vectors of members 1 and 2, 1 and 3, ..., 2 and 3, ...; NaN where one
            of them is zero.
        coefficients: What each task vector was multiplied with.
        merged: Norm of the merged task vector.
        fallback: True if spherical interpolation was asked for, but the vectors are parallel, opposite or zero, so that
            they were interpolated linearly.
    """

    name: str
    start: float
    norms: tuple[float, ...]
    angles: tuple[float, ...]
    coefficients: tuple[float, ...]
    merged: float
    fallback: bool

    @property
    def of_models(self) -> list[float]:
        """The coefficients of the start's and the members' weights, which sum to 1."""
        return [1 - math.fsum(self.coefficients), *self.coefficients]


def check_movement(groups: Iterable[Group], names: Sequence[str]) -> None:
    """Refuse members that are the start; `names` are the members'.

    Raises:
        UserError: names the first one, how far it moved, and the group that moved most.
    """
    all_groups = list(groups)
    norm = math.hypot(*(group.start for group in all_groups))
    for place, name in enumerate(names):
        moved = math.hypot(*(group.norms[place] for group in all_groups))
        if moved < LEAST_MOVEMENT * norm:
            most = max(all_groups, key=lambda group: group.norms[place])
            raise UserError(
                f"{name} is the start: its weights moved by {moved:.2g} of {norm:.3g} (most in {most.name}, "
                f"{most.norms[place]:.2g}), so there is nothing to merge; train it first"
            )


@dataclass(frozen=True)
class Merged:
    """Merged weights, and how each group of them was merged."""

    weights: dict[str, Tensor]
    groups: tuple[Group, ...]

    @property
    def angles(self) -> dict[str, tuple[float, ...]]:
        """`Group.angles` by group."""
        return {group.name: group.angles for group in self.groups}

    @property
    def norms(self) -> dict[str, tuple[float, ...]]:
        """`Group.norms` by group."""
        return {group.name: group.norms for group in self.groups}


# Rules: from inner products to coefficients


def linear_rule(weight: Sequence[float]) -> Rule:
    """The coefficients are the weights."""
    return lambda gram: (list(weight), False)


def slerp_rule(weight: Sequence[float]) -> Rule:
    """Spherical interpolation of one member after another (Rame et al. 2024, arXiv:2406.16768, section 3.2).

    For vectors a and b with the angle W between them,

        slerp(a, b, t) = sin((1 - t) W) / sin W  a  +  sin(t W) / sin W  b

    Member m joins the merge of those before it with t = weight_m / (weight_1 + ... + weight_m), which is 1/m for equal
    weights.
    """

    def rule(gram: Gram) -> tuple[list[float], bool]:
        coefficients = torch.zeros(len(gram), dtype=torch.float64)
        coefficients[0], fallback = 1.0, False
        for m in range(1, len(gram)):
            share = weight[m] / sum(weight[: m + 1])
            so_far = math.sqrt(max(0.0, float(coefficients @ gram @ coefficients)))
            angle = angle_between(so_far, math.sqrt(float(gram[m, m])), float(coefficients @ gram[:, m]))
            if math.isnan(angle) or math.sin(angle) < PARALLEL:
                old, new, fallback = 1 - share, share, True
            else:
                old, new = (math.sin(part * angle) / math.sin(angle) for part in (1 - share, share))
            coefficients *= old
            coefficients[m] = new
        return coefficients.tolist(), fallback

    return rule


def balanced_rule(gram: Gram) -> tuple[list[float], bool]:
    """The sum of the task vectors over the length of the sum of their unit vectors.

    It does not depend on the members' order and keeps their common norm; for two members it is `slerp_rule` with equal
    weights. If the unit vectors cancel, or a vector is zero, it is the mean.
    """
    members = len(gram)
    norms = gram.diagonal().sqrt()
    if bool((norms == 0).any()):
        return [1 / members] * members, True
    length = math.sqrt(max(0.0, float((gram / torch.outer(norms, norms)).sum())))
    if length < PARALLEL * members:
        return [1 / members] * members, True
    return [1 / length] * members, False


def angle_between(a: float, b: float, product: float) -> float:
    """The angle in radians between vectors of norms a and b; NaN if one of them is zero."""
    return math.acos(max(-1.0, min(1.0, product / (a * b)))) if a * b > 0 else math.nan


# Merging


def slerp(
    start: Weights,
    members: Sequence[Weights],
    weight: float | Sequence[float] | None = None,
    groups: Grouping = "block",
) -> Merged:
    """Spherical interpolation of the members' task vectors, group by group, as WARP merges policies (arXiv:2406.16768).

    Args:
        start: The weights that all members were trained from.
        members: At least one model, in the order in which they are merged: with three or more the order matters.
        weight: A weight for each member, or the second one's share of two; equal by default.
        groups: What has an angle of its own.

    Raises:
        UserError: names, shapes, tied tensors or integer tensors differ, or the weights do not fit the members.
    """
    return _merge(start, members, slerp_rule(shares(weight, len(members))), groups)


def balanced_slerp(start: Weights, members: Sequence[Weights], groups: Grouping = "block") -> Merged:
    """As `slerp` with equal weights, but independent of the members' order; for two members they are equal."""
    return _merge(start, members, balanced_rule, groups)


def linear(
    start: Weights,
    members: Sequence[Weights],
    weight: float | Sequence[float] | None = None,
    groups: Grouping = "block",
) -> Merged:
    """The weighted mean of the members, with the norms and angles of their task vectors. Arguments as for `slerp`."""
    return _merge(start, members, linear_rule(shares(weight, len(members))), groups)


def lerp(start: Weights, *, towards: Weights, weight: float) -> dict[str, Tensor]:
    """(1 - weight) start + weight towards. A weight of 0 gives the start and 1 the end, bit for bit.

    A step of an exponential moving average is lerp(average, towards=policy, weight=rate). LITI, the interpolation
    towards the start (arXiv:2406.16768), is lerp(start, towards=merged, weight=eta).

    Raises:
        UserError: names, shapes, tied tensors or integer tensors differ.
    """
    return combined([start, towards], [1 - weight, weight])


def average(members: Sequence[Weights]) -> dict[str, Tensor]:
    """The mean of each tensor over the members: weight-averaged reward models (Rame et al. 2024, arXiv:2401.12187).

    The average of reward models whose heads are linear in the same features gives exactly the mean score of the
    ensemble.

    Raises:
        UserError: There are no members, or their names, shapes, tied tensors or integer tensors differ.
    """
    return combined(members, [1 / len(members)] * len(members) if members else [])


def combined(models: Sequence[Weights], coefficients: Sequence[float]) -> dict[str, Tensor]:
    """The weighted sum of models in memory, one coefficient each. Tensors that are tied stay tied.

    Raises:
        UserError: There are no models, or their names, shapes, tied tensors or integer tensors differ.
    """
    same_as = check_alike(models)
    merged = {name: combine(name, [model[name] for model in models], coefficients) for name in set(same_as.values())}
    return {name: merged[first] for name, first in same_as.items()}


def _merge(start: Weights, members: Sequence[Weights], rule: Rule, groups: Grouping) -> Merged:
    same_as = check_alike([start, *members])
    of_group = group_names(dict.fromkeys(same_as.values()), groups)
    merged = measured(start, members, of_group, rule)
    weights = dict(merged_tensors(start, members, of_group, merged))
    return Merged({name: weights[first] for name, first in same_as.items()}, tuple(merged.values()))


def measured(start: Weights, members: Sequence[Weights], of_group: Mapping[str, str], rule: Rule) -> dict[str, Group]:
    """How the rule merges each group, from one reading of all tensors; `of_group` is from `group_names`."""
    geometries: dict[str, Geometry] = {}
    for name, group in of_group.items():
        geometries.setdefault(group, Geometry(len(members))).add(start[name], [member[name] for member in members])
    return {group: geometry.merged_by(rule, group) for group, geometry in geometries.items()}


def merged_tensors(
    start: Weights, members: Sequence[Weights], of_group: Mapping[str, str], merged: Mapping[str, Group]
) -> Iterator[tuple[str, Tensor]]:
    """Each tensor with its name, from a second reading."""
    for name, group in of_group.items():
        yield name, combine(name, [model[name] for model in (start, *members)], merged[group].of_models)


class Geometry:
    """Inner products of the members' task vectors in one group, added up tensor by tensor."""

    def __init__(self, members: int) -> None:
        self.gram = torch.zeros(members, members, dtype=torch.float64)
        self.start = 0.0

    def add(self, start: Tensor, members: Sequence[Tensor]) -> None:
        """Count one tensor; one that is not of a floating type has no part in the geometry."""
        if not start.is_floating_point():
            return
        for chunk in _chunks([start, *members]):
            origin, vectors = chunk[0], chunk[1:]
            self.start += float(origin @ origin)
            vectors -= origin
            self.gram += (vectors @ vectors.T).cpu()

    def merged_by(self, rule: Rule, name: str) -> Group:
        """The group with the coefficients that the rule gives."""
        coefficients, fallback = rule(self.gram)
        norms = self.gram.diagonal().sqrt().tolist()
        angles = [
            math.degrees(angle_between(norms[i], norms[j], float(self.gram[i, j])))
            for i, j in combinations(range(len(norms)), 2)
        ]
        weights = torch.tensor(coefficients, dtype=torch.float64)
        length = math.sqrt(max(0.0, float(weights @ self.gram @ weights)))
        return Group(name, math.sqrt(self.start), tuple(norms), tuple(angles), tuple(coefficients), length, fallback)


def combine(name: str, tensors: Sequence[Tensor], coefficients: Sequence[float]) -> Tensor:
    """The weighted sum of tensors: summed in float64, returned in float32 or wider. Those of another type are equal.

    Raises:
        UserError: integer or boolean tensors differ.
    """
    first = tensors[0]
    if not first.is_floating_point():
        if any(not torch.equal(first, tensor) for tensor in tensors[1:]):
            raise UserError(f"{name!r} is of type {first.dtype} and differs between the models; it cannot be merged")
        return first.clone()
    sums = torch.empty(first.shape, dtype=torch.promote_types(first.dtype, torch.float32), device=first.device)
    flat = sums.view(-1)
    at = 0
    for chunk in _chunks(tensors):
        total = chunk[0].mul_(coefficients[0]) if coefficients[0] else chunk[0].fill_(-0.0)  # -0.0 + x is x
        for part, coefficient in zip(chunk[1:], coefficients[1:], strict=True):
            if coefficient:
                total.add_(part, alpha=coefficient)
        flat[at : at + len(total)] = total
        at += len(total)
    return sums


def _chunks(tensors: Sequence[Tensor]) -> Iterator[Float[Tensor, "tensors elements"]]:
    """The same elements of all tensors in float64, a cacheful at a time. The next chunk is written over the last."""
    flat = [tensor.detach().reshape(-1) for tensor in tensors]
    size = len(flat[0])
    chunk = torch.empty(len(flat), min(CHUNK, size), dtype=torch.float64, device=flat[0].device)
    for at in range(0, size, CHUNK):
        part = chunk[:, : size - at]
        for row, tensor in zip(part, flat, strict=True):
            row.copy_(tensor[at : at + CHUNK])
        yield part


# What the models must share


def shares(weight: float | Sequence[float] | None, members: int) -> list[float]:
    """The members' weights, with sum 1.

    Raises:
        UserError: there are no members, one number is given for other than two, or a weight is negative or not finite.
    """
    if not members:
        raise UserError("members is empty; name at least one model to merge")
    if weight is None:
        return [1 / members] * members
    if isinstance(weight, (int, float)):
        if members != 2:
            raise UserError(f"weight is {weight}, the second of two members' share, but there are {members}; list them")
        weight = [1 - weight, weight]
    total = math.fsum(weight)
    if len(weight) != members or not all(0 <= part < math.inf for part in weight) or not total > 0:
        raise UserError(f"weight is {list(weight)}; it must be {members} numbers from 0, one for each member")
    return [part / total for part in weight]


def group_names(names: Iterable[str], groups: Grouping) -> dict[str, str]:
    """The group of each tensor, in the order of the tensors.

    A block is what stands before the first number in a name, as in `model.layers.3.mlp.up_proj.weight`. A tensor
    outside the blocks belongs to its module, such as `model.embed_tokens`.
    """
    if groups == "all":
        return dict.fromkeys(names, "all")
    if groups == "tensor":
        return {name: name for name in names}
    blocks = {name: BLOCK.match(name) for name in names}
    return {name: block.group(1) if block else name.rpartition(".")[0] or name for name, block in blocks.items()}


def check_alike(models: Sequence[Weights]) -> dict[str, str]:
    """For each name the first name of the same tensor: itself unless it is tied.

    Raises:
        UserError: there are no models, or they differ in names, shapes, types, or in what is tied.
    """
    if not models:
        raise UserError("members is empty; name at least one model to merge")
    first, tied = models[0], _first_names(models[0])
    for number, model in enumerate(models[1:], 1):
        here = f"model {number} and model 0 differ"
        if model.keys() != first.keys():
            name = sorted(model.keys() ^ first.keys())[0]
            raise UserError(f"{here}: only one has {name!r}; merge models of one kind")
        for name, tensor in first.items():
            if tensor.shape != model[name].shape:
                shapes = f"{tuple(model[name].shape)} and {tuple(tensor.shape)}"
                raise UserError(f"{here}: {name!r} has the shapes {shapes}; merge models of equal shapes")
            if tensor.is_floating_point() != model[name].is_floating_point():
                raise UserError(f"{here}: {name!r} is of type {model[name].dtype} and {tensor.dtype}")
        if (there := _first_names(model)) != tied:
            name = next(name for name in tied if tied[name] != there[name])
            raise UserError(f"{here}: {name!r} is tied to another tensor in one of them only; untie or tie both")
    return tied


def _first_names(weights: Weights) -> dict[str, str]:
    """The first name of the tensor of each name; tied tensors share memory."""
    seen: dict[tuple[object, ...], str] = {}
    return {
        name: seen.setdefault((tensor.data_ptr(), tensor.shape, tensor.stride()), name) if tensor.numel() else name
        for name, tensor in weights.items()
    }
