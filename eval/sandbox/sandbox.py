"""Runs generated programs isolated by bubblewrap, watches them from outside, and ends them with all their processes.

The jail removes network, files and privileges, and sets limits for each process. A control group limits memory of every
kind, if one can be made. The watch from outside limits wall-clock time, output, and the memory that all processes use
together. `open_sandbox` attacks these protections before the first program runs.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from monet.errors import ConfigError
from monet.eval.sandbox import groups, jail
from monet.eval.sandbox.limits import MEBIBYTE, Limits, Outcome, Status
from monet.eval.sandbox.processes import available_memory, is_running, look_at_tree
from monet.eval.sandbox.views import python_interpreters

_PROBE = Path(__file__).with_name("probe.py")
_TICK_SECONDS = 0.02
LOOK_SECONDS = 0.1
_END_SECONDS = 30.0
# A jail that has not begun its script after this many seconds does not work. A program that a busy machine starves
# is stopped after its wall-clock limit times this factor.
START_SECONDS = 120.0
PATIENCE = 10
COMPILE_ERROR = 101
_INSTALL = (
    "Install bubblewrap 0.8 or later (Debian, Ubuntu: apt install bubblewrap). Without root, unpack your distribution's"
    " package and put its folder on PATH, on Debian and Ubuntu: apt-get download bubblewrap && dpkg-deb -x"
    " bubblewrap_*.deb FOLDER && export PATH=$PATH:FOLDER/usr/bin."
)
_ALLOW = (
    "User namespaces must be allowed (Ubuntu 24.04: sysctl kernel.apparmor_restrict_unprivileged_userns=0; in a"
    " container: --security-opt seccomp=unconfined --security-opt apparmor=unconfined, or --privileged)."
)
_BUSY = b"\nthis machine was too busy to run it within the wall clock's limit"
_SHORT = b"\nthis machine ran short of memory"
# Attacks of `probe.py`, with descriptions of the protections.
PROTECTIONS = {
    "network": "no network, not even the loopback of this machine",
    "hidden files": "files of this machine cannot be read, except the system's programs",
    "read-only files": "nothing can be written outside its own folder",
    "disk": "the total size of its files is limited",
    "processes": "the number of processes is limited",
    "memory": "memory of each process is limited",
    "no stragglers": "no process outlives the run",
    "privileges": "no privilege, and no way to gain one",
}


@dataclass(frozen=True)
class Sandbox:
    """bubblewrap, tested on this machine.

    Args:
        jail: bubblewrap with its version.
        memory: mechanism that limits memory of every kind, a key of `monet.eval.sandbox.groups.BOUNDS`.
        limits: limits of every run.
    """

    jail: str
    memory: str
    limits: Limits

    def run(self, files: Mapping[str, str], script: str, view: Sequence[Path] = ()) -> Outcome:
        """Run a shell script over some files.

        Args:
            files: content by name; they are in the script's `$PROGRAM`, read-only.
            script: script for sh; it works in `$BOX`. Its exit code is that of the run; 101 means that compilation
                failed.
            view: more files and folders of this machine to show, read-only.
        """
        folder = Path(tempfile.mkdtemp(prefix="monet-program-"))
        try:
            program = folder / "program"
            program.mkdir()
            program.chmod(0o755)  # for the other user id, under any umask
            for name, content in files.items():
                (program / name).write_text(content, encoding="utf-8", errors="replace")
                (program / name).chmod(0o644)
            return self._run(program, script, view)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _run(self, program: Path, script: str, view: Sequence[Path]) -> Outcome:
        word = uuid.uuid4().hex
        mark = f"begin {word}\n".encode()
        # sh stays alive next to the program: the first process of a namespace ignores many signals
        inside = f"PROGRAM={jail.PROGRAM} BOX={jail.BOX}; echo begin {word}; cd $BOX || exit 126\n{script}\nexit $?"
        try:
            with groups.entered(self.memory, self.limits) as words:
                process = subprocess.Popen(
                    jail.command(inside, program, view, self.limits, words),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    env=groups.environment(),
                    start_new_session=True,
                    umask=0o022,  # the other user id must read the folders inside
                )
                try:
                    output, stopped, seconds = self._watch(process, mark)
                finally:
                    _end(process)
        except OSError as error:
            return Outcome("sandbox error", None, str(error), 0.0)
        head, found, rest = output.partition(mark)
        if not found:
            return Outcome("sandbox error", None, _text(head) or "the sandbox did not start", seconds)
        if stopped is not None:
            return Outcome(stopped, None, _text(rest), seconds)
        code = process.returncode
        return Outcome(_status(code, seconds, self.limits), code, _text(rest), seconds)

    def _watch(self, process: subprocess.Popen[bytes], mark: bytes) -> tuple[bytes, Status | None, float]:
        """Read the output until the process ends or must be stopped; return output, reason for the stop, and seconds.

        Seconds and the wall-clock limit count from the mark, because building a jail takes time.
        """
        assert process.stdout is not None
        pipe, output, reading = process.stdout.fileno(), bytearray(), True
        began = looked = time.monotonic()
        has_begun, limits, most = False, self.limits, self.limits.memory_mb * MEBIBYTE
        with selectors.DefaultSelector() as selector:
            selector.register(pipe, selectors.EVENT_READ)
            while True:
                ended = process.poll() is not None
                if reading and selector.select(0 if ended else _TICK_SECONDS):
                    piece = os.read(pipe, 65536)
                    output += piece
                    reading = bool(piece)
                elif ended:
                    return bytes(output), None, time.monotonic() - began
                elif not reading:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(_TICK_SECONDS)
                now = time.monotonic()
                if not has_begun and mark in output:
                    has_begun, began = True, now
                seconds = now - began
                if len(output) > limits.output_kb * 1024:
                    return bytes(output), "output", seconds
                if not has_begun and seconds > START_SECONDS:
                    return bytes(output), "sandbox error", seconds
                if now - looked >= LOOK_SECONDS:
                    looked, tree = now, look_at_tree(process.pid)
                    inside = max(tree.resident.keys() - {process.pid}, default=process.pid)
                    if tree.memory(most) > most or groups.was_exceeded(self.memory, inside):
                        return bytes(output), "memory", seconds
                    if available_memory() < most // 4:
                        return bytes(output) + _SHORT, "sandbox error", seconds
                    if has_begun and seconds > limits.wall_seconds:
                        if not tree.is_starved(seconds):
                            return bytes(output), "timeout", seconds
                        if seconds > PATIENCE * limits.wall_seconds:
                            return bytes(output) + _BUSY, "timeout", seconds


def _status(code: int, seconds: float, limits: Limits) -> Status:
    if code == 0:
        return "ok"
    if code == COMPILE_ERROR:
        return "compile error"
    by_cpu_limit = code in {128 + signal.SIGKILL, 128 + signal.SIGXCPU, -signal.SIGKILL, -signal.SIGXCPU}
    return "timeout" if by_cpu_limit and seconds >= limits.cpu_seconds else "failed"


def _text(output: bytes, most: int = 2000) -> str:
    return output[-most:].decode("utf-8", errors="replace").strip()


def _end(process: subprocess.Popen[bytes]) -> None:
    """Leave no process of a run behind; `launch.py` kills the jail and waits until its last process has ended."""
    process.terminate()
    try:
        process.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    finally:
        if process.stdout is not None:
            process.stdout.close()


def open_sandbox(limits: Limits | None = None) -> Sandbox:
    """Open bubblewrap with its limits, after an attack on each of its protections on this machine.

    Args:
        limits: limits of every later run; the attacks have smaller ones.

    Raises:
        ConfigError: bubblewrap is missing or does not work here, or a protection does not hold; the message names it.
    """
    limits = limits or Limits()
    version = jail.version()
    if version is None:
        raise ConfigError(f"this machine cannot isolate programs: bubblewrap (bwrap) is missing. {_INSTALL}")
    held, fault, memory = {}, "", "watched"
    for memory in filter(groups.works, groups.BOUNDS):
        held, fault = _attempts(memory)
        if not fault:
            break
    missing = [name for name in PROTECTIONS if not held.get(name, False)]
    if fault or missing:
        fault = fault or f"these protections do not hold: {', '.join(missing)}"
        raise ConfigError(f"this machine cannot isolate programs: {version}: {fault}. {_INSTALL} {_ALLOW}")
    return Sandbox(version, memory, limits)


def _attempts(memory: str) -> tuple[dict[str, bool], str]:
    """Attack this machine from inside a sandbox; return the protections that held, or why the sandbox does not work."""
    secret = uuid.uuid4().hex
    limits = Limits(cpu_seconds=20, wall_seconds=300, memory_mb=256, processes=48, file_mb=4, disk_mb=16)
    with (
        tempfile.TemporaryDirectory(prefix="monet-attempts-", ignore_cleanup_errors=True) as name,
        socket.create_server(("127.0.0.1", 0)) as server,
    ):
        folder = Path(name)
        target = folder / secret
        target.write_text(secret)
        target.chmod(0o666)
        # The program's user id needs this folder, so every user can enter it, but only between writing and reading the
        # file. The sticky bit keeps others from replacing the file. Without the read bit they cannot list its name.
        folder.chmod(0o1733)
        task = {
            "port": server.getsockname()[1],
            "file": str(target),
            "secret": secret,
            "processes": limits.processes,
            "memory": limits.memory_mb * MEBIBYTE,
            "disk": limits.disk_mb * MEBIBYTE,
            "straggler": f"{secret}-straggler",
        }
        reasons = []
        for python in python_interpreters():
            files = {"probe.py": _PROBE.read_text(encoding="utf-8"), "task.json": json.dumps(task)}
            sandbox = Sandbox("", memory, limits)
            outcome = sandbox.run(files, f"{python.command} -I -S $PROGRAM/probe.py $PROGRAM/task.json", python.view)
            line = next((line for line in outcome.output.splitlines() if line.startswith("{")), None)
            if line is not None:
                held = {key: bool(value) for key, value in json.loads(line).items()}
                held["no stragglers"] = not is_running(task["straggler"])
                folder.chmod(0o700)
                held["read-only files"] &= target.read_text() == secret and not Path(f"{target}-new").exists()
                return held, ""
            reasons.append(
                f"{outcome.status}: {outcome.output.splitlines()[-1] if outcome.output else outcome.exit_code}"
            )
        return {}, "; ".join(dict.fromkeys(reasons))
