"""Measurements of policies and reward models before and after training."""
