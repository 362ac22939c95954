"""Recipes: one YAML file a run. `treeward recipes` lists them, and any key can be overridden on the command line.

Each has a comment line `# Expect (shown by treeward recipes): ...`, which the list prints.
"""
