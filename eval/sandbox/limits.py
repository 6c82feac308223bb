"""What a program may use, and what came of running one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from monet.errors import ConfigError

MEBIBYTE = 1 << 20
# Address space beside the memory limit: a JVM and V8 reserve some gigabytes that they never touch.
_RESERVED = 3 << 30

Status = Literal["ok", "failed", "compile error", "timeout", "memory", "output", "sandbox error"]


@dataclass(frozen=True)
class Limits:
    """Bounds of one run, compiling included.

    Args:
        cpu_seconds: of each process; an endless loop ends here.
        wall_seconds: of everything together; a sleeper ends here.
        memory_mb: MiB of private memory a process, and of resident memory of all processes together.
        processes: processes and threads at a time.
        file_mb: MiB of one file.
        disk_mb: MiB of all files, where the sandbox has a file system of its own.
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
        """Soft and hard resource limits of a process by the name that prlimit(1) gives them."""
        memory = self.memory_mb * MEBIBYTE
        fixed = {"core": 0, "memlock": 0, "msgqueue": 0, "nofile": 256, "nproc": self.processes}
        sizes = {"data": memory, "as": memory + _RESERVED, "fsize": self.file_mb * MEBIBYTE}
        return {
            # the soft limit's signal can be caught, the hard one's cannot
            "cpu": (self.cpu_seconds, self.cpu_seconds + 1),
            **{name: (value, value) for name, value in {**fixed, **sizes}.items()},
        }


@dataclass(frozen=True)
class Outcome:
    """What came of a run.

    Args:
        status: ok is exit code 0. "sandbox error" says nothing about the program: it could not be started, or the
            machine itself ran short of memory.
        exit_code: of the program's last step; None if it was stopped.
        output: the end of what it printed.
        seconds: wall clock.
    """

    status: Status
    exit_code: int | None
    output: str
    seconds: float
