"""Processes and memory of this machine, read from /proc; where there is none, nothing is known and nothing is found."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")


@dataclass(frozen=True)
class Tree:
    """A process and all its descendants, as they are at one moment.

    Args:
        resident: bytes of resident memory by process.
        unnamed_files: bytes of files that live in memory under no name (memfd) and are held open.
        cpu_seconds: processor time that all of them have had, those that have ended included.
        waited_seconds: time that one of them, the one with most, was ready to run and had no processor.
    """

    resident: dict[int, int]
    unnamed_files: int
    cpu_seconds: float
    waited_seconds: float

    def memory(self, bound: int) -> int:
        """Bytes of memory of all together.

        Args:
            bound: only above it are pages that several share split among them, which takes the kernel longer.
        """
        everything = sum(self.resident.values())
        if everything > bound:
            everything = sum(_share(pid, size) for pid, size in self.resident.items())
        return everything + self.unnamed_files


def look_at_tree(root: int) -> Tree:
    """What a process and its descendants use; a process that ends meanwhile is left out."""
    fields_of: dict[int, list[str]] = {}
    for pid in _pids():
        with contextlib.suppress(OSError):
            fields_of[pid] = _stat(pid)
    tree = {root}
    while more := {pid for pid, fields in fields_of.items() if int(fields[1]) in tree} - tree:
        tree |= more
    tree &= fields_of.keys()
    page, tick = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_CLK_TCK")
    return Tree(
        resident={pid: int(fields_of[pid][21]) * page for pid in tree},
        unnamed_files=sum({key: size for pid in tree for key, size in _unnamed_files(pid)}.values()),
        cpu_seconds=sum(int(ticks) for pid in tree for ticks in fields_of[pid][11:15]) / tick,
        waited_seconds=max((_waited(pid) for pid in tree), default=0.0),
    )


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat after the process's name, which need not be UTF-8: the kernel cuts it after 15 bytes."""
    return (_PROC / str(pid) / "stat").read_bytes().rpartition(b")")[2].decode().split()


def _unnamed_files(pid: int) -> Iterator[tuple[tuple[int, int], int]]:
    """Device, inode and bytes of each file that a process holds open and that is only in memory."""
    folder = _PROC / str(pid) / "fd"
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            with contextlib.suppress(OSError):
                if os.readlink(folder / name).startswith("/memfd:"):
                    found = os.stat(folder / name)
                    yield (found.st_dev, found.st_ino), found.st_blocks * 512


def _waited(pid: int) -> float:
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int((_PROC / str(pid) / "schedstat").read_text().split()[1]) / 1e9
    return 0.0


def _share(pid: int, resident: int) -> int:
    """Resident bytes of a process, of a shared page its share; all of it where the kernel does not tell."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in (_PROC / str(pid) / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return resident


def wait_until_gone(pids: Iterable[int], seconds: float) -> None:
    """Wait for processes that were killed: the kernel takes a moment for those of a namespace."""
    deadline = time.monotonic() + seconds
    while any(_lives(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.01)


def _lives(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return _stat(pid)[0] not in ("Z", "X")
    return False


def available_memory() -> int:
    """Bytes that programs can still take on this machine; a very large number where the system does not tell."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in (_PROC / "meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return sys.maxsize


def is_running(word: str) -> bool:
    """Whether some process has this word on its command line."""
    for pid in _pids():
        with contextlib.suppress(OSError):
            if word.encode() in (_PROC / str(pid) / "cmdline").read_bytes():
                return True
    return False


def _pids() -> list[int]:
    return [int(name) for name in os.listdir(_PROC) if name.isdigit()] if _PROC.is_dir() else []
