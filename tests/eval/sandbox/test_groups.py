"""Control groups: with files in place of the kernel's, with a command in place of systemd-run, with a real kernel."""

import contextlib
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pytest

from corpus.fetch import fetch
from corpus.recipe import Source
from monet.errors import DataError
from monet.eval.sandbox import groups
from monet.eval.sandbox.limits import Limits

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def controlled(tmp_path, monkeypatch):
    """A folder of groups that limits memory, with this process in one of its groups."""
    (tmp_path / "own").mkdir()
    (tmp_path / "cgroup.subtree_control").write_text("cpu memory pids\n")
    (tmp_path / "own" / "cgroup.subtree_control").write_text("\n")
    monkeypatch.setattr(groups, "folder_of", lambda pid: max(tmp_path.glob("monet-*"), default=tmp_path / "own"))
    return tmp_path


def test_a_group_is_made_beside_the_own_one(controlled):
    assert groups.works("control group")
    limits = Limits(memory_mb=100, disk_mb=28)
    with groups.entered("control group", limits) as words:
        (made,) = [path for path in controlled.glob("monet-*") if (path / "memory.max").read_text() == str(128 << 20)]
        assert (made / "memory.swap.max").read_text() == "0"
        shown = subprocess.run([*words, "echo", "a word"], capture_output=True, text=True)
        assert shown.stdout == "a word\n" and (made / "cgroup.procs").read_text() == "0\n"


def test_a_machine_without_control_groups(monkeypatch, tmp_path):
    monkeypatch.setattr(groups, "MOUNTS", tmp_path / "no such file")
    assert not groups.works("control group") and groups.works("watched")


def test_without_a_group_that_bounds_memory_it_is_watched(controlled):
    (controlled / "cgroup.subtree_control").write_text("cpu pids")
    assert not groups.works("control group") and groups.works("watched")
    with groups.entered("watched", Limits()) as words:
        assert words == []


def test_systemd_is_asked_for_a_scope(controlled, monkeypatch):
    tool = controlled / "systemd-run"
    tool.write_text(
        "#!/bin/sh\nmkdir -p ${0%/*}/monet-scope\nwhile [ $1 != -- ]; do case $1 in --property=MemoryMax=*)"
        ' echo ${1##*=} > ${0%/*}/monet-scope/memory.max;; esac; shift; done\nshift\nexec "$@"\n'
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{controlled}:/usr/bin:/bin")
    assert groups.works("systemd")
    with groups.entered("systemd", Limits(memory_mb=1, disk_mb=1)) as words:
        assert {"--scope", f"--property=MemoryMax={2 << 20}", "--property=MemorySwapMax=0"} <= set(words)
    tool.write_text("#!/bin/sh\necho no bus >&2\nexit 1\n")
    assert not groups.works("systemd")


def test_a_program_that_exceeds_its_group_ends_as_memory(sandbox, controlled, monkeypatch):
    here = controlled / "own"
    within = replace(sandbox, memory="control group")
    assert within.run({}, "echo fine").output == "fine"
    monkeypatch.setattr(groups, "folder_of", lambda pid: here if pid == groups.os.getpid() else controlled)
    (controlled / "memory.events").write_text("low 0\noom 3\noom_kill 0\noom_group_kill 0\n")
    assert not groups.was_exceeded("control group", 1)
    (controlled / "memory.events").write_text("low 0\noom 3\noom_kill 2\noom_group_kill 0\n")
    began = time.monotonic()
    # stopped within a moment, even if little of the jail exists
    assert within.run({}, "sleep 60").status in ("memory", "sandbox error") and time.monotonic() - began < 20
    assert not groups.was_exceeded("watched", 1) and not groups.was_exceeded("control group", groups.os.getpid())


# Ten processes fill sockets with more than the group may hold; the watched memory stays below the limit.
HOG = """
import os, socket, time
for _ in range(10):
    if os.fork() == 0: break
held = []
for _ in range(100):
    held += socket.socketpair()
    for one in held[-2:]:
        one.setblocking(False)
        try:
            while True: one.send(bytes(65536))
        except OSError: pass
time.sleep(600)
"""
INSIDE = """
from dataclasses import replace
from monet.eval.sandbox import processes, sandbox
from monet.eval.sandbox.limits import Limits
from monet.eval.sandbox.views import python_interpreters
found = sandbox.open_sandbox(Limits(memory_mb=96, disk_mb=32))
processes.kernel_memory = lambda pid: 0
python, hog = python_interpreters()[0], {"hog.py": %r}
for box, script in ((found, "$PROGRAM/hog.py"), (found, "-c 'print(1)'")):
    print("said", box.memory, box.run(hog, f"{python.command} -S {script}", python.view).status)
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="user-mode Linux runs on x86-64")
def test_a_real_control_group_bounds_memory_of_the_kernel(sandbox, request, tmp_path):
    """Runs in a separate kernel (user-mode Linux), because this machine may have no writable control group."""
    try:
        files, _ = fetch(Source("user-mode-linux", "GPL-2.0", 1.0, ()), request.config.cache.mkdir("packages"))
    except DataError as error:
        pytest.skip(f"no user-mode Linux here: {error}")
    with tempfile.TemporaryDirectory(dir=Path.home(), prefix=".monet-test-") as folder:  # /tmp is another folder inside
        init, code = Path(folder, "init"), Path(folder, "inside.py")
        code.write_text(INSIDE % HOG)
        init.write_text(
            f"#!/bin/sh\nexport PATH='{os.environ['PATH']}:/usr/sbin:/sbin'\n"
            "mount -t proc p /proc; mount -t tmpfs t /tmp; mount -t tmpfs r /run\n"
            "mount -t sysfs s /sys; mount -t cgroup2 c /sys/fs/cgroup; cd /sys/fs/cgroup\n"
            "echo +memory > cgroup.subtree_control; mkdir own; echo $$ > own/cgroup.procs; echo booted\n"
            f"cd '{ROOT}'; PYTHONPATH=. '{sys.executable}' '{code}' 2>&1; ls /sys/fs/cgroup; halt -f\n"
        )
        init.chmod(0o755)
        boot = ["mem=2G", "rootfstype=hostfs", "rw", "root=/dev/root", "rootflags=/", f"init={init}"]
        boot += ["con=null", "con0=fd:0,fd:1", "quiet", "loglevel=1"]
        shown = ""
        with contextlib.suppress(subprocess.TimeoutExpired):
            ran = [str(files / "usr/bin/linux.uml"), *boot]
            shown = subprocess.run(ran, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL).stdout
    if "booted" not in shown:
        pytest.skip(f"user-mode Linux does not start here: {shown[-300:]}")
    said = [line.split("said ")[1].strip() for line in shown.splitlines() if "said " in line]
    assert len(said) == 2 and said[0] in ("control group memory", "control group failed"), shown
    assert said[1] == "control group ok", shown
    assert "monet-" not in shown.partition("said")[2], "a group is left"
