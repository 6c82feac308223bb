"""The parts of `monet doctor`: versions, devices, optional packages, and a self-test of this installation."""
