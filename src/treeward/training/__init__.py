"""Training: the loop (one optimizer step, owned by the caller), batches, objectives, checkpoints."""
