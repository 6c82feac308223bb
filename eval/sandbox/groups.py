"""Limits all kinds of memory of a run with its own control group (cgroup v2), if this machine allows one.

A control group counts memory of processes, files in memory, and the kernel's memory for them, such as buffers of
sockets. systemd makes control groups for root and for users that are logged in. Without systemd, we make one inside our
own group or next to it, if the folder is writable and its memory controller is on.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from monet.eval.sandbox.limits import MEBIBYTE, Limits

# Kinds of bounds, the strongest first, with descriptions.
BOUNDS = {
    "systemd": "a control group, made by systemd, limits memory of every kind",
    "control group": "a control group limits memory of every kind",
    "watched": "memory is measured ten times a second, because no control group can be made here",
}
# systemd-run finds its service by these variables.
_BUS = ("XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS")
MOUNTS = Path("/proc/self/mountinfo")


def works(kind: str) -> bool:
    """Whether a command that starts in such a group really has the limit; always true for "watched"."""
    limits = Limits()
    with contextlib.suppress(OSError), entered(kind, limits) as words:
        if not words:
            return True
        with subprocess.Popen(
            [*words, "sh", "-c", "echo; read -r line"],
            env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        ) as process:  # fmt: skip
            started = process.stdout is not None and process.stdout.readline()
            return bool(started) and _read(process.pid, "memory.max") == [str(_most(limits))]
    return False


@contextlib.contextmanager
def entered(kind: str, limits: Limits) -> Iterator[list[str]]:
    """Words before a command that start it in its own group. The group is removed on exit.

    Args:
        kind: a key of `BOUNDS`; "watched" has no words.
        limits: limits of the run; the group may use the memory of the processes plus that of the working folder.

    Raises:
        OSError: the group cannot be made.
    """
    if kind == "systemd":
        manager = [] if os.geteuid() == 0 else ["--user"]
        bounds = [f"--property=MemoryMax={_most(limits)}", "--property=MemorySwapMax=0"]
        yield ["systemd-run", *manager, "--scope", "--quiet", "--collect", "--no-ask-password", *bounds, "--"]
    elif kind == "control group":
        folder = _make()
        try:
            (folder / "memory.max").write_text(str(_most(limits)))
            with contextlib.suppress(FileNotFoundError):  # a kernel without swap
                (folder / "memory.swap.max").write_text("0")
            yield ["/bin/sh", "-c", 'echo 0 > "$0/cgroup.procs" && exec "$@"', str(folder)]
        finally:
            with contextlib.suppress(OSError):  # a process that the kernel cannot end yet is still in it
                folder.rmdir()
    else:
        yield []


def was_exceeded(kind: str, pid: int) -> bool:
    """Whether the kernel killed a process of the jail because the jail's group exceeded its limit."""
    with contextlib.suppress(OSError):
        if kind != "watched" and folder_of(pid) != folder_of(os.getpid()):
            events = _read(pid, "memory.events")
            return ("oom_kill", "0") not in itertools.pairwise(events)
    return False


def environment() -> dict[str, str]:
    """Variables of this process's environment that `systemd-run` needs."""
    return {name: os.environ[name] for name in ("PATH", *_BUS) if name in os.environ}


def _most(limits: Limits) -> int:
    return (limits.memory_mb + limits.disk_mb) * MEBIBYTE


def _make() -> Path:
    """Make a group in the first folder that is writable and limits the memory of its groups."""
    own = folder_of(os.getpid())
    for parent in (own, own.parent):
        with contextlib.suppress(OSError):
            if "memory" in (parent / "cgroup.subtree_control").read_text().split():
                return Path(tempfile.mkdtemp(prefix="monet-", dir=parent))
    raise FileNotFoundError("no control group is writable")


def _read(pid: int, name: str) -> list[str]:
    return (folder_of(pid) / name).read_text().split()


def folder_of(pid: int) -> Path:
    """Folder of the group that a process is in."""
    for line in MOUNTS.read_text(errors="surrogateescape").splitlines():
        before, _, after = line.partition(" - ")
        if after.startswith("cgroup2 "):
            root, mounted = before.split()[3:5]
            lines = Path(f"/proc/{pid}/cgroup").read_text(errors="surrogateescape").splitlines()
            inside = next(line.removeprefix("0::") for line in lines if line.startswith("0::"))
            return Path(mounted) / inside.removeprefix(root).lstrip("/")
    raise FileNotFoundError("no cgroup v2 is mounted")
