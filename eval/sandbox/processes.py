"""Reads processes and memory of this machine from /proc. Without /proc, nothing is known and nothing is found."""

from __future__ import annotations

import contextlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")


@dataclass(frozen=True)
class Tree:
    """A process and all its descendants at one moment.

    Args:
        resident: bytes of resident memory by process.
        kernel: upper bound of the bytes that the kernel holds for sockets and for files in memory of the jail.
        cpu_seconds: processor time of all of them, including processes that have ended.
        waited_seconds: the longest time that one of them was ready to run without a processor.
        runnable: number of them that run or are ready to run.
    """

    resident: dict[int, int]
    kernel: int
    cpu_seconds: float
    waited_seconds: float
    runnable: int

    def memory(self, bound: int) -> int:
        """Bytes of memory of all processes together.

        Args:
            bound: shared pages are split among processes only above this number, because that takes the kernel longer.
        """
        everything = sum(self.resident.values())
        if everything > bound:
            everything = sum(_share(pid, size) for pid, size in self.resident.items())
        return everything + self.kernel

    def is_starved(self, seconds: float) -> bool:
        """Whether other processes kept these from a processor for most of the time, so that their time shows nothing.

        Processes wait for each other if there are more of them than processors. Children that no process waits for hide
        their processor time.
        """
        by_others = self.runnable <= len(os.sched_getaffinity(0))
        return by_others and self.waited_seconds > seconds / 2 > self.cpu_seconds


def look_at_tree(root: int) -> Tree:
    """Measure a process and its descendants; a process that ends meanwhile is left out."""
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
        kernel=next((found for pid in sorted(tree, reverse=True) if (found := kernel_memory(pid))), 0),
        cpu_seconds=sum(int(ticks) for pid in tree for ticks in fields_of[pid][11:15]) / tick,
        waited_seconds=max((_waited(pid) for pid in tree), default=0.0),
        runnable=sum(fields_of[pid][0] == "R" for pid in tree),
    )


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat after the process's name, which need not be UTF-8: the kernel cuts it after 15 bytes."""
    return (_PROC / str(pid) / "stat").read_bytes().rpartition(b")")[2].decode().split()


def kernel_memory(pid: int) -> int:
    """Bytes that the kernel holds for the jail of a process; 0 if the process is in no jail.

    A Unix socket holds at most as much unread data as its buffer allows, no matter which process owns it. A file in
    memory needs about 1 KiB in addition to its content.
    """
    root = _PROC / str(pid) / "root"
    with contextlib.suppress(OSError, ValueError):
        if not os.path.samestat(os.stat(root), os.stat("/")):
            sockets = (_PROC / str(pid) / "net" / "unix").read_bytes().count(b"\n") - 1
            files = os.statvfs(root / "box")
            buffer = int((_PROC / "sys/net/core/wmem_default").read_text())
            return sockets * buffer + (files.f_files - files.f_ffree) * 1024
    return 0


def _waited(pid: int) -> float:
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int((_PROC / str(pid) / "schedstat").read_text().split()[1]) / 1e9
    return 0.0


def _share(pid: int, resident: int) -> int:
    """Resident bytes of a process. A shared page counts in part, or as a whole if the kernel does not report shares."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in (_PROC / str(pid) / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return resident


def available_memory() -> int:
    """Bytes that programs can still take on this machine; a very large number if the system does not report it."""
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
