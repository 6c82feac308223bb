"""Sizes that bound what a request can ask for, and what the page shows at once."""

from __future__ import annotations

# Bytes of a request's body.
BODY = 256 << 10
# Tokens of a text that a person types.
TEXT_TOKENS = 512
# Tokens of a continuation.
NEW_TOKENS = 200
# Rows of the table of experts in one answer.
ROWS = 200
# Experts that a collection may name one by one.
NAMED = 10_000
# Tokens before and after the token of a context.
AROUND = 32
# Experts of the table of a prompt.
PROMPT_EXPERTS = 40
# Experts that are listed for one token of a prompt, by group.
TOKEN_EXPERTS = 8
# Contexts with the weight at every token that are kept in memory, by unit.
KEPT_WEIGHTS = 64
# Bytes of windows that are kept in memory; others are read from the disk.
WINDOW_BYTES = 256 << 20
# Characters of a query.
QUERY = 2_000
# On a page without a server: contexts of an expert, samples of an interval, tokens around each, neighbours, and experts
# in a file.
STATIC_CONTEXTS = 8
STATIC_SAMPLES = 1
STATIC_AROUND = 12
STATIC_NEIGHBOURS = 8
STATIC_SHARD = 64
