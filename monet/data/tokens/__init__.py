"""How documents become token ids: the tokenizer, and the processes that encode."""
