"""Converts models: checkpoints to Hugging Face folders, code to one file, dense models to hybrids."""
