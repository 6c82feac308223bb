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


class OutOfMemoryError(MonetError, MemoryError):
    """The machine's or the accelerator's memory does not hold what was asked for."""

    exit_code = 6


# Words of torch, numpy and the system for one thing, in errors that have no type of their own.
_NO_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "bad_alloc", "unable to allocate")


def recognised(error: BaseException) -> MonetError | None:
    """The error of ours that a library's error stands for; None if it is unknown, and then deserves its traceback.

    Knows memory that ran out (on the CPU and on accelerators) and a data loader's workers that died, hung or raised.
    """
    if isinstance(error, MonetError):
        return _of_worker(error) or error
    text = " ".join(str(error).split())
    is_memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    if is_memory or (isinstance(error, (RuntimeError, OSError)) and any(word in text.lower() for word in _NO_MEMORY)):
        return OutOfMemoryError(
            f"out of memory ({text[:300] or type(error).__name__}); lower data.batch_size and raise"
            " trainer.accumulate_grad_batches by the same factor, or set model.gradient_checkpointing true, shorten"
            " data.seq_len, train in bf16-mixed, or take more devices; for a command, lower its batch size"
        )
    if isinstance(error, RuntimeError) and "DataLoader" in text:
        return DataError(f"a data loader's worker failed: {text[:300]}; data.num_workers 0 loads without workers")
    return None


def _of_worker(error: MonetError) -> MonetError | None:
    """An error that a loader's worker raised arrives with the worker's traceback as its text: keep the last line."""
    head, mark, trace = str(error).partition("Original Traceback")
    if not (mark and "worker process" in head):
        return None
    return type(error)(trace.strip().splitlines()[-1].partition(": ")[2])
