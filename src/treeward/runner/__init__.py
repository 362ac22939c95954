"""What the commands do: one `run` for every training method, and the commands around it."""
