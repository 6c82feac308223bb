"""`monet plan`: what a training run needs, computed before it starts."""
