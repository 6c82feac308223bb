"""Checkpoints of a run: their content, and how they are written, read and verified."""
