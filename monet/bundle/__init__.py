"""Several modules of this package as the source of one file; `monet/remote_code.py` says which, and what for."""
