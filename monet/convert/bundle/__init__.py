"""Merges modules of this package into one source file; `monet/convert/remote_code.py` chooses them and explains why."""
