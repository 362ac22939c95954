"""From rows to token trees: sources, formats, splits, rendering; and the embedded world."""

from treeward.data import batched, floor, formats, inspect, lengths, prepare, render, sources, splits, store, world

__all__ = [
    "batched", "floor", "formats", "inspect", "lengths", "prepare", "render", "sources", "splits", "store", "world",
]  # fmt: skip
