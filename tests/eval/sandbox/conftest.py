"""Fixtures: the sandbox of this machine, and programs that attack it."""

from __future__ import annotations

import os
import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import replace

import pytest

from corpus.fetch import fetch
from corpus.recipe import Source
from monet.errors import ConfigError, DataError
from monet.eval.sandbox import jail
from monet.eval.sandbox.limits import Limits, Outcome
from monet.eval.sandbox.processes import is_running
from monet.eval.sandbox.sandbox import Sandbox, open_sandbox
from monet.eval.sandbox.views import Command, python_interpreters

# A busy machine may take minutes for one second of work.
PATIENT = Limits(cpu_seconds=30, wall_seconds=300)


@pytest.fixture(scope="session")
def sandbox(request) -> Iterator[Sandbox]:
    """bubblewrap with all protections. If it is not installed, Debian's package is unpacked without root."""
    with pytest.MonkeyPatch.context() as patch:
        if jail.version() is None:
            try:
                files, _ = fetch(
                    Source("bubblewrap", "LGPL-2.0-or-later", 1.0, ()), request.config.cache.mkdir("packages")
                )
            except DataError as error:
                pytest.skip(f"no bubblewrap here: {error}")
            patch.setenv("PATH", str(files / "usr/bin"), prepend=os.pathsep)
        try:
            yield open_sandbox(PATIENT)
        except ConfigError as error:
            assert not namespaces_work(), f"namespaces work here, and yet: {error}"
            pytest.skip(f"no sandbox here: {error}")


def namespaces_work() -> bool:
    """Whether this machine lets a process have its own namespaces and mounts."""
    mapped = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    spaces = ["--mount", "--net", "--pid", "--ipc", "--uts", "--fork"]
    try:
        mounts = ["mount", "-t", "proc", "proc", "/proc"]
        return subprocess.run(["unshare", *mapped, *spaces, *mounts], capture_output=True).returncode == 0
    except OSError:
        return False


@pytest.fixture(scope="session")
def python(sandbox: Sandbox) -> Command:
    """The command of an interpreter inside the sandbox, and the paths that it needs."""
    for found in python_interpreters():
        if sandbox.run({}, f"{found.command} -c 1", found.view).status == "ok":
            return found
    raise AssertionError("no interpreter runs in the sandbox")


def attack(sandbox: Sandbox, python: Command, program: str, **limits: float) -> Outcome:
    """Run a Python program under changed limits; the command lines of all its processes hold a marker."""
    marker = f"marker-{uuid.uuid4().hex}"
    shut_in = replace(sandbox, limits=replace(sandbox.limits, **limits))
    outcome = shut_in.run({"program.py": program}, f"{python.command} -S $PROGRAM/program.py {marker}", python.view)
    assert not is_running(marker), "a process outlived its run"
    return outcome
