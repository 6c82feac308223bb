"""Two processes of a test, connected over gloo."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_SECONDS = 600  # a loaded machine needs minutes where a quiet one needs seconds


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture
def ranks(tmp_path) -> Callable[..., list[subprocess.CompletedProcess[str]]]:
    """Runs a command as several ranks, with the environment torchrun gives them; returns what each came to."""

    def run(command: list[str], world_size: int = 2, **environment: str) -> list[subprocess.CompletedProcess[str]]:
        common = os.environ | {
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(world_size),
            "LOCAL_WORLD_SIZE": str(world_size), "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "test",
            "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", **environment,
        }  # fmt: skip
        started, logs = [], []
        for rank in range(world_size):
            logs.append((tmp_path / f"rank-{rank}.out", tmp_path / f"rank-{rank}.err"))
            with open(logs[-1][0], "w") as out, open(logs[-1][1], "w") as err:
                own = common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                started.append(subprocess.Popen([sys.executable, *command], cwd=ROOT, env=own, stdout=out, stderr=err))
        try:
            codes = [process.wait(TIMEOUT_SECONDS) for process in started]
        finally:
            for process in started:
                process.kill()
                process.wait()
        return [
            subprocess.CompletedProcess(command, code, out.read_text(), err.read_text())
            for code, (out, err) in zip(codes, logs, strict=True)
        ]

    return run
