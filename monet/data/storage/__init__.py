"""Token ids on the disk: shards, and the names of documents."""
