"""How training and evaluation read prepared data: windows, their order, batches."""
