"""From rows to token trees: sources, formats, splits, rendering; and the embedded world."""
