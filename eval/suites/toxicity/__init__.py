"""Toxicity of a model's continuations before and after experts are removed: protocols, scorers, purge."""
