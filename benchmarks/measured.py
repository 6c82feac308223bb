"""Measures costs at growing sizes, each in a separate process, and prints a table with exponents.

Processor seconds come from getrusage; memory is the growth of the peak of resident memory. The exponent is computed
from the last two sizes: 1 means that the cost doubles when the size doubles.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.tables import markdown
from monet.files import atomic_write_json


class Cost(NamedTuple):
    """A cost to measure.

    Attributes:
        work: does the work at one size. It returns its cost or a count; None takes the cost of the whole call.
        sizes: sizes to measure.
        what: description for the table.
    """

    work: Callable[[int], dict[str, float] | None]
    sizes: Sequence[int]
    what: str


def now() -> tuple[float, int]:
    """Processor seconds, and the peak of resident memory in KiB, of this process so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    # not getrusage, whose peak includes that of the parent
    peak = Path("/proc/self/status").read_text(encoding="utf-8").partition("VmHWM:")[2].split()[0]
    return used.ru_utime + used.ru_stime, int(peak)


def spent(before: tuple[float, int]) -> dict[str, float]:
    """Seconds and GiB since `now` returned `before`."""
    seconds, peak = now()
    return {"seconds": seconds - before[0], "gib": (peak - before[1]) / 2**20}


def measure(module: str, name: str, size: int) -> dict[str, float]:
    """One figure, measured in a separate process: seconds and GiB, or a count."""
    command = [sys.executable, "-m", module, "--one", name, str(size)]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(found.stdout.splitlines()[-1])


def exponent(sizes: Sequence[int], costs: Sequence[float]) -> float:
    """Exponent of the last two sizes; 0 if the cost is too small to measure."""
    if len(sizes) < 2 or min(costs[-2:]) <= 0:
        return 0.0
    return math.log(costs[-1] / costs[-2]) / math.log(sizes[-1] / sizes[-2])


def measured_main(module: str, about: str, measured: Mapping[str, Cost], words: Sequence[str] | None = None) -> None:
    """Run the command of a module that measures: print a table, and write the figures as JSON on request.

    Args:
        module: module whose `main` calls this.
        about: help of the command.
        measured: costs by name.
        words: arguments of the command line; None takes those of the process.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[[], *measured], default=[], help="costs to measure; default: all")
    parser.add_argument("--sizes", nargs="+", type=int, help="sizes instead of the usual ones")
    parser.add_argument("--out", type=Path, help="file for the figures as JSON")
    parser.add_argument("--one", nargs=2, metavar=("NAME", "SIZE"), help=argparse.SUPPRESS)
    options = parser.parse_args(words)
    if options.one:
        import torch

        torch.set_num_threads(1)
        before = now()
        found = measured[options.one[0]].work(int(options.one[1]))
        print(json.dumps(spent(before) if found is None else found))
        return
    rows: list[dict[str, Any]] = []
    figures: dict[str, dict[str, dict[str, float]]] = {}
    for name in options.names or measured:
        sizes, what = options.sizes or measured[name].sizes, measured[name].what
        taken = [measure(module, name, size) for size in sizes]
        figures[name] = dict(zip(map(str, sizes), taken, strict=True))
        costs = [one.get("count", one.get("seconds", 0.0)) for one in taken]
        shown = [
            str(one["count"]) if "count" in one else f"{one['seconds']:.2f} s, {one['gib']:.2f} GiB" for one in taken
        ]
        row: dict[str, Any] = {"what": what, "sizes": ", ".join(map(str, sizes)), "cost": "; ".join(shown)}
        row["exponent"] = exponent(sizes, costs)
        row["of memory"] = exponent(sizes, [one.get("gib", 0.0) for one in taken])
        rows.append(row)
        print(f"{what}: {row['cost']} (exponent {row['exponent']:.1f})", file=sys.stderr, flush=True)
    print(markdown(rows, {"what": "", "sizes": "", "cost": "", "exponent": ".1f", "of memory": ".1f"}))
    if options.out is not None:
        atomic_write_json(options.out, figures)
