"""WARP in memory: weight-averaged rewarded policies (Rame et al. 2024, arXiv:2406.16768) around any training function.

`treeward warp` does the same with runs on disk and members in processes of their own.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from torch import Tensor

from treeward.errors import UserError
from treeward.merging.arithmetic import Group, Grouping, Merged, balanced_slerp, check_movement, lerp, linear, slerp
from treeward.models.policy import Policy
from treeward.models.reference import EMAReference, ReferenceModel
from treeward.models.weights import restore, snapshot

Train: TypeAlias = Callable[[Policy, ReferenceModel, int], object]
"""Trains a policy in place against a reference, with a seed."""
MERGES: Mapping[str, Callable[..., Merged]] = {"slerp": slerp, "balanced-slerp": balanced_slerp, "linear": linear}


@dataclass(frozen=True)
class Warped:
    """What `warp` made.

    Attributes:
        policy: The policy; it has the weights of the last merge until `load` changes them.
        start: The parameters of the first start, by name.
        merged: The parameters of the last merge.
        iterations: For each iteration how the groups of its members' parameters were merged: norms, angles, shares.
    """

    policy: Policy
    start: Mapping[str, Tensor]
    merged: Mapping[str, Tensor]
    iterations: tuple[tuple[Group, ...], ...]

    def load(self, share: float) -> Policy:
        """The policy with the weights that are this share of the way from the first start to the last merge."""
        restore(self.policy.packed, lerp(self.start, towards=self.merged, weight=share))
        return self.policy


def warp(
    policy: Policy,
    train: Train,
    *,
    iterations: int = 2,
    members: int = 2,
    rate: float = 0.01,
    eta: float = 0.5,
    merge: Literal["slerp", "balanced-slerp", "linear"] = "slerp",
    groups: Grouping = "block",
    seed: int = 0,
) -> Warped:
    """Train several members from one start, merge them, move the start towards the merge, and again.

    Args:
        policy: The start; it is changed in place.
        train: Trains it in place, given the reference and the member's seed, such as
            `lambda policy, reference, seed: tw.reinforce(policy, prompts, reward, config_with(seed), reference)`.
        iterations: How often members are trained and merged.
        members: Policies trained from one start in each iteration.
        rate: mu of the reference, an exponential moving average of the member: (1 - mu) reference + mu policy.
        eta: The share of the way from an iteration's start to its merge at which the next one starts.
        merge: How the members' task vectors are merged, with equal weights.
        groups: What has an angle of its own.
        seed: The first member's seed; each further member has the next one.

    Raises:
        UserError: `train` did not move the policy that it was given, or an argument is out of range.
    """
    for name, value in (("iterations", iterations), ("members", members)):
        if value < 1:
            raise UserError(f"{name} is {value}; it must be at least 1")
    if not 0 <= eta <= 1:
        raise UserError(f"eta is {eta}; it must be from 0 to 1")
    first = start = snapshot(policy.packed)
    merges = []
    for iteration in range(iterations):
        trained = []
        for member in range(members):
            restore(policy.packed, start)
            train(policy, EMAReference(policy, rate), seed + iteration * members + member)
            trained.append(snapshot(policy.packed))
        merged = MERGES[merge](start, trained, groups=groups)
        check_movement(merged.groups, [f"member {n} of iteration {iteration + 1}" for n in range(1, members + 1)])
        merges.append(merged)
        if iteration + 1 < iterations:
            start = lerp(start, towards=merged.weights, weight=eta)
    restore(policy.packed, merged.weights)
    return Warped(policy, first, merged.weights, tuple(each.groups for each in merges))
