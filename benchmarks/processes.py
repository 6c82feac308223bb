"""Runs several processes of one command with torchrun's environment, without a launcher."""

from __future__ import annotations

import multiprocessing
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from monet.training.ranks.coordination import ProcessRanks

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
    """A port of this machine that is not in use."""
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
        words: arguments of `python`; relative paths start at the checkout.
        world_size: number of processes.
        logs: existing folder for their output.
        timeout_seconds: limit for all processes together; the remaining ones are killed then.
        environment: more variables.
        start: starts a process from words, environment, and files for its output and its errors.
    Returns:
        The result of each rank, in their order.
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


def forked_ranks(work: Callable[[ProcessRanks, int], Any], world_size: int, seconds: float = 60.0) -> list[Any]:
    """Run a function on each of several processes that share a store and have no other connection.

    Args:
        work: gets the ranks, and the number of file descriptors that the process had before it made them.
        world_size: number of processes, forked off this one.
        seconds: timeout of the ranks.
    Returns:
        For each rank the value that `work` returned, the text of the RankError it raised, or None if the process died.
    """
    import monet.training.ranks.coordination  # noqa: F401  before the fork, so that no child spends seconds on it

    fork, port = multiprocessing.get_context("fork"), free_port()
    pipes = [fork.Pipe(duplex=False) for _ in range(world_size)]
    started = [
        fork.Process(target=_rank, args=(work, rank, world_size, port, seconds, write))
        for rank, (_, write) in enumerate(pipes)
    ]
    for process in started:
        process.start()
    for _, write in pipes:
        write.close()
    for process in started:
        process.join(60 + seconds)
        process.kill()
    return [_received(read) for read, _ in pipes]


def _rank(work: Callable[..., Any], rank: int, world_size: int, port: int, seconds: float, pipe: Connection) -> None:
    import torch.distributed as dist
    from torch._C._distributed_c10d import TCPStore

    # registers a backend that moves no data
    from torch.testing._internal.distributed.fake_pg import FakeStore  # noqa: F401

    from monet.training.ranks.coordination import ProcessRanks, RankError

    store = TCPStore("127.0.0.1", port, world_size, is_master=rank == 0, timeout=timedelta(seconds=60))
    dist.init_process_group("fake", store=store, rank=rank, world_size=world_size)
    before = len(os.listdir("/proc/self/fd"))
    try:
        pipe.send(work(ProcessRanks(timedelta(seconds=seconds)), before))
    except RankError as error:
        pipe.send(str(error))
    if rank == 0:  # the store ends with it
        time.sleep(0.5)
    os._exit(0)


def _received(pipe: Connection) -> Any:
    try:
        return pipe.recv()
    except EOFError:
        return None
