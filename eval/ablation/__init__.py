"""The loss of every domain before and after removal: the measurement that suites and baselines share."""
