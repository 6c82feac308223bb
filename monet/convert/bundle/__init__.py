"""Several modules of this package in one source file; `monet/convert/remote_code.py` says which, and what for."""
