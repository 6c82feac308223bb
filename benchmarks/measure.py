"""Timing that is reliable on a shared machine, and exact counts of memory."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
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
    """Milliseconds for each call, with one number for each round; the runs take turns block by block.

    Speed drifts on a shared machine, so only runs of the same round are comparable.

    Args:
        runs: calls by name; put runs that you compare next to each other.
        rounds: turns of each run.
        block_seconds: shortest duration of a turn; short calls are repeated to fill it.
        clock: returns seconds; `time.process_time` counts only the work of this process, on all threads.
    """
    calls = {}
    for name, run in runs.items():
        seconds = 0.0
        for _ in range(2):  # the first call is a warm-up for pages, thread pools and packed weights
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


# Twice the largest L2 cache of the GPUs that run this code.
_FLUSHED_BYTES = 128 << 20


def time_on_device(
    runs: dict[str, Callable[[], object]], device: torch.device, rounds: int, warmup: int = 3
) -> dict[str, list[float]]:
    """Milliseconds of each call, with one number for each round; the runs take turns call by call.

    On a GPU this is the time between two events on its stream. Before each call the L2 cache is filled with other
    data. The calls of all rounds are queued without waiting, so that launches overlap with the previous call.

    Args:
        runs: calls by name; each call must do the same work again.
        device: device that runs the calls; all devices except CUDA are timed by the host's clock.
        rounds: timed calls of each run.
        warmup: calls of each run before that, for compilation and the allocator.
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
        # If the queue is too long, the host waits inside a later call.
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
        # keep the result until the count is done, so that no storage is freed and its address used again
        result = forward()
    del result
    return sum(kept.values())


# The profiler's backend announces every start and stop on stderr below this level.
os.environ.setdefault("KINETO_LOG_LEVEL", "6")


def peak_bytes(run: Callable[[], object]) -> int:
    """Highest sum of live tensor memory during `run`, minus the memory allocated before it.

    The numbers are the allocator's, so they include temporaries inside operators, but not memory of BLAS libraries.
    Memory from before `run` does not count if it is freed during `run`: the garbage collector can run at any time.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    assert profiler.profiler is not None and profiler.profiler.kineto_results is not None
    events = list(_below(profiler.profiler.kineto_results.experimental_event_tree()))
    sizes: dict[int, int] = {}
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_time_ns):
        if event.name == "[memory]":
            block = event.extra_fields
            live -= sizes.pop(block.ptr, 0)
            if block.alloc_size > 0:
                sizes[block.ptr] = block.alloc_size
                live += block.alloc_size
            peak = max(peak, live)
    return peak


def _below(events: list[Any]) -> Iterator[Any]:
    for event in events:
        yield event
        yield from _below(event.children)
