"""Training: Lightning module, optimiser, checkpoints, metrics and the command line of train.py."""
