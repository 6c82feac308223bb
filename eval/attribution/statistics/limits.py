"""How much is counted at a time; tests shrink these numbers to reach every border with small arrays.

Read them as `limits.NAME` when they are needed, so that a changed number counts.
"""

from __future__ import annotations

# Size of the table (token, expert) that finds repeats within one list, in cells of 4 bytes, by type of device.
PAIR_CELLS = {"cpu": 1 << 24, "cuda": 1 << 28}
# Tokens whose active experts are listed at a time.
PAIR_TOKENS = 4096
# Entries of one list before repeats are joined; each entry passes through about ten arrays of 8 bytes.
PAIR_ENTRIES = 1 << 22
# Multiply-adds that take as long as listing one pair; measured on a CPU at E = 512 and E = 32.
PRODUCTS_A_PAIR = 500
