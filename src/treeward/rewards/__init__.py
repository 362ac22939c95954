"""Scorers: a rollout in, one number a response out."""
