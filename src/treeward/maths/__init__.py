"""Formulas: tensors in, tensors out. No models, no files, no logging."""
