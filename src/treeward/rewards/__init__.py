"""Prompt and response in, score out: the judges of a policy's samples."""
