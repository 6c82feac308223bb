"""The paper's tables: their requirements, their commands, and the published values next to ours."""
