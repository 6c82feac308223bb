"""A page on which people read an index: a local server with a live model, or a folder that needs no server."""
