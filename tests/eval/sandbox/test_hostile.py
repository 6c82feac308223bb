"""Attacks on the sandbox itself: on its probe, its view of processes, its limits."""

import contextlib
import os
import platform
import subprocess
import sys
import tempfile
import time
import uuid
from dataclasses import replace
from pathlib import Path

import pytest

from monet.eval.sandbox import launch
from monet.eval.sandbox import sandbox as module
from monet.eval.sandbox.processes import available_memory, is_running, look_at_tree
from monet.eval.sandbox.sandbox import Sandbox
from tests.eval.sandbox.conftest import attack

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can play another user")
def test_another_user_cannot_misuse_the_attempts(sandbox, monkeypatch, tmp_path):
    """Another user can replace a file neither by a link before it is written, nor by a pipe before it is read."""
    victim, folders = tmp_path / "victim", []
    victim.write_text("untouched")
    victim.chmod(0o600)

    def as_nobody(attempt, target: Path) -> None:
        child = os.fork()
        if child == 0:
            with contextlib.suppress(OSError):
                os.setresuid(65534, 65534, 65534)
                attempt(target)
            os._exit(0)
        os.waitpid(child, 0)

    def swap(target: Path) -> None:
        target.with_name("new").write_text("to be mistaken for the program's")
        target.rename(target.with_name("moved"))
        os.mkfifo(target)

    read, write, run = Path.read_text, Path.write_text, Sandbox.run

    def attacked_write(path: Path, *given, **named):
        if path.parent.name.startswith("monet-attempts-"):
            folders.append(path)
            as_nobody(lambda target: target.symlink_to(victim), path)
        return write(path, *given, **named)

    def attacked_run(sandbox, *given):
        outcome = run(sandbox, *given)
        if "{" in outcome.output:  # the attacks are over, and their traces are read next
            as_nobody(swap, folders[-1])
        return outcome

    def attacked_read(path: Path, *given, **named):
        assert not path.is_fifo(), "it would be read for ever"
        return read(path, *given, **named)

    monkeypatch.setattr(Path, "write_text", attacked_write)
    monkeypatch.setattr(Sandbox, "run", attacked_run)
    monkeypatch.setattr(Path, "read_text", attacked_read)
    held, _ = module._attempts("watched")
    assert all(held.values()) and len(held) == len(module.PROTECTIONS)
    assert (
        folders
        and not folders[-1].parent.exists()
        and victim.read_text() == "untouched"
        and victim.stat().st_mode & 0o777 == 0o600
    )


NAME_OF_BYTES = "import ctypes\nctypes.CDLL(None).prctl(15, b'\\xff\\xd0', 0, 0, 0)\n"


def test_a_process_whose_name_is_not_utf_8(sandbox, python):
    """A process name that is not UTF-8 neither stops the run nor leaves it without supervision."""
    neighbour = subprocess.Popen([sys.executable, "-S", "-c", NAME_OF_BYTES + "import time; time.sleep(600)"])
    try:
        deadline = time.monotonic() + 60
        while b"\xff" not in Path(f"/proc/{neighbour.pid}/comm").read_bytes() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert look_at_tree(os.getpid()).resident[neighbour.pid] > 0
        assert attack(sandbox, python, "print('fine')").status == "ok"
    finally:
        neighbour.kill()
        neighbour.wait()
    sleeper = NAME_OF_BYTES + "import time; time.sleep(600)"
    assert attack(sandbox, python, sleeper, wall_seconds=4).status == "timeout"
    daemon = "import os\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        import time\n"
    daemon += "".join(f"        {line}\n" for line in NAME_OF_BYTES.splitlines()) + "        time.sleep(600)\n"
    assert attack(sandbox, python, daemon).status == "ok"


def test_a_look_that_fails_does_not_leave_the_program_running(sandbox, monkeypatch):
    def fails(pid):
        raise RuntimeError("a fault of the look")

    marker = uuid.uuid4().hex
    short = replace(sandbox, limits=replace(sandbox.limits, wall_seconds=1))
    monkeypatch.setattr(module, "look_at_tree", fails)
    with pytest.raises(RuntimeError, match="a fault of the look"):
        short.run({}, f"sh -c 'sleep 600; : {marker}'")
    deadline = time.monotonic() + 30
    while is_running(marker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(marker)


@pytest.mark.parametrize("mask", [0o077, 0o000])
def test_the_umask_does_not_matter(sandbox, python, mask):
    before = os.umask(mask)
    try:
        assert attack(sandbox, python, "print('fine')").output == "fine"
    finally:
        os.umask(before)
    shown = sandbox.run({"x": "1"}, "stat -c %a $PROGRAM $PROGRAM/x")
    assert shown.output.split() == ["755", "644"]


# Each program takes memory that belongs to no process, so that neither a limit nor the watch of processes sees it.
UNSEEN = {
    "anonymous shared": "import mmap; mmap.mmap(-1, 1 << 20)",
    "shared zeros": "import mmap, os; mmap.mmap(os.open('/dev/zero', os.O_RDWR), 1 << 20)",
    "memfd": "import os; os.memfd_create('x')",
    "System V": "from ctypes import CDLL\nif CDLL(None).shmget(0, 1 << 20, 0o1600) < 0: raise OSError",
}
# Each program gets something that its own namespace does not block.
UNSHUT = {
    "a user namespace": "from ctypes import CDLL\nif CDLL(None).unshare(0x10000000) < 0: raise OSError",
    "a process in a user namespace": "from ctypes import CDLL\nimport platform\nnumber = {'x86_64': 56, 'aarch64': 220}"
    "[platform.machine()]\nif CDLL(None).syscall(number, 0x10000011, 0, 0, 0, 0) < 0: raise OSError",
    "a socket of IP": "import socket; socket.socket()",
    "the machine's host": "import socket; socket.socket(40, socket.SOCK_STREAM)",
    "cryptography of the kernel": "import socket; socket.socket(38, socket.SOCK_SEQPACKET)",
    "io_uring": "from ctypes import CDLL, create_string_buffer\n"
    "if CDLL(None).syscall(425, 4, create_string_buffer(120)) < 0: raise OSError",
}


@pytest.mark.parametrize("program", [*UNSEEN.values(), *UNSHUT.values()], ids=[*UNSEEN, *UNSHUT])
def test_what_namespaces_do_not_shut_out_is_refused(sandbox, python, program):
    outcome = attack(sandbox, python, program)
    assert outcome.status == "failed" and "Error" in outcome.output


def test_a_jail_that_is_stopped_while_it_starts_leaves_nothing(sandbox, python, monkeypatch):
    for delay in range(0, 60, 3):
        monkeypatch.setattr(module, "START_SECONDS", delay / 1000)
        monkeypatch.setattr(module, "LOOK_SECONDS", 0.001)
        began = time.monotonic()
        assert attack(sandbox, python, "import time; time.sleep(100)", wall_seconds=0.001).status != "ok"
        assert time.monotonic() - began < 20


def test_threads_and_processes_still_start(sandbox, python):
    program = (
        "import os, socket, subprocess, threading\nthread = threading.Thread(target=print, args=['thread'])\n"
        "thread.start(); thread.join()\nprint(subprocess.run(['echo', 'child'], capture_output=True).stdout)\n"
        "socket.socketpair()[0].setsockopt(1, 7, 1 << 20); bytearray(50 << 20)"
    )
    outcome = attack(sandbox, python, program)
    assert outcome.status == "ok" and "thread" in outcome.output and "child" in outcome.output


@pytest.mark.skipif(platform.machine() not in launch._NUMBERS, reason="numbers of system calls are not known")
def test_keys_of_the_caller_are_out_of_reach_and_none_stay(sandbox, python):
    """The caller holds a key in its session keyring; the program looks for it and leaves its own key."""
    add, control = (launch._NUMBERS[platform.machine()][name] for name in ("add_key", "keyctl"))
    mine, theirs = uuid.uuid4().hex, uuid.uuid4().hex
    look = (
        "from ctypes import CDLL, create_string_buffer\nlibrary, found = CDLL(None), create_string_buffer(99)\n"
        f"library.syscall({add}, b'user', b'{theirs}', b'x', 1, -3)\n"
        f"key = library.syscall({control}, 10, -3, b'user', b'{mine}', 0)\n"
        f"library.syscall({control}, 11, key, found, 99)\nprint(found.value)\nprint(open('/proc/keys').read())"
    )
    caller = (
        "import json, sys\nfrom ctypes import CDLL\nfrom pathlib import Path\n"
        "from monet.eval.sandbox.limits import Limits\nfrom monet.eval.sandbox.sandbox import Sandbox\n"
        f"if CDLL(None).syscall({control}, 1, None) < 0: sys.exit(77)\n"
        f"if CDLL(None).syscall({add}, b'user', b'{mine}', b'hunter2', 7, -3) < 0: sys.exit(77)\n"
        "box = Sandbox('', 'watched', Limits(cpu_seconds=30, wall_seconds=300))\n"
        f"view = [Path(path) for path in {[str(path) for path in python.view]}]\n"
        f"print(box.run({{'look.py': {look!r}}}, {python.command + ' -S $PROGRAM/look.py'!r}, view).output)\n"
        "print('after:', open('/proc/keys').read())"
    )
    ran = subprocess.run([sys.executable, "-c", caller], capture_output=True, text=True, cwd=ROOT,
                         env={**os.environ, "PYTHONPATH": str(ROOT)})  # fmt: skip
    if ran.returncode == 77:
        pytest.skip("the kernel has no keyrings here")
    inside, _, after = ran.stdout.partition("after:")
    assert "b''" in inside and "hunter2" not in inside and mine[:16] not in inside, ran
    assert mine[:16] in after and theirs[:16] not in after


def test_a_run_ends_when_its_last_process_is_gone(sandbox, python):
    daemon = (
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    [os.close(n) for n in range(3)]\n"
        "    x = bytearray(200 << 20)\n    time.sleep(600)\ntime.sleep(0.2)"
    )
    for _ in range(5):
        assert attack(sandbox, python, daemon).status == "ok"  # `attack` looks for what was left


# Each holds memory of the kernel: unread data of sockets, and files in memory without content.
OF_THE_KERNEL = {
    "sockets": "import os, socket, time\nfor _ in range(10):\n    if os.fork() == 0: break\nheld = []\n"
    "for _ in range(100):\n    pair = socket.socketpair()\n    held.append(pair)\n    for one in pair:\n"
    "        one.setblocking(False)\n        one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 24)\n"
    "        try:\n            while True: one.send(bytes(65536))\n        except OSError: pass\n"
    "time.sleep(600)",
    "sockets that hide": "import ctypes, os, socket, time\nfor _ in range(10):\n    if os.fork() == 0: break\n"
    "ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)\nheld = [socket.socketpair() for _ in range(100)]\ntime.sleep(600)",
    "files": "n = 0\nwhile True:\n    open(str(n), 'w').close()\n    n += 1",
}


@pytest.mark.parametrize("program", OF_THE_KERNEL.values(), ids=OF_THE_KERNEL)
def test_memory_that_the_kernel_holds_is_bounded(sandbox, python, program):
    before = available_memory()
    assert attack(sandbox, python, program, memory_mb=200).status == "memory"
    assert before - available_memory() < 600 << 20


def test_folders_nested_in_thousands_are_cleared_away(sandbox, python, tmp_path, monkeypatch):
    tmp_path.chmod(0o755)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    nest = "import os\nfor _ in range(3000):\n    os.mkdir('d')\n    os.chdir('d')\nos.mkdir('shut', 0)\nprint('deep')"
    assert attack(sandbox, python, nest).output == "deep"
    assert list(tmp_path.iterdir()) == []


def test_a_program_that_starves_itself_ends_in_time(sandbox, python):
    """More processes than processors, whose parents wait for none of them, so that the time they used is lost."""
    starve = (
        "import os, signal\nsignal.signal(signal.SIGCHLD, signal.SIG_IGN)\nforks = 0\nwhile True:\n    try:\n"
        "        if os.fork() == 0 and forks > 20: os._exit(0)\n        forks += 1\n    except OSError: pass\n"
    )
    began = time.monotonic()
    outcome = attack(sandbox, python, starve, wall_seconds=3, cpu_seconds=100, processes=60)
    assert outcome.status == "timeout" and outcome.seconds < 10 and time.monotonic() - began < 20
