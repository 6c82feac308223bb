"""Breaks down the time of a training step, and gives the share outside forward, backward and the optimiser's update.

    python -m benchmarks.trainer_overhead --config configs/demo.yaml --steps 60

It runs train.py's command in a separate run folder, with Lightning's profiler hooks around every part. The first steps,
validations and saves are left out. Clipping is listed separately: the guard checks its norm.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from lightning.pytorch.profilers import Profiler

GOAL = 0.05
# A part of the trainer's action names, and its name here; the first match counts.
PARTS = (
    ("train_dataloader_next", "waiting for data"),
    ("batch_to_device", "batch to the device"),
    (".training_step", "forward"),
    (".backward", "backward"),
    ("configure_gradient_clipping", "gradient norm, check, clipping"),
    ("optimizer_step", "optimiser"),
    ("zero_grad", "optimiser"),
    ("MetricsLog", "metrics"),
    ("RandomState", "random states"),
    ("StepCheckpoint", "checkpoints"),
)
WORK = ("forward", "backward", "optimiser")
REST = "the trainer's loop and other hooks"


class StepProfiler(Profiler):
    """Seconds of each part, without those of the parts inside it, between the steps `first` and `last`.

    `closes` is the action that ends a step.
    """

    closes = "run_training_batch"

    def __init__(self, first: int, last: int) -> None:
        super().__init__()
        self.first, self.last = first, last
        self.seconds: dict[str, float] = defaultdict(float)
        self.steps = 0
        self.begin = self.end = 0.0
        self._open: list[list[Any]] = []  # name, begin, seconds inside

    def start(self, action_name: str) -> None:
        self._open.append([action_name, time.perf_counter(), 0.0])

    def stop(self, action_name: str) -> None:
        now = time.perf_counter()
        name, begin, inside = self._open.pop()
        assert name == action_name, f"{action_name} ends inside {name}"
        if self._open:
            self._open[-1][2] += now - begin
        if action_name == self.closes:
            self.steps += 1
            if self.steps == self.first:
                self.seconds.clear()
                self.begin = now
            elif self.steps == self.last:
                self.end = now
                self.counted = dict(self.seconds)
        part = next((called for words, called in PARTS if words in action_name), REST)
        self.seconds[part] += now - begin - inside


def shares(seconds: dict[str, float], wall: float) -> dict[str, float]:
    """Share of the wall time of each part; time outside all parts belongs to the trainer's loop."""
    covered = {part: seconds.get(part, 0.0) / wall for part in dict.fromkeys([*(p for _, p in PARTS), REST])}
    covered[REST] += 1 - sum(covered.values())
    return covered


def measure(config: str, steps: int, words: list[str]) -> dict[str, Any]:
    """Train `steps` optimiser steps; returns milliseconds for each step and the shares of its parts."""
    import lightning.pytorch as pl

    from monet.training import cli

    skipped = max(5, steps // 10)
    profiler = StepProfiler(skipped, steps)
    make = cli.MonetCLI.instantiate_trainer

    def profiled(self: cli.MonetCLI, **kwargs: Any) -> pl.Trainer:
        trainer = make(self, **kwargs)
        trainer.profiler = profiler  # type: ignore[assignment]
        return trainer

    cli.MonetCLI.instantiate_trainer = profiled  # type: ignore[method-assign]
    try:
        with tempfile.TemporaryDirectory() as folder:
            fixed = ["--trainer.accumulate_grad_batches=1", f"--trainer.val_check_interval={steps + 1}",
                     f"--checkpoint_every={steps + 1}", f"--trainer.max_steps={steps + 1}"]  # fmt: skip
            sys.argv = ["train.py"]
            code = cli.main(["fit", "--config", config, "--run_dir", f"{folder}/run", *fixed, *words])
            if code != 0:
                raise SystemExit(code)
    finally:
        cli.MonetCLI.instantiate_trainer = make  # type: ignore[method-assign]
    wall, counted = profiler.end - profiler.begin, profiler.last - profiler.first
    parts = shares(profiler.counted, wall)
    return {
        "config": config, "steps": counted, "milliseconds_per_step": wall / counted * 1e3, "shares": parts,
        "overhead": 1 - sum(parts[name] for name in WORK),
    }  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/demo.yaml", help="configuration for train.py")
    parser.add_argument("--steps", type=int, default=60, help="optimiser steps to measure; the first tenth is left out")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options, words = parser.parse_known_args(arguments)
    result = measure(options.config, options.steps, words)
    print(f"\n{options.config}: {result['milliseconds_per_step']:.1f} ms a step, {result['steps']} steps\n")
    print("| part | ms | share |\n| --- | ---: | ---: |")
    for part, share in result["shares"].items():
        print(f"| {part} | {share * result['milliseconds_per_step']:.2f} | {share:.2%} |")
    verdict = "within" if result["overhead"] <= GOAL else "above"
    print(f"\nnot forward, backward or optimiser: {result['overhead']:.2%}, {verdict} the goal of {GOAL:.0%}")
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
