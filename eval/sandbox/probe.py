"""Attacks a machine from inside a jail and prints which protections held, as one line of JSON. Run as a file.

    python probe.py TASK.json

A successful attack does no harm. It opens and closes a connection, writes into a folder made for it, and takes slightly
more memory, disk and processes than allowed. It gives all of these back.
"""

import contextlib
import json
import mmap
import os
import signal
import socket
import sys
import time
from typing import Any

try:
    import ctypes
except ImportError:  # an interpreter without this module cannot try
    ctypes = None

_VSOCK, _NEW_USER = 40, 0x10000000
task: dict[str, Any] = {}


def network() -> bool:
    """There is no connection, only the loopback interface, and no socket to the host of a virtual machine."""
    with contextlib.suppress(OSError):
        socket.socket(_VSOCK, socket.SOCK_STREAM).close()
        return False
    names = {name for _, name in socket.if_nameindex()}
    try:
        socket.create_connection(("127.0.0.1", task["port"]), timeout=2).close()
    except OSError:
        return names <= {"lo"}
    return False


def hidden() -> bool:
    """The program can read neither a file outside nor root's folder."""
    with contextlib.suppress(OSError):
        return task["secret"] not in open(task["file"]).read()
    return True


def read_only() -> bool:
    """The program cannot write outside the working folder."""
    for path in (task["file"], f"{task['file']}-new", f"/{task['secret']}", f"/usr/{task['secret']}", __file__):
        with contextlib.suppress(OSError), open(path, "a") as file:
            file.write("written by a program that should not have been able to\n")
            return False
    return True


def disk() -> bool:
    """The total size of many files is limited."""
    names = []
    try:
        for number in range(64):
            names.append(f"filler-{number}")
            with open(names[-1], "wb") as file:
                file.write(bytes(task["disk"] // 32))
    except OSError:
        return True
    finally:
        for name in names:
            with contextlib.suppress(OSError):
                os.unlink(name)
    return False


def memory() -> bool:
    """The program cannot take twice the memory, and no memory that belongs to no process."""
    for take in (lambda: mmap.mmap(-1, mmap.PAGESIZE).close(), lambda: os.close(os.memfd_create("probe"))):
        with contextlib.suppress(OSError, AttributeError):
            take()
            return False
    try:
        return len(bytearray(2 * task["memory"])) < 0
    except MemoryError:
        return True


def processes() -> bool:
    """The program cannot start more processes than allowed."""
    children = []
    try:
        while len(children) <= task["processes"] + 16:
            child = os.fork()
            if not child:
                time.sleep(30)
                os._exit(0)
            children.append(child)
    except OSError:
        return True
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    return False


def privileges() -> bool:
    """The program has no capability, and cannot gain one through a program or a user namespace."""
    if ctypes is not None and ctypes.CDLL(None).unshare(_NEW_USER) == 0:
        return False
    status = dict(line.split(":", 1) for line in open("/proc/self/status") if ":" in line)  # noqa: SIM115
    none = all(int(status[name].strip(), 16) == 0 for name in ("CapPrm", "CapEff", "CapAmb"))
    return none and int(status["NoNewPrivs"]) == 1


def leave_a_straggler() -> None:
    """Start a process in its own session and without a parent, which tries to outlive the run."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            for descriptor in range(3):
                os.close(descriptor)
            os.open(os.devnull, os.O_RDWR)
            os.execv(sys.executable, [sys.executable, "-S", "-c", "import time; time.sleep(60)", task["straggler"]])
        os._exit(0)


def main() -> None:
    """Run all attacks, then print the protections that held as one line."""
    held = {}
    for name, attempt in {
        "network": network,
        "hidden files": hidden,
        "read-only files": read_only,
        "disk": disk,
        "memory": memory,
        "processes": processes,
        "privileges": privileges,
    }.items():
        try:
            held[name] = attempt()
        except Exception as error:
            # An attack that fails unexpectedly proves nothing, so the protection does not count.
            held[name] = False
            print(f"{name}: {error!r}")
    leave_a_straggler()
    time.sleep(0.1)
    print(json.dumps(held), flush=True)


if __name__ == "__main__":
    with open(sys.argv[1]) as file:
        task = json.load(file)
    main()
