"""Bounds of a run's memory of every kind: a control group (cgroup v2) of its own, where this machine lets us make one.

A control group counts memory of processes, files in memory, and what the kernel keeps for them, such as buffers of
sockets. systemd makes one for root and for users that are logged in. Where there is no systemd, we make one inside our
own group or beside it, if that may be written and bounds memory.
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

# Kinds of bounds, the strongest first, in words for people.
BOUNDS = {
    "systemd": "a control group, made by systemd, bounds memory of every kind",
    "control group": "a control group bounds memory of every kind",
    "watched": "memory is watched and counted ten times a second, for no control group can be made here",
}
# systemd-run finds its service by these.
_BUS = ("XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS")
_MOUNTS = Path("/proc/self/mountinfo")


def works(kind: str) -> bool:
    """Whether a command that is started in such a group really has the limit; always true for "watched"."""
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
    """Words in front of a command that start it within a group of its own; the group is gone afterwards.

    Args:
        kind: a key of `BOUNDS`; "watched" has no words.
        limits: the group may take the memory of processes and the working folder's.

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
    """Whether the kernel killed a process because of the bound of the group that a process of the jail is in."""
    with contextlib.suppress(OSError):
        if kind != "watched" and _folder(pid) != _folder(os.getpid()):
            events = _read(pid, "memory.events")
            return ("oom_kill", "0") not in itertools.pairwise(events)
    return False


def environment() -> dict[str, str]:
    """What `systemd-run` needs of this process's environment."""
    return {name: os.environ[name] for name in ("PATH", *_BUS) if name in os.environ}


def _most(limits: Limits) -> int:
    return (limits.memory_mb + limits.disk_mb) * MEBIBYTE


def _make() -> Path:
    """A new group in the first place that bounds the memory of groups in it and may be written."""
    own = _folder(os.getpid())
    for parent in (own, own.parent):
        with contextlib.suppress(OSError):
            if "memory" in (parent / "cgroup.subtree_control").read_text().split():
                return Path(tempfile.mkdtemp(prefix="monet-", dir=parent))
    raise FileNotFoundError("no control group that may be written")


def _read(pid: int, name: str) -> list[str]:
    return (_folder(pid) / name).read_text().split()


def _folder(pid: int) -> Path:
    """Of the group that a process is in."""
    for line in _MOUNTS.read_text(errors="surrogateescape").splitlines():
        before, _, after = line.partition(" - ")
        if after.startswith("cgroup2 "):
            root, mounted = before.split()[3:5]
            lines = Path(f"/proc/{pid}/cgroup").read_text(errors="surrogateescape").splitlines()
            inside = next(line.removeprefix("0::") for line in lines if line.startswith("0::"))
            return Path(mounted) / inside.removeprefix(root).lstrip("/")
    raise FileNotFoundError("no cgroup v2 is mounted")
