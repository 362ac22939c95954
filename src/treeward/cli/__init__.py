"""Parsing and printing: a few lines a verb. Nothing heavy is imported before a verb is known."""
