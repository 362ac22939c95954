"""The run directory: everything that is left when a run has ended. Standard library only."""
