"""The process that uses the device: runs sections one after the other and reports each row at once.

It is a separate process, because after an illegal access on the device every later call of the same process fails.
"""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from benchmarks.gpu.plan import Plan, Row


class Section(NamedTuple):
    """What it measures, in `module`:`function` of benchmarks.gpu, and the seconds it may take."""

    title: str
    rows: str
    seconds: float


# The most important sections come first; the seconds of all except the sweep add up to less than ten minutes.
SECTIONS = {
    "ceilings": Section("Device ceilings", "ceilings:rows", 20),
    "correctness": Section("Correctness, rms(error)/rms(reference) against float64", "correctness:rows", 50),
    "layers": Section("A layer (experts and router/4), milliseconds", "layers:rows", 90),
    "saved": Section("Saved for backward, KiB a token and layer", "layers:saved_rows", 20),
    "bandwidth": Section("Kernels against their least bytes", "bandwidth:rows", 40),
    "masked": Section("Masked forward of the experts", "layers:masked_rows", 40),
    "training": Section("Training step", "models:training_rows", 110),
    "decode": Section("Decoding, batch 1", "decode:rows", 60),
    "statistics": Section("Statistics pass", "models:statistics_rows", 45),
    "compiled": Section("Einsum formulation under torch.compile, milliseconds", "layers:compiled_rows", 50),
}
SWEEP = {"sweep": Section("Launch parameters, milliseconds", "sweep:rows", 550)}
Send = Callable[[dict[str, Any]], None]


def work(connection: Connection, names: Sequence[str], device: str, is_quick: bool) -> None:
    """Run sections and send events; end early if the device is lost."""
    import torch

    from benchmarks.gpu import plan as plans
    from monet.kernels.dispatch import interpreted

    if device == "cpu":
        torch.set_num_threads(1)
        if interpreted():
            os.environ.setdefault("MONET_KERNELS", "triton")
    chosen = torch.device(device, 0) if device == "cuda" else torch.device(device)
    plan = (plans.quick if is_quick else plans.full)(chosen)
    connection.send({"environment": environment(plan)})
    for name in names:
        run_section(name, plan, connection.send)
        if lost := device_error(plan.device):
            connection.send({"lost": lost})
            return


def run_section(name: str, plan: Plan, send: Send) -> None:
    """Send a section's start, its rows, and its end with the error, if any."""
    from benchmarks.gpu.plan import free

    send({"section": name, "start": True})
    started, error = time.perf_counter(), None
    try:
        for row in _rows(name, plan):
            send({"section": name, "row": row})
    except Exception as failure:
        error = f"{type(failure).__name__}: {failure}"
        traceback.print_exc()
    if not device_error(plan.device):
        free(plan.device)
    seconds = round(time.perf_counter() - started, 1)
    send({"section": name, "end": True, "error": error, "seconds": seconds, "clocks": clocks(plan)})


def _rows(name: str, plan: Plan) -> Iterator[Row]:
    import importlib

    module, function = {**SECTIONS, **SWEEP}[name].rows.split(":")
    return getattr(importlib.import_module(f"benchmarks.gpu.{module}"), function)(plan)


def device_error(device: Any) -> str | None:
    """The device's error if it no longer works; None if it works."""
    import torch

    if device.type != "cuda":
        return None
    try:
        torch.cuda.synchronize(device)
    except Exception as error:
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return None


def environment(plan: Plan) -> dict[str, Any]:
    """Machine, versions and settings, on which the numbers depend."""
    import torch
    import transformers

    found: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "device": platform.processor() or platform.machine(), "kernels": kernels_in_use(plan.device),
        "python": platform.python_version(), "torch": torch.__version__, "triton": triton_version(),
        "transformers": transformers.__version__, "dtype": str(plan.dtype).removeprefix("torch."),
        "clocks": clocks(plan),
    }  # fmt: skip
    if plan.device.type == "cuda":
        properties = torch.cuda.get_device_properties(plan.device)
        found |= {"device": properties.name, "multiprocessors": properties.multi_processor_count,
                  "memory_gib": round(properties.total_memory / 2**30, 1), "cuda": torch.version.cuda}  # fmt: skip
    return found


def kernels_in_use(device: Any) -> str:
    """Implementation that the ops use on the device."""
    from monet.kernels.dispatch import interpreted

    wanted = os.environ.get("MONET_KERNELS", "auto")
    if device.type != "cuda":
        is_interpreted = wanted == "triton" and interpreted()
        return "Triton, interpreted" if is_interpreted else "plain torch (TRITON_INTERPRET=1 interprets Triton)"
    return "plain torch" if wanted == "torch" or triton_version() is None else "Triton"


def triton_version() -> str | None:
    try:
        import triton
    except ImportError:
        return None
    return triton.__version__


def clocks(plan: Plan) -> str | None:
    """SM and memory clocks, temperature and power that the driver reports; None without a driver."""
    if plan.device.type != "cuda":
        return None
    query = "--query-gpu=clocks.sm,clocks.mem,temperature.gpu,power.draw"
    try:
        done = subprocess.run(
            ["nvidia-smi", query, "--format=csv,noheader"], capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip().splitlines()[0] if done.returncode == 0 and done.stdout.strip() else None
