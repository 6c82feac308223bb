"""Kill a training run with signal 9 many times, and compare its final state with that of an uninterrupted run.

    python -m tools.proofs.kill_series --seeds 20

Each seed is a separate run with other weights, data order and kills. Half of the kills come at a random moment of a
random step, half between two changes of files inside a random save or deletion. The command prints one line for each
seed. It ends with 1 if any file of the last checkpoint or any logged number differs.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from tools.proofs import forked_runs

KILLS = 4
TIMES = {"tokens_per_second", "mfu", "step_seconds", "data_wait_share", "memory_bytes"}


def write_settings(folder: Path, data: Path, seed: int, background: bool) -> Path:
    """The configuration of one seed's runs."""
    settings = copy.deepcopy(forked_runs.SETTINGS)
    settings |= {"seed_everything": seed, "checkpoint_every": 3, "checkpoint_async": background}
    settings["data"] |= {"data_dir": str(data), "seed": seed}
    settings["trainer"] |= {"max_steps": 20}
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path


def kill_at_step(config: Path, run_dir: Path, step: int, delay_seconds: float) -> bool:
    """Start the run and kill it a moment after it has logged `step`; False if it ended before."""
    pid = forked_runs.start(forked_runs.train(config, run_dir), run_dir.with_suffix(".log"))
    while True:
        done, _ = os.waitpid(pid, os.WNOHANG)
        if done:
            return False
        try:
            lines = (run_dir / "metrics.jsonl").read_bytes().count(b"\n")
        except FileNotFoundError:
            lines = 0
        if lines >= step:
            time.sleep(delay_seconds)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return True
        time.sleep(0.001)


def kill_in_save(config: Path, run_dir: Path, change: int) -> bool:
    """Start the run and kill it before its n-th change below checkpoints/; False if it made fewer."""
    before = forked_runs.die_at_change(run_dir / "checkpoints", change)
    work = forked_runs.train(config, run_dir, before=before)
    return forked_runs.wait(forked_runs.start(work, run_dir.with_suffix(".log"))) == -signal.SIGKILL


def changes_of_a_run(config: Path, run_dir: Path) -> int:
    """Let a run finish; returns the number of changes it made below checkpoints/."""
    counted = run_dir.with_suffix(".count")

    def count() -> None:
        forked_runs.on_change(run_dir / "checkpoints", lambda n: _write(counted, str(n)))

    pid = forked_runs.start(forked_runs.train(config, run_dir, before=count), run_dir.with_suffix(".log"))
    if (code := forked_runs.wait(pid)) != 0:
        raise RuntimeError(f"{run_dir}: the run ended with {code}, see {run_dir.with_suffix('.log')}")
    return int(counted.read_text())


def _write(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.write(descriptor, text.encode())
    os.close(descriptor)


def differences(first: Path, second: Path) -> list[str]:
    """Differences between two finished runs: files of the newest checkpoint by bytes, lines of the logs by value."""
    found = []
    newest = [max((run / "checkpoints").glob("step-????????")) for run in (first, second)]
    names = sorted({path.name for folder in newest for path in folder.iterdir()})
    if newest[0].name != newest[1].name:
        found.append(f"{newest[0].name} and {newest[1].name}")
    for name in names:
        contents = [(folder / name).read_bytes() if (folder / name).is_file() else None for folder in newest]
        if contents[0] != contents[1]:
            found.append(f"{newest[0].name}/{name}")
    for name in ("metrics.jsonl", "validation.jsonl"):
        if _log(first / name) != _log(second / name):
            found.append(name)
    return found


def _log(path: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


def one_seed(folder: Path, data: Path, seed: int, say: Callable[[str], None], background: bool) -> bool:
    """Run, kill and compare; returns whether the runs are equal."""
    begin, chooser = time.monotonic(), random.Random(seed)
    folder.mkdir(parents=True)
    config, whole, run_dir = write_settings(folder, data, seed, background), folder / "whole", folder / "run"
    changes = changes_of_a_run(config, whole)
    kills: list[str] = []
    while len(kills) < KILLS:
        reached = max((int(path.name[5:]) for path in (run_dir / "checkpoints").glob("step-????????")), default=0)
        if len(kills) % 2:
            change = chooser.randint(1, max(2, changes * (20 - reached) // 20))
            if kill_in_save(config, run_dir, change):
                kills.append(f"change {change}")
        elif kill_at_step(config, run_dir, step := chooser.randint(reached + 1, 19), chooser.uniform(0, 0.08)):
            kills.append(f"step {step}")
        if (run_dir / "checkpoints" / "step-00000020").exists():
            break  # finished before the kill came
    pid = forked_runs.start(forked_runs.train(config, run_dir), run_dir.with_suffix(".log"))
    code = forked_runs.wait(pid)
    found = differences(whole, run_dir) if code == 0 else [f"exit code {code}"]
    if left := [path.name for path in (run_dir / "checkpoints").glob(".*")]:
        found.append(f"leftovers {', '.join(left)}")
    say(
        f"| {seed} | {len(kills)} | {', '.join(kills)} | {len(found)} | {', '.join(found) or '-'} |"
        f" {time.monotonic() - begin:.0f} |"
    )
    return not found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20, help="number of runs, each with different kills")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--background", action="store_true", help="checkpoints written by a thread (checkpoint_async)")
    parser.add_argument(
        "--out", type=Path, help="folder to keep the runs in; default: a temporary folder that is removed"
    )
    options = parser.parse_args(arguments)

    import torch

    import monet.training.cli  # noqa: F401  imported once, for all children

    torch.set_num_threads(1)  # a pool of threads does not survive a fork
    with tempfile.TemporaryDirectory() as temporary:
        root = options.out or Path(temporary)
        root.mkdir(parents=True, exist_ok=True)
        data = forked_runs.prepare_text(root)
        print("| seed | kills | where | differences | what | seconds |\n| ---: | ---: | --- | ---: | --- | ---: |")
        seeds = range(options.first, options.first + options.seeds)
        same = [
            one_seed(root / f"seed-{seed}", data, seed, lambda line: print(line, flush=True), options.background)
            for seed in seeds
        ]
    print(f"\n{len(same) - sum(same)} of {len(same)} seeds differ")
    return 0 if all(same) else 1


if __name__ == "__main__":
    sys.exit(main())
