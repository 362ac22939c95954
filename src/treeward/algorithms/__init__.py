"""Training algorithms: each a config and a function that yields steps; none imports another."""
