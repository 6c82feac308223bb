"""Programs that a model writes under masks: MultiPL-E's problems in six languages, executed in a sandbox, pass@k."""
