"""Checks before, during and after a run, and what follows from them: the verdict and the receipt."""
