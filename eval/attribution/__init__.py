"""Find which experts serve which label: statistics of routing, and the rules that select experts."""
