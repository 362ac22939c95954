"""From rows to token trees: sources, formats, splits, rendering; and the embedded world."""

from treeward.data import formats, prepare, render, sources, splits, world

__all__ = ["formats", "prepare", "render", "sources", "splits", "world"]
