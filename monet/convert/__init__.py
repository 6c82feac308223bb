"""Models in other forms: Hugging Face folders, one-file modelling code."""
