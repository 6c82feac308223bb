"""Scorers that measure how toxic a text is."""
