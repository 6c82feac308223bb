"""What is watched while a run goes on: bad values, spikes, signals, the rhythm of steps."""
