"""Text -> documents -> token shards -> windows -> batches."""
