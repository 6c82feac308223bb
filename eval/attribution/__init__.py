"""Which experts serve what: statistics of routing, and the rules that select experts."""
