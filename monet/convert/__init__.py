"""Converts models: to Hugging Face folders and to modelling code in one file."""
