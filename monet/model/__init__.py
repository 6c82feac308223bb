"""The model: configuration, router, experts, losses, Hugging Face classes, and the fingerprint of its weights."""
