"""Other units that can be removed from a model, each an `Intervention` for every suite."""
