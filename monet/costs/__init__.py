"""What a model costs, by formulas: operations, memory, communication, and what hardware gives."""
