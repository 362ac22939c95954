"""Arithmetic in weight space."""

from treeward.merging.arithmetic import Weights, average

__all__ = ["Weights", "average"]
