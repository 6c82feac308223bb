"""The parts that all suites share: interventions, controls, statistics, results."""
