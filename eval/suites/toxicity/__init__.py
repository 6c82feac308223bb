"""Toxicity of what a model writes, before and after experts are removed: protocols, scorers, purge."""
