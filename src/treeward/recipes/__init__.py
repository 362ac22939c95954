"""Recipes: one YAML a run. Names are found with `treeward RECIPES`; any key can be overridden."""
