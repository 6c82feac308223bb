"""Programs that a model writes under masks: MultiPL-E's problems in six languages, a sandbox, pass@k."""
