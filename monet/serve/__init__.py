"""Generates text from a trained model."""
