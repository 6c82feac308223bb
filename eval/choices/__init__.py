"""How likely is each of several answers? Scores, counts and texts that suites with options share."""
