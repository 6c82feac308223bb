"""`monet plan`: the needs of a training run, computed before it starts."""
