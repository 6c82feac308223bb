"""Runs one shell script under resource limits and leaves no process of it behind. Started as a file, on its own.

    python keeper.py USER FOLDER NAME=SOFT:HARD,... SCRIPT

USER is a user id to become, or -1. Processes that leave their parent become this one's children, so that they are
found and killed at the end, or when this process gets SIGTERM.
"""

import contextlib
import ctypes
import os
import resource
import signal
import sys
import time

_BECOMES_PARENT_OF_ORPHANS = 36  # PR_SET_CHILD_SUBREAPER of Linux
_DIES_WITH_PARENT = 1  # PR_SET_PDEATHSIG
_NO_NEW_PRIVILEGES = 38  # PR_SET_NO_NEW_PRIVS


def prctl(option: int, value: int) -> None:
    """Ask Linux; other systems have none of it."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def descendants() -> set[int]:
    """Processes whose chain of parents ends here."""
    parent_of = {}
    for name in os.listdir("/proc") if os.path.isdir("/proc") else []:
        if name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError), open(f"/proc/{name}/stat", "rb") as file:
                parent_of[int(name)] = int(file.read().rpartition(b")")[2].split()[1])  # a name may be any bytes
    found: set[int] = set()
    while more := {pid for pid, parent in parent_of.items() if parent in found | {os.getpid()}} - found:
        found |= more
    return found


def kill_all(group: int) -> None:
    """Kill the script's group and every descendant, until none is left."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)
        left = descendants()
        for pid in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if not left:
            return


def main(user: int, folder: str, rlimits: str, script: str) -> int:
    """The script's exit code; 128 and the signal's number if a signal ended it."""
    prctl(_DIES_WITH_PARENT, signal.SIGTERM)
    prctl(_BECOMES_PARENT_OF_ORPHANS, 1)
    child = os.fork()
    if child == 0:
        os.setsid()
        if user >= 0:
            os.setgroups([])
            os.setresgid(user, user, user)
            os.setresuid(user, user, user)
        prctl(_NO_NEW_PRIVILEGES, 1)
        for entry in rlimits.split(","):
            name, _, values = entry.partition("=")
            number = getattr(resource, f"RLIMIT_{name.upper()}", None)
            if number is not None:
                soft, hard = map(int, values.split(":"))
                most = resource.getrlimit(number)[1]
                within = [value if most == resource.RLIM_INFINITY else min(value, most) for value in (soft, hard)]
                resource.setrlimit(number, (within[0], within[1]))
        os.chdir(folder)
        os.execv("/bin/sh", ["/bin/sh", "-c", script])

    def stop(*_: object) -> None:
        kill_all(child)
        os._exit(128 + signal.SIGTERM)

    signal.signal(signal.SIGTERM, stop)
    while True:
        pid, status = os.wait()
        if pid == child:
            break
    kill_all(child)
    return os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4]))
