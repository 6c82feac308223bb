"""The model: configuration, router, experts, losses, the Hugging Face classes, and what ties weights to a model."""
