"""Timing that survives a shared machine, and memory counted rather than guessed."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile


def time_in_turns(
    runs: dict[str, Callable[[], object]],
    rounds: int,
    block_seconds: float,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Milliseconds a call, one number a round, the contestants taking turns block by block.

    Speed drifts on a shared machine; what is compared inside one round saw the same weather.

    Args:
        runs: contestants; those to be compared most closely should stand side by side.
        rounds: how often each one gets its turn.
        block_seconds: least duration of a turn; short calls are repeated to fill it.
        clock: in seconds; `time.process_time` counts this process' work alone, on all threads.
    """
    calls = {}
    for name, run in runs.items():
        seconds = 0.0
        for _ in range(2):  # the first call is warm-up: pages, thread pools, packed weights
            if seconds < block_seconds:
                started = clock()
                run()
                seconds = clock() - started
        calls[name] = max(1, math.ceil(block_seconds / seconds))
    samples: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            started = clock()
            for _ in range(calls[name]):
                run()
            samples[name].append((clock() - started) / calls[name] * 1e3)
    return samples


# Twice the largest L2 cache of the GPUs this is run on.
_FLUSHED_BYTES = 128 << 20


def time_on_device(
    runs: dict[str, Callable[[], object]], device: torch.device, rounds: int, warmup: int = 3
) -> dict[str, list[float]]:
    """Milliseconds of each call, one number a round, the contestants taking turns call by call.

    On a GPU the time between two events on its stream; the L2 cache is filled with something else before each call,
    and the calls of all rounds are queued without waiting, so that a call's launches hide behind the one before.

    Args:
        runs: contestants; each call must do the same work again.
        device: where they run; anything but CUDA is timed by the host's clock.
        rounds: calls timed of each contestant.
        warmup: calls of each before that, for compilation and the allocator.
    """
    for run in runs.values():
        for _ in range(warmup):
            run()
    samples: dict[str, list[float]] = {name: [] for name in runs}
    if device.type != "cuda":
        for _ in range(rounds):
            for name, run in runs.items():
                started = time.perf_counter()
                run()
                samples[name].append((time.perf_counter() - started) * 1e3)
        return samples
    flushed = torch.empty(_FLUSHED_BYTES, dtype=torch.uint8, device=device)
    for _ in range(rounds):
        events = {}
        for name, run in runs.items():
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            flushed.zero_()
            start.record()
            run()
            end.record()
            events[name] = (start, end)
        # A queue that is too long would make the host wait inside some later call.
        torch.cuda.synchronize(device)
        for name, (start, end) in events.items():
            samples[name].append(start.elapsed_time(end))
    return samples


def saved_bytes(forward: Callable[[], object], known: Iterable[Tensor]) -> int:
    """Bytes that a forward keeps for its backward beyond the storages of `known` (inputs and parameters)."""
    storages = {tensor.untyped_storage().data_ptr() for tensor in known}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in storages:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        # the result must live until the count is done, so that no storage is freed and its address used again
        result = forward()
    del result
    return sum(kept.values())


# The profiler's backend announces every start and stop on stderr below this level.
os.environ.setdefault("KINETO_LOG_LEVEL", "6")


def peak_bytes(run: Callable[[], object]) -> int:
    """Highest sum of live tensor memory during `run`, above what was allocated before it.

    The allocator's own records, so temporaries inside operators count; scratch memory of BLAS libraries does not.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    assert profiler.profiler is not None and profiler.profiler.kineto_results is not None
    recorded: list[Any] = profiler.profiler.kineto_results.events()
    events = [event for event in recorded if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak
