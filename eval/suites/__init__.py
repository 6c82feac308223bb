"""Experiments that remove units from a model and measure what changes. No suite imports another."""
