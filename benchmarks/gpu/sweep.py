"""Tries other launch parameters of the Triton kernels, one parameter at a time, and keeps the best.

It changes no files: write better parameters into the kernels' modules by hand.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks.gpu.bandwidth import Operation, operations
from benchmarks.gpu.plan import Plan, Row, medians
from benchmarks.measure import time_on_device

# Modules with a dictionary LAUNCH: kind of kernel -> launch parameters.
MODULES = ("monet.kernels.triton_mixing", "monet.kernels.routing.triton_op")
CANDIDATES = {"num_warps": (1, 2, 4, 8, 16), "num_stages": (1, 2, 3, 4)}
LEAST_BLOCK = 16


def rows(plan: Plan) -> Iterator[Row]:
    """Milliseconds of each setting, summed over the operations that run with it; then the best of each kernel."""
    all_operations = list(operations(plan))
    for name in MODULES:
        launch = getattr(importlib.import_module(name), "LAUNCH", None)
        for kernel, parameters in (launch or {}).items():
            mine = [operation for operation in all_operations if operation.kernel == kernel]
            if mine:
                yield from _descend(plan, kernel, parameters, mine)


def _descend(plan: Plan, kernel: str, parameters: dict[str, Any], mine: list[Operation]) -> Iterator[Row]:
    best, best_ms = dict(parameters), milliseconds(plan, mine)
    row: Row = {"kernel": kernel, **best, "ms": best_ms, "note": "as written"}
    yield row
    for name in parameters:
        for value in _candidates(name, parameters[name]):
            tried = {**best, name: value}
            if tried == best:
                continue
            with changed(parameters, tried):
                try:
                    ms = milliseconds(plan, mine)
                except Exception as error:  # too much shared memory, or no such tile
                    yield {"kernel": kernel, **tried, "ms": None, "note": f"{type(error).__name__}: {error}"[:120]}
                    continue
            yield {"kernel": kernel, **tried, "ms": ms, "note": ""}
            if ms < best_ms:
                best, best_ms = tried, ms
    yield {"kernel": kernel, **best, "ms": best_ms, "note": f"best, {row['ms'] / best_ms:.2f} times as fast"}


def milliseconds(plan: Plan, mine: list[Operation]) -> float:
    """Sum of the median times of some operations."""
    runs = {operation.name: operation.run for operation in mine}
    return sum(medians(time_on_device(runs, plan.device, max(2, plan.rounds // 2))).values())


def _candidates(name: str, value: int) -> tuple[int, ...]:
    if name in CANDIDATES:
        return CANDIDATES[name]
    least = LEAST_BLOCK if name == "block" else 1
    return tuple(size for size in (value // 2, value * 2, value * 4) if size >= least)


@contextmanager
def changed(parameters: dict[str, Any], values: dict[str, Any]) -> Iterator[None]:
    """Replaces values in a module's dictionary inside the block."""
    before = dict(parameters)
    parameters.update(values)
    try:
        yield
    finally:
        parameters.clear()
        parameters.update(before)
