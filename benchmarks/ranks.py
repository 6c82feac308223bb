"""Several processes of one command, with the environment that torchrun gives them, and no launcher in between."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

ROOT = Path(__file__).resolve().parents[1]


class Rank(Protocol):
    """A started process."""

    def wait(self, timeout: float | None = None) -> int: ...

    def kill(self) -> None: ...


Start = Callable[[Sequence[str], Mapping[str, str], Path, Path], Rank]


def interpreter(words: Sequence[str], environment: Mapping[str, str], out: Path, err: Path) -> Rank:
    """A new Python with this environment, its output and errors in files."""
    with open(out, "wb") as output, open(err, "wb") as errors:
        return subprocess.Popen([sys.executable, *words], cwd=ROOT, env=environment, stdout=output, stderr=errors)


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def run_ranks(
    words: Sequence[str],
    world_size: int,
    logs: Path,
    timeout_seconds: float,
    environment: Mapping[str, str] | None = None,
    start: Start = interpreter,
) -> list[subprocess.CompletedProcess[str]]:
    """Run a Python command as several ranks over gloo on this machine's CPU.

    Args:
        words: what follows `python`; relative paths are those of the checkout.
        world_size: number of processes.
        logs: existing folder for what they print.
        timeout_seconds: for all of them together; those left are killed then.
        environment: more variables.
        start: starts a process from words, environment, and files for its output and its errors.
    Returns:
        What each rank came to, in their order.
    Raises:
        subprocess.TimeoutExpired: one took longer.
    """
    common = os.environ | {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size), "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "ranks",
        "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", **(environment or {}),
    }  # fmt: skip
    started: list[Rank] = []
    try:
        for rank in range(world_size):
            own = common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            started.append(start(words, own, *(logs / f"rank-{rank}.{end}" for end in ("out", "err"))))
        codes = [process.wait(timeout_seconds) for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()
    return [
        subprocess.CompletedProcess(
            list(words), code, *((logs / f"rank-{rank}.{end}").read_text(errors="replace") for end in ("out", "err"))
        )
        for rank, code in enumerate(codes)
    ]
