"""The run directory: the only thing that outlives a process. Standard library only."""
