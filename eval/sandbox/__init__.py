"""Runs programs that nobody has read, shut in. This room knows no model."""
