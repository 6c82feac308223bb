"""Text -> score: how toxic a text is."""
