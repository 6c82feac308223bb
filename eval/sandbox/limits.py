"""Limits on a program, and the outcome of running one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from monet.errors import ConfigError

MEBIBYTE = 1 << 20
# Address space in addition to the memory limit: a JVM and V8 reserve several gigabytes that they never use.
_RESERVED = 3 << 30

Status = Literal["ok", "failed", "compile error", "timeout", "memory", "output", "sandbox error"]


@dataclass(frozen=True)
class Limits:
    """Limits of one run, compilation included.

    Args:
        cpu_seconds: processor time of each process; it stops endless loops.
        wall_seconds: wall-clock time of the whole run; it stops sleeping programs.
        memory_mb: MiB of private memory per process, and of resident memory of all processes together.
        processes: number of processes and threads at the same time.
        file_mb: MiB of one file.
        disk_mb: MiB of all files in the sandbox's own file system.
        output_kb: KiB of standard output and error together; more ends the run.
    """

    cpu_seconds: int = 15
    wall_seconds: float = 60.0
    memory_mb: int = 1024
    processes: int = 128
    file_mb: int = 64
    disk_mb: int = 256
    output_kb: int = 256

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ConfigError(f"limit {name} must be above 0, got {value}")

    @property
    def rlimits(self) -> dict[str, tuple[int, int]]:
        """Soft and hard resource limits of a process, by their names in prlimit(1)."""
        memory = self.memory_mb * MEBIBYTE
        fixed = {"core": 0, "memlock": 0, "msgqueue": 0, "nofile": 256, "nproc": self.processes}
        sizes = {"data": memory, "as": memory + _RESERVED, "fsize": self.file_mb * MEBIBYTE}
        return {
            # A program can catch the signal of the soft limit, but not that of the hard limit.
            "cpu": (self.cpu_seconds, self.cpu_seconds + 1),
            **{name: (value, value) for name, value in {**fixed, **sizes}.items()},
        }


@dataclass(frozen=True)
class Outcome:
    """The outcome of a run.

    Args:
        status: ok is exit code 0. "sandbox error" does not judge the program: it could not start, or the machine itself
            ran short of memory.
        exit_code: exit code of the last step; None if the program was stopped.
        output: the end of the printed output.
        seconds: wall-clock time.
    """

    status: Status
    exit_code: int | None
    output: str
    seconds: float
