"""`python -m tools.proofs.zero_losses`: compares losses of two processes under each strategy with those of one process.

Every run is a real train.py with the same configuration and global batch; processes communicate by gloo on the CPU.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from benchmarks.processes import ROOT, run_ranks
from benchmarks.tables import markdown

STRATEGIES: dict[str, Any] = {
    "DDP": "ddp",
    "FSDP2": "fsdp2",
    "ZeRO 1": "zero1",
    "ZeRO 2": "zero2",
    # by default stage 3 does not partition small parameters
    "ZeRO 3": {
        "class_path": "monet.training.strategies.Zero",
        "init_args": {"stage": 3, "config": {"zero_optimization": {"stage3_param_persistence_threshold": 0}}},
    },
}
COLUMNS = {
    "strategy": "", "processes": "", "first loss": ".6f", "last loss": ".6f", "largest difference of a loss": ".1e",
    "largest relative difference of a gradient norm": ".1e", "seconds": ".0f",
}  # fmt: skip
TIMEOUT_SECONDS = 1800


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "smoke.yaml", help="of the runs")
    parser.add_argument("--steps", type=int, default=20, help="optimiser steps of each run")
    parser.add_argument("--accumulate", type=int, default=2, help="batches of an optimiser step")
    parser.add_argument("--only", nargs="*", choices=list(STRATEGIES), default=list(STRATEGIES))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = compare(arguments.config, arguments.steps, arguments.accumulate, arguments.only, Path(folder))
    print(markdown(rows, COLUMNS))
    return 0


def compare(config: Path, steps: int, accumulate: int, names: list[str], folder: Path) -> list[dict[str, Any]]:
    """One row for one process, then one for each strategy."""
    content = yaml.safe_load(config.read_text(encoding="utf-8"))
    content["trainer"] |= {"max_steps": steps, "accumulate_grad_batches": accumulate, "accelerator": "cpu"}
    wanted, seconds = run(content, 1, "auto", folder / "one")
    rows = [{"strategy": "one process", "processes": 1, **ends(wanted), "seconds": seconds}]
    for name in names:
        got, seconds = run(content, 2, STRATEGIES[name], folder / name.replace(" ", "").lower())
        pairs = list(zip(got, wanted, strict=True))
        rows.append({
            "strategy": name, "processes": 2, **ends(got), "seconds": seconds,
            "largest difference of a loss": max(abs(ours["loss"] - theirs["loss"]) for ours, theirs in pairs),
            "largest relative difference of a gradient norm": max(
                abs(ours["grad_norm"] / theirs["grad_norm"] - 1) for ours, theirs in pairs
            ),
        })  # fmt: skip
    return rows


def run(content: dict[str, Any], processes: int, strategy: Any, run_dir: Path) -> tuple[list[dict[str, Any]], float]:
    """The lines of metrics.jsonl of a run whose processes share the batch, and its duration."""
    run_dir.mkdir()
    batch_size, rest = divmod(content["data"]["batch_size"], processes)
    if rest:
        sys.exit(f"data.batch_size = {content['data']['batch_size']} cannot be shared by {processes} processes")
    own = {**content, "data": content["data"] | {"batch_size": batch_size}}
    own["trainer"] = content["trainer"] | {"devices": processes, "strategy": strategy}
    path = run_dir / "start.yaml"
    path.write_text(yaml.safe_dump(own), encoding="utf-8")
    words = ["train.py", "fit", "--config", str(path), "--run_dir", str(run_dir)]
    start = time.monotonic()
    if processes == 1:
        done = [subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False)]
    else:
        done = run_ranks(words, processes, run_dir, TIMEOUT_SECONDS)
    for rank, process in enumerate(done):
        if process.returncode:
            sys.exit(f"rank {rank} of {run_dir.name} ended with {process.returncode}:\n{process.stderr}")
    lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines], time.monotonic() - start


def ends(metrics: list[dict[str, Any]]) -> dict[str, float]:
    return {"first loss": metrics[0]["loss"], "last loss": metrics[-1]["loss"]}


if __name__ == "__main__":
    sys.exit(main())
