"""Turns layers of a dense language model into Monet layers: `monet convert`."""
