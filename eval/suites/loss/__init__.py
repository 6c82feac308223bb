"""Next-token loss on every domain, before and after removal."""
