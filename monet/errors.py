"""Errors for users, each with the exit code of the command that it ends."""

from __future__ import annotations


class MonetError(Exception):
    """Base class of all deliberate errors; the text says what is wrong, with which value, and how to fix it."""

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
    """The machine or the accelerator does not have enough memory for the request."""

    exit_code = 6


# Messages from torch, numpy and the operating system for one error that has no type.
_NO_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "bad_alloc", "unable to allocate")


def recognised(error: BaseException) -> MonetError | None:
    """Translate a library's error to a Monet error; None if the error is unknown and needs its traceback.

    Recognises memory that ran out (on the CPU and on accelerators) and data loader workers that died, hung or raised.
    """
    if isinstance(error, MonetError):
        return _of_worker(error) or error
    text = " ".join(str(error).split())
    is_memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    if is_memory or (isinstance(error, (RuntimeError, OSError)) and any(word in text.lower() for word in _NO_MEMORY)):
        return OutOfMemoryError(
            f"out of memory ({text[:300] or type(error).__name__}); lower data.batch_size and raise"
            " trainer.accumulate_grad_batches by the same factor, set model.gradient_checkpointing to true, shorten"
            " data.seq_len, train in bf16-mixed, or use more devices; for a command, lower its batch size"
        )
    if isinstance(error, RuntimeError) and "DataLoader" in text:
        return DataError(
            f"a data loader's worker failed: {text[:300]}; set data.num_workers to 0 to load without workers"
        )
    return None


def _of_worker(error: MonetError) -> MonetError | None:
    """A worker's error arrives with the worker's traceback as its text: keep only the last line."""
    head, mark, trace = str(error).partition("Original Traceback")
    if not (mark and "worker process" in head):
        return None
    return type(error)(trace.strip().splitlines()[-1].partition(": ")[2])
