"""The GPU suite: correctness, speed and memory of Monet's layers and models on one GPU, in under ten minutes.

    python benchmarks/gpu_suite.py [--json FILE] [--quick] [--device cpu] [--sections NAME ...] [--sweep]

Results are written to benchmarks/results/<device>-<date>.json as soon as they are known. The command prints a table for
each section, and the targets last. If a section fails, hangs or kills its process, only that section is lost: its
error is reported, and the exit code is 1. `--device cpu --quick` runs every section at toy sizes without a GPU. With
TRITON_INTERPRET=1 the kernels are interpreted, otherwise the ops run in plain torch. Such figures mean nothing.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import re
import sys
import time
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: imports are found next to its folder, not in it
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.gpu.plan import TARGETS
from benchmarks.gpu.worker import SECTIONS, SWEEP, work
from benchmarks.tables import markdown
from monet.errors import ConfigError
from monet.files import atomic_write_json

RESULTS = Path(__file__).resolve().parent / "results"
TOTAL_SECONDS = 575.0
# Toy sizes run in slow places, such as an interpreter or a shared processor, and get more time.
TOY_PATIENCE = 5.0
# Time for a new process to import and to reach the device.
START_SECONDS = 90.0


class Suite:
    """Results so far, and the file that they are written to."""

    def __init__(self, names: list[str], path: Path | None, is_quick: bool) -> None:
        self.path, self.is_quick = path, is_quick
        self.environment: dict[str, Any] = {}
        self.sections: dict[str, dict[str, Any]] = {name: {"rows": [], "error": "not run"} for name in names}
        self.current: str | None = None
        self.started = time.monotonic()

    def take(self, event: dict[str, Any]) -> None:
        """Note one event of the worker."""
        if "environment" in event:
            self.environment = self.environment or event["environment"]
            return
        if "lost" in event:
            print(f"the device is lost: {event['lost']}", file=sys.stderr, flush=True)
            return
        section = self.sections[event["section"]]
        if "start" in event:
            self.current, section["error"] = event["section"], "did not end"
        elif "row" in event:
            section["rows"].append(_finite(event["row"]))
            clock = f"{time.monotonic() - self.started:6.1f} s"
            print(f"[{clock}] {event['section']}: {_line(event['row'])}", file=sys.stderr, flush=True)
        else:
            section |= {key: event[key] for key in ("error", "seconds", "clocks")}
            self.current = None
            self.write()

    def fail(self, why: str) -> None:
        """The worker has died: assign the error to its current section."""
        if self.current is not None:
            self.sections[self.current]["error"] = why
            self.current = None
        self.write()

    def remaining(self) -> list[str]:
        return [name for name, section in self.sections.items() if section["error"] == "not run"]

    def targets(self) -> list[dict[str, Any]]:
        """Every target's row; the value is None if nothing was measured, and the verdict is None at toy sizes too."""
        values: dict[str, Any] = {}
        for section in self.sections.values():
            for row in section["rows"]:
                values |= row.get("targets", {})
        rows = []
        for name, (what, must, at_least) in TARGETS.items():
            value = values.get(name)
            meets = None
            if value is not None and not self.is_quick:
                meets = bool(value >= must if at_least else value <= must)
            rows.append({"id": name, "what": what, "value": value, "must": must,
                         "bound": "at least" if at_least else "at most", "meets_must": meets})  # fmt: skip
        return rows

    def write(self) -> None:
        """Write all results atomically."""
        if self.path is None:
            if self.is_quick:
                return
            device = re.sub(r"[^\w.-]+", "-", self.environment.get("device", "unknown"))
            date = re.sub(r"[^\dT]", "", self.environment.get("date", ""))[:15]
            self.path = RESULTS / f"{device}-{date}.json"
        content = {"environment": self.environment, "toy_sizes": self.is_quick, "rows": self.targets()}
        content["sections"] = self.sections
        atomic_write_json(self.path, content)


def _finite(value: Any) -> Any:
    """The same data, with None for values that JSON cannot represent."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _line(row: dict[str, Any]) -> str:
    cells = [
        f"{name}={format(value, '.4g') if isinstance(value, float) else value}"
        for name, value in row.items()
        if not isinstance(value, dict)
    ]
    return " ".join(cells)


def run(suite: Suite, device: str) -> None:
    """Run all sections; a new process starts after each one that dies."""
    patience = TOY_PATIENCE if suite.is_quick else 1.0
    seconds = {name: patience * section.seconds for name, section in {**SECTIONS, **SWEEP}.items()}
    start_seconds, end = patience * START_SECONDS, time.monotonic() + patience * TOTAL_SECONDS
    # A worker that dies before its first section would die again.
    attempts_without_section = 0
    while (names := suite.remaining()) and time.monotonic() < end and attempts_without_section < 2:
        attempts_without_section += 1
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=work, args=(theirs, names, device, suite.is_quick), daemon=False)
        process.start()
        theirs.close()
        limit = time.monotonic() + start_seconds
        why = "the process ended"
        while True:
            if not ours.poll(max(0.0, min(limit, end) - time.monotonic())):
                why = f"stopped after its {seconds.get(suite.current or '', start_seconds):.0f} s"
                why = "stopped, the suite's time is up" if limit > end else why
                break
            try:
                event = ours.recv()
            except EOFError:
                break
            suite.take(event)
            if "start" in event:
                attempts_without_section = 0
                limit = time.monotonic() + seconds[event["section"]]
        process.kill() if why.startswith("stopped") else process.join(start_seconds)
        process.join()
        suite.fail(f"{why} (exit code {process.exitcode})")
        ours.close()


def show(suite: Suite) -> None:
    """Print tables of the sections, then the targets."""
    print("; ".join(f"{name} {value}" for name, value in suite.environment.items()))
    for name, section in suite.sections.items():
        print(f"\n## {({**SECTIONS, **SWEEP})[name].title}\n")
        columns: dict[str, str] = {}
        shown = [row for row in section["rows"] if len(row.keys() - {"targets"}) > 1]
        for row in shown:
            columns |= {key: ".4g" for key, value in row.items() if not isinstance(value, dict)}
        if shown:
            print(markdown(shown, columns))
        if section["error"]:
            print(f"\n{name}: {section['error']}")
    print("\n## Targets\n")
    columns = {"id": "", "what": "", "value": ".3f", "bound": "", "must": "", "meets_must": ""}
    print(markdown(suite.targets(), columns))
    failed = [name for name, section in suite.sections.items() if section["error"]]
    print(
        f"\nwritten to {suite.path}" if suite.path else "", "failed: " + ", ".join(failed) if failed else "no failure"
    )


def main(argv: list[str] | None = None) -> int:
    """Run the suite and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--json", type=Path, help="file for the results; default: in results/ next to this file; none with --quick"
    )
    parser.add_argument("--quick", action="store_true", help="use toy sizes, to check that the suite runs")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu needs --quick")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="only these")
    parser.add_argument("--sweep", action="store_true", help="try other launch parameters instead of measuring")
    options = parser.parse_args(argv)
    try:
        _refuse(options)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    names = list(SWEEP) if options.sweep else [name for name in SECTIONS if name in options.sections]
    suite = Suite(names, options.json, options.quick)
    run(suite, options.device)
    show(suite)
    return 1 if any(section["error"] for section in suite.sections.values()) else 0


def _refuse(options: argparse.Namespace) -> None:
    if options.device == "cpu":
        if not options.quick:
            raise ConfigError("--device cpu would take hours at the released sizes; add --quick")
        return
    import torch

    if not torch.cuda.is_available():
        raise ConfigError("torch sees no CUDA device; --device cpu --quick shows that the suite runs")


if __name__ == "__main__":
    sys.exit(main())
