"""The paper's tables: what each needs, what it runs, and the published values beside ours."""
