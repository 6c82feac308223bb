"""Training: Lightning module, optimiser, checkpoints, metrics and the command line behind train.py."""
