"""Runs programs that nobody has read: shut in by a jail, watched from outside, and ended whole.

The jail takes away network, files and privileges and sets limits for each process. The watch from outside ends a run by
wall clock, by what it prints, and by the memory of all its processes together. What a machine's jail really holds back
is tried out before the first program runs (`open_sandbox`), not taken on trust.
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
from monet.eval.code.jails import JAILS, Jail, LimitsOnly, environment
from monet.eval.code.limits import MEBIBYTE, Limits, Outcome, Status
from monet.eval.code.processes import Tree, available_memory, is_running, look_at_tree, wait_until_gone
from monet.eval.code.views import python_interpreters

_PROBE = Path(__file__).with_name("probe.py")
_TICK_SECONDS = 0.02
_LOOK_SECONDS = 0.1
_KEEPER_SECONDS = 15.0
# A jail that has not begun its script by then does not work; and a program that a busy machine starves gets so many
# times its wall clock before it is given up.
_START_SECONDS = 120.0
_PATIENCE = 10
COMPILE_ERROR = 101
_BUSY = b"\nthis machine was too busy to run it within the wall clock's limit"
_SHORT = b"\nthis machine ran short of memory"
# What `probe.py` tries, in words for people.
PROTECTIONS = {
    "network": "no network, not even this machine's own",
    "hidden files": "files of this machine cannot be read, but for the system's programs",
    "read-only files": "nothing can be written outside a folder of its own",
    "disk": "what it writes is bounded in all",
    "processes": "the number of processes is bounded",
    "memory": "memory of each process is bounded",
    "no stragglers": "no process outlives the run",
    "privileges": "no privilege, and no way to gain one",
}


@dataclass(frozen=True)
class Sandbox:
    """A jail that was tried out on this machine.

    Args:
        jail: how programs are shut in.
        held: by the names of `PROTECTIONS`, whether an attempt against it failed here.
        refused: jails that do not work here, and why.
        limits: of every run.
    """

    jail: Jail
    held: dict[str, bool]
    refused: dict[str, str]
    limits: Limits

    @property
    def missing(self) -> list[str]:
        """Names of the protections that do not hold here."""
        return [name for name in PROTECTIONS if not self.held.get(name, False)]

    def run(self, files: Mapping[str, str], script: str, view: Sequence[Path] = ()) -> Outcome:
        """Run a shell script over some files.

        Args:
            files: content by name; they lie in the script's `$PROGRAM`, read-only where the jail can.
            script: for sh; works in `$BOX`. Its exit code is the run's; 101 says that compiling failed.
            view: more files and folders of this machine to show, read-only.
        """
        folder = Path(tempfile.mkdtemp(prefix="monet-program-"))
        try:
            program = folder / "program"
            program.mkdir()
            program.chmod(0o755)  # for the other user id, whatever the umask is
            for name, content in files.items():
                (program / name).write_text(content, encoding="utf-8", errors="replace")
                (program / name).chmod(0o644)
            return _run(self.jail, folder, script, view, self.limits)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _run(jail: Jail, folder: Path, script: str, view: Sequence[Path], limits: Limits) -> Outcome:
    places = jail.places(folder)
    word = uuid.uuid4().hex
    # sh stays beside the program: the first process of a namespace would be deaf to many signals
    inside = f"PROGRAM={places.program} BOX={places.box}; echo begin {word}; cd $BOX || exit 126\n{script}\nexit $?"
    try:
        process = subprocess.Popen(
            jail.command(inside, folder, view, limits),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment(places),
            cwd=folder,
            start_new_session=True,
            umask=0o022,  # folders inside are for the other user id
        )
    except OSError as error:
        return Outcome("sandbox error", None, str(error), 0.0)
    try:
        mark = f"begin {word}\n".encode()
        output, stopped, seconds = _watch(process, limits, mark)
    finally:
        _end(process, jail)
    head, found, rest = output.partition(mark)
    if not found:
        return Outcome("sandbox error", None, _text(head) or "the sandbox did not start", seconds)
    if stopped is not None:
        return Outcome(stopped, None, _text(rest), seconds)
    code = process.returncode
    return Outcome(_status(code, seconds, limits), code, _text(rest), seconds)


def _status(code: int, seconds: float, limits: Limits) -> Status:
    if code == 0:
        return "ok"
    if code == COMPILE_ERROR:
        return "compile error"
    by_cpu_limit = code in {128 + signal.SIGKILL, 128 + signal.SIGXCPU, -signal.SIGKILL, -signal.SIGXCPU}
    return "timeout" if by_cpu_limit and seconds >= limits.cpu_seconds else "failed"


def _text(output: bytes, most: int = 2000) -> str:
    return output[-most:].decode("utf-8", errors="replace").strip()


def _watch(process: subprocess.Popen[bytes], limits: Limits, mark: bytes) -> tuple[bytes, Status | None, float]:
    """Read what is printed until the process ends or has to be stopped; why it has to be, and seconds since the mark.

    The wall clock's limit counts from the mark on: how long a jail takes to be built says nothing about the program.
    """
    assert process.stdout is not None
    pipe, output, reading = process.stdout.fileno(), bytearray(), True
    began = looked = time.monotonic()
    has_begun, most = False, limits.memory_mb * MEBIBYTE
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
            if not has_begun and seconds > _START_SECONDS:
                return bytes(output), "sandbox error", seconds
            if now - looked >= _LOOK_SECONDS:
                looked, tree = now, look_at_tree(process.pid)
                if tree.memory(most) > most:
                    return bytes(output), "memory", seconds
                if available_memory() < most // 4:
                    return bytes(output) + _SHORT, "sandbox error", seconds
                if has_begun and seconds > limits.wall_seconds:
                    # a program can starve itself, so that it failed is said of a starved one, too
                    if not _is_starved(tree, seconds):
                        return bytes(output), "timeout", seconds
                    if seconds > _PATIENCE * limits.wall_seconds:
                        return bytes(output) + _BUSY, "timeout", seconds


def _is_starved(tree: Tree, seconds: float) -> bool:
    """Whether a program hardly got a processor in that time, so that it has not shown that it is slow."""
    return tree.waited_seconds > seconds / 2 > tree.cpu_seconds


def _end(process: subprocess.Popen[bytes], jail: Jail) -> None:
    """Leave nothing of a run behind: its namespace ends with its first process, else the keeper kills what it finds."""
    runs = process.poll() is None
    try:
        left = list(look_at_tree(process.pid).resident) if runs else []
    finally:  # whatever the look met, the program does not live on
        if runs and jail.keeps:
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_KEEPER_SECONDS)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
    wait_until_gone(left, _KEEPER_SECONDS)


def open_sandbox(limits: Limits | None = None, *, allow_weak: bool = False) -> Sandbox:
    """The strongest jail that works here, after attempts against each of its protections.

    Args:
        limits: of every run to come; the attempts have smaller ones.
        allow_weak: take what there is where no jail holds everything back.

    Raises:
        ConfigError: nothing here holds everything back and `allow_weak` is false; names what is missing and why.
    """
    limits = limits or Limits()
    refused: dict[str, str] = {}
    found: list[Sandbox] = []
    for kind in (*JAILS, *([LimitsOnly] if allow_weak else [])):
        jail = kind()
        held, error = _attempts(jail)
        if error:
            refused[jail.name] = error
            continue
        found.append(Sandbox(jail, held, refused, limits))
        if not found[-1].missing:
            return found[-1]
    if found and allow_weak:
        return min(found, key=lambda sandbox: len(sandbox.missing))
    reasons = {**refused, **{sandbox.jail.name: f"does not hold: {', '.join(sandbox.missing)}" for sandbox in found}}
    raise ConfigError(
        "programs cannot be shut in on this machine ("
        + "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        + "). Install bubblewrap, or allow user namespaces (in a container: --security-opt seccomp=unconfined and"
        " apparmor=unconfined, or --privileged); or give --allow_weak_sandbox to run them under resource limits"
        " alone, on a machine that may come to harm"
    )


def _attempts(jail: Jail) -> tuple[dict[str, bool], str]:
    """Attack this machine from inside a jail; which protections held, or why the jail does not work at all."""
    secret = uuid.uuid4().hex
    limits = Limits(cpu_seconds=20, wall_seconds=300, memory_mb=256, processes=48, file_mb=4, disk_mb=16)
    with (
        tempfile.TemporaryDirectory(prefix="monet-attempts-") as name,
        socket.create_server(("127.0.0.1", 0)) as server,
    ):
        folder = Path(name)
        target = folder / "secret"
        target.write_text(secret)
        target.chmod(0o666)
        # last, and sticky: no other user may put something in the place of a file that is written or read by name
        folder.chmod(0o1777)
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
            sandbox = Sandbox(jail, {}, {}, limits)
            outcome = sandbox.run(files, f"{python.command} -I -S $PROGRAM/probe.py $PROGRAM/task.json", python.view)
            line = next((line for line in outcome.output.splitlines() if line.startswith("{")), None)
            if line is not None:
                held = {key: bool(value) for key, value in json.loads(line).items()}
                time.sleep(0.05)
                held["no stragglers"] = not is_running(task["straggler"])
                held["read-only files"] &= target.read_text() == secret and len(list(folder.iterdir())) == 1
                return held, ""
            reasons.append(
                f"{outcome.status}: {outcome.output.splitlines()[-1] if outcome.output else outcome.exit_code}"
            )
        return {}, "; ".join(dict.fromkeys(reasons))
