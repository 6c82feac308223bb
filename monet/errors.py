"""Errors a user can meet, each with the exit code a command ends with."""

from __future__ import annotations


class MonetError(Exception):
    """Base of every error raised on purpose; its text says what is wrong, with which value, and what to do."""

    exit_code = 1


class ConfigError(MonetError, ValueError):
    """A setting, flag or configuration key cannot be used."""

    exit_code = 2


class DataError(MonetError, ValueError):
    """Text, tokenizer, shards or a manifest cannot be used."""

    exit_code = 3


class CheckpointError(MonetError, ValueError):
    """A checkpoint, export, mask or statistics file cannot be used."""

    exit_code = 4


class NonFiniteError(MonetError, ArithmeticError):
    """A loss or gradient is NaN or infinite; raised before the optimiser's update."""

    exit_code = 5
