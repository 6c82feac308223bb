"""Attacks on the sandbox itself: on its own attempts, its view of processes, its bounds."""

import contextlib
import os
import subprocess
import sys
import time
import uuid
from dataclasses import replace
from pathlib import Path

import pytest

from monet.eval.code import sandbox as module
from monet.eval.code.jails import LimitsOnly
from monet.eval.code.processes import is_running, look_at_tree
from monet.eval.code.sandbox import Sandbox
from tests.eval.code.conftest import attack


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can play another user")
def test_another_user_cannot_misuse_the_attempts(monkeypatch, tmp_path):
    """Neither a link in the place of a file before it is written, nor a pipe in its place before it is read."""
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
        target.rename(target.with_name("moved"))
        os.mkfifo(target)

    read, write, run = Path.read_text, Path.write_text, Sandbox.run

    def attacked_write(path: Path, *given, **named):
        if path.name == "secret":
            folders.append(path.parent)
            as_nobody(lambda target: target.symlink_to(victim), path)
        return write(path, *given, **named)

    def attacked_run(sandbox, *given):
        outcome = run(sandbox, *given)
        if "{" in outcome.output:  # the attempts are over, and their traces are read next
            as_nobody(swap, folders[-1] / "secret")
        return outcome

    def attacked_read(path: Path, *given, **named):
        assert not path.is_fifo(), "it would be read for ever"
        return read(path, *given, **named)

    monkeypatch.setattr(Path, "write_text", attacked_write)
    monkeypatch.setattr(Sandbox, "run", attacked_run)
    monkeypatch.setattr(Path, "read_text", attacked_read)
    module._attempts(LimitsOnly())
    assert folders and victim.read_text() == "untouched" and victim.stat().st_mode & 0o777 == 0o600


NAME_OF_BYTES = "import ctypes\nctypes.CDLL(None).prctl(15, b'\\xff\\xd0', 0, 0, 0)\n"


def test_a_process_whose_name_is_not_utf_8(sandbox, python, weak, weak_python):
    """Neither another user's process nor the program's own name stops the run or leaves it without supervision."""
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
    assert attack(weak, weak_python, daemon).status == "ok"


def test_a_look_that_fails_does_not_leave_the_program_running(weak, monkeypatch):
    def fails(pid):
        raise RuntimeError("a fault of the look")

    marker = uuid.uuid4().hex
    short = replace(weak, limits=replace(weak.limits, wall_seconds=1))
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
