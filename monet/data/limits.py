"""How much of a text, a file or a data set is read at a time; tests shrink these numbers to reach every border.

Read them as `limits.NAME` when they are needed, so that a changed number counts.
"""

from __future__ import annotations

# Documents and characters that are encoded together: a batch ends at the first of the two.
BATCH_DOCUMENTS, BATCH_CHARACTERS = 256, 1 << 20
# The most work that a kill can lose.
KEEP_SECONDS = 10.0
# Characters that the tokenizer gets at a time; it uses about 130 bytes of memory for each byte that it encodes.
PIECE_CHARACTERS = 1 << 18
# How many characters before its limit a piece may end.
SEARCHED_CHARACTERS = 1 << 14
# Bytes of a record file that are read at a time.
BLOCK_BYTES = 1 << 20
# Rows and characters in one fetched part of a data set on the Hub: a part ends at the first of the two.
PART_ROWS, PART_CHARACTERS = 5000, 1 << 26
# A larger text file is known by hashes of HASHED_SAMPLES samples, each of HASHED_SAMPLE_BYTES.
HASHED_WHOLE_BYTES = 1 << 28
HASHED_SAMPLES, HASHED_SAMPLE_BYTES = 64, 1 << 20
# If the token ids of a folder take fewer bytes, every start checks their hashes; a gigabyte takes a second or two.
HASHED_TOKEN_BYTES = 10**9
