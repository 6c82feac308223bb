"""Checks during a run: bad values, spikes, signals, the time of steps."""
