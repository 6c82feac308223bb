"""Formulas for the costs of a model: operations, memory, communication, and the rates of the hardware."""
