"""From rows to trees: sources, formats, splits, rendering, inspection; and the embedded world."""

from treeward.data import (
    arithmetic,
    embedded,
    figures,
    formats,
    inspect,
    prepare,
    render,
    sources,
    splits,
    store,
    world,
)
from treeward.data.prepare import Dataset, load

__all__ = [
    "Dataset", "arithmetic", "embedded", "figures", "formats", "inspect", "load", "prepare", "render", "sources",
    "splits", "store", "world",
]  # fmt: skip
