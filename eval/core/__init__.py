"""What every suite is made of: interventions, controls, statistics, results."""
