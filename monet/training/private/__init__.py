"""The private parts of Lightning and DeepSpeed that training uses, one file for each."""
