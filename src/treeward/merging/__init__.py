"""Arithmetic in weight space: task vectors, linear and spherical interpolation, averages."""

from treeward.merging.arithmetic import Group, Merged, Weights, average, balanced_slerp, lerp, linear, slerp

__all__ = ["Group", "Merged", "Weights", "average", "balanced_slerp", "lerp", "linear", "slerp"]
