"""Real attacks by real programs: each program must end, do no harm, and leave nothing behind."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import uuid
from dataclasses import replace
from pathlib import Path

import pytest

from monet.errors import ConfigError
from monet.eval.sandbox import jail
from monet.eval.sandbox import sandbox as module
from monet.eval.sandbox.limits import Limits
from monet.eval.sandbox.processes import Tree, is_running, look_at_tree
from monet.eval.sandbox.sandbox import PROTECTIONS, Sandbox, open_sandbox
from monet.eval.sandbox.views import command_at, python_interpreters
from tests.eval.sandbox.conftest import attack

ROOT = Path(__file__).resolve().parents[3]
BOMB = "import os, time\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        time.sleep(0.01)\n"


def test_all_protections_hold_or_there_is_no_sandbox(sandbox):
    held, fault = module._attempts(sandbox.memory)
    assert held == dict.fromkeys(PROTECTIONS, True) and fault == ""


def test_a_harmless_program_passes_and_a_failing_one_fails(sandbox, python):
    assert attack(sandbox, python, "print('fine')").status == "ok"
    failed = attack(sandbox, python, "print('bad'); raise SystemExit(3)")
    assert (failed.status, failed.exit_code, failed.output) == ("failed", 3, "bad")
    assert sandbox.run({}, "exit 101").status == "compile error"
    assert sandbox.run({"x": "\udcff"}, "printf '\\377\\376'").output == "\ufffd\ufffd"


def test_endless_loop(sandbox, python):
    assert attack(sandbox, python, "while True: pass", cpu_seconds=1).status == "timeout"


def test_sleeper_and_one_that_becomes_another_program(sandbox, python):
    started = time.monotonic()
    assert attack(sandbox, python, "import time; time.sleep(600)", wall_seconds=4).status == "timeout"
    change = "import os; os.execv('/bin/sleep', ['sleep', '600'])"
    assert attack(sandbox, python, change, wall_seconds=4).status == "timeout"
    assert time.monotonic() - started < 300


def test_fork_bomb(sandbox, python):
    before = set(os.listdir("/proc"))
    outcome = attack(sandbox, python, BOMB, wall_seconds=4, processes=40)
    assert outcome.status in ("timeout", "memory")
    time.sleep(0.2)
    assert len({name for name in os.listdir("/proc") if name.isdigit()} - before) < 30
    shell = replace(sandbox, limits=replace(sandbox.limits, wall_seconds=4, processes=40))
    assert shell.run({}, "bomb() { bomb | bomb & }; bomb; sleep 60").status != "sandbox error"


def test_ten_gigabytes_at_once(sandbox, python):
    outcome = attack(sandbox, python, "x = bytearray(10 << 30)")
    assert outcome.status == "failed" and "MemoryError" in outcome.output
    whole = attack(sandbox, python, "import mmap; m = mmap.mmap(-1, 10 << 30, mmap.MAP_PRIVATE)")
    assert whole.status == "failed" and "Cannot allocate memory" in whole.output


def test_memory_of_many_processes_together(sandbox, python):
    program = (
        "import os, time\nfor _ in range(8):\n    if os.fork() == 0:\n"
        "        x = bytearray(os.urandom(1 << 20) * 96)\n        time.sleep(200)\ntime.sleep(200)\n"
    )
    assert attack(sandbox, python, program, memory_mb=256).status == "memory"


def test_network(sandbox, python):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        port = server.getsockname()[1]
        program = f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 5)"
        assert attack(sandbox, python, program).status == "failed"
        with pytest.raises(TimeoutError):
            server.accept()
    names = attack(sandbox, python, "import socket; print([name for _, name in socket.if_nameindex()])")
    assert names.output == "['lo']"
    resolve = attack(sandbox, python, "import socket; socket.getaddrinfo('localhost.example', 80)")
    assert resolve.status == "failed"


def test_abstract_sockets_of_this_machine_are_out_of_reach(sandbox, python):
    name = f"\0{uuid.uuid4().hex}"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(name)
        server.listen()
        outcome = attack(sandbox, python, f"import socket\nsocket.socket(socket.AF_UNIX).connect({name!r})")
    assert outcome.status == "failed" and "refused" in outcome.output


def test_huge_files(sandbox, python):
    one = attack(sandbox, python, "f = open('big', 'wb')\nwhile True: f.write(bytes(1 << 20))", file_mb=8)
    assert one.status == "failed" and "File too large" in one.output
    many = "n = 0\nwhile True:\n    open(f'f{n}', 'wb').write(bytes(4 << 20))\n    n += 1\n"
    full = attack(sandbox, python, many, file_mb=8, disk_mb=32)
    assert full.status == "failed" and "No space left" in full.output
    endless = "n = 0\nwhile True:\n    open(f'f{n}', 'w').close()\n    n += 1\n"
    empty = attack(sandbox, python, endless, disk_mb=32, cpu_seconds=3)
    assert empty.status in ("failed", "timeout")


def test_files_of_this_machine(sandbox, python, tmp_path, monkeypatch):
    secret = tmp_path / "secret"
    secret.write_text("a secret of this machine")
    tmp_path.chmod(0o777)
    home = Path.home()
    places = [str(secret), str(home / ".profile"), "/etc/shadow", "/etc/passwd", str(ROOT / "pyproject.toml")]
    program = f"for name in {places}:\n    try: print(open(name).read())\n    except OSError: pass\n"
    assert attack(sandbox, python, program).output == ""
    monkeypatch.setenv("HF_TOKEN", "a secret of the environment")
    shown = attack(sandbox, python, "import os; print(sorted(os.environ.items()), os.getcwd())")
    assert "secret" not in shown.output and str(home) not in shown.output
    written = [str(tmp_path / "new"), "/usr/new", "/new", "/program/new", __file__]
    program = f"for name in {written}:\n    try: open(name, 'w').write('x'); print(name)\n    except OSError: pass\n"
    assert attack(sandbox, python, program).output == ""
    assert list(tmp_path.iterdir()) == [secret]


def test_daemon(sandbox, python):
    program = (
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n"
        "        [os.close(n) for n in range(3)]\n        time.sleep(600)\n    os._exit(0)\n"
        "time.sleep(0.3)\nprint('left')"
    )
    outcome = attack(sandbox, python, program)
    assert outcome.status == "ok" and outcome.output == "left" and outcome.seconds < 200


def test_printing_forever(sandbox, python):
    outcome = attack(sandbox, python, "while True: print('x' * 1000)", output_kb=64)
    assert outcome.status == "output" and len(outcome.output) <= 2000
    held_open = attack(sandbox, python, "import os, time\nif os.fork() == 0: time.sleep(600)\n")
    assert held_open.status == "ok"


def test_signals_to_everybody(sandbox, python):
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        attack(sandbox, python, "import os\nos.kill(os.getppid(), 9)\nos.kill(-1, 9)")
        attack(sandbox, python, "import os\nif os.fork(): os.kill(0, 9)\nos.setsid()\nwhile True: pass")
        attack(sandbox, python, f"import os\nos.kill({other.pid}, 9)")
        attack(sandbox, python, f"import os\nos.killpg({os.getpid()}, 9)")
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_privileges(sandbox, python):
    program = "import os\nfor n in (0, 1):\n    try: os.setuid(n)\n    except OSError: pass\nprint(open('/etc/shadow'))"
    assert attack(sandbox, python, program).status == "failed"
    mount = sandbox.run({}, "mount -t tmpfs x /usr; mkdir m && mount -t tmpfs x m")
    assert mount.status == "failed"


@pytest.mark.parametrize("after_seconds", [0, 0.01, 0.03, 1])
def test_a_killed_runner_takes_its_program_along(sandbox, python, after_seconds):
    """Kill at every moment of the jail's start; the command line of its first process holds the marker."""
    marker = uuid.uuid4().hex
    halves = marker[:16], marker[16:]  # the runner's own command line does not hold the whole marker
    code = (
        "from pathlib import Path\n"
        "from monet.eval.sandbox.limits import Limits\nfrom monet.eval.sandbox.sandbox import Sandbox\n"
        f"box = Sandbox('', {sandbox.memory!r}, Limits(cpu_seconds=500, wall_seconds=500))\n"
        f"word = '{halves[0]}' + '{halves[1]}'\n"
        f"box.run({{}}, '{python.command} -S -c \"import time; time.sleep(500)\" ' + word, "
        f"[Path(path) for path in {[str(path) for path in python.view]}])"
    )
    runner = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    deadline = time.monotonic() + 200
    while not is_running(marker) and time.monotonic() < deadline:
        time.sleep(0.001)
    assert is_running(marker)
    time.sleep(after_seconds)
    runner.send_signal(signal.SIGKILL)
    runner.wait()
    deadline = time.monotonic() + 60
    while is_running(marker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(marker)


def test_only_its_own_folder_can_be_written(sandbox):
    """Check the mounts themselves, because another user id would hide a wrong mount."""
    mounts = [line.split() for line in sandbox.run({}, "cat /proc/mounts").output.splitlines()]
    writable = {where for _, where, _, options, *_ in mounts if options.split(",")[0] == "rw"}
    assert {"/box", "/proc"} <= writable and all(where in ("/box", "/proc") or where.startswith("/dev/")
                                                 for where in writable), writable  # fmt: skip
    setuid = {where for _, where, kind, options, *_ in mounts if "nosuid" not in options.split(",")}
    # Devices, and /dev/null over the lists of keys: none of them can be executed.
    assert all(where.startswith(("/dev/", "/proc/key")) for where in setuid), setuid


def test_mounts_on_top_of_shown_folders_cannot_be_written_either(sandbox, tmp_path):
    inner = tmp_path / "a folder" / "inner"
    inner.mkdir(parents=True)
    code = (
        "import os, sys\nfrom pathlib import Path\n"
        "from monet.eval.sandbox.sandbox import Sandbox\nfrom monet.eval.sandbox.limits import Limits\n"
        "box = Sandbox('', 'watched', Limits(wall_seconds=200))\n"
        "print(box.run({}, f'ls {sys.argv[1]!r} && touch {sys.argv[1]!r}/new', [Path(sys.argv[1]).parent]).output)\n"
        "print(os.listdir(sys.argv[1]))"
    )
    mount = f"mount -t tmpfs x '{inner}' && echo 1 > '{inner}/there' && chmod 777 '{inner}' && exec \"$@\""
    mapped = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    words = ["unshare", *mapped, "--mount", "sh", "-c", mount, "sh", sys.executable, "-c", code]
    shown = subprocess.run(
        [*words, inner], capture_output=True, text=True, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    first, *_, last = shown.stdout.splitlines()
    assert (first, last) == ("there", "['there']"), shown


def test_of_a_home_only_the_program_is_shown(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for folder, whole in [("bin", False), (".local/bin", False), ("node/bin", True)]:
        program = tmp_path / folder / "node"
        program.parent.mkdir(parents=True)
        program.write_text("")
        assert command_at(program).view == ((program.parent.parent if whole else program).resolve(),)


def test_a_folder_that_holds_more_than_an_installation_is_not_shown(tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "lib").mkdir()
    program = tmp_path / "bin" / "lua"
    program.write_text("")
    assert command_at(program).view == (tmp_path.resolve(),)
    (tmp_path / "colleague").mkdir()
    assert command_at(program).view == (program.resolve(), (tmp_path / "lib").resolve())


@pytest.mark.skipif(not os.access(sys.base_prefix, os.W_OK), reason="the interpreter's folder cannot be written")
def test_of_a_python_installed_in_a_home_only_its_own_files_are_shown(sandbox, monkeypatch):
    secret = Path(sys.base_prefix, f"monet-test-{uuid.uuid4().hex}")
    monkeypatch.setenv("HOME", sys.base_prefix)
    secret.write_text("a secret beside an installation")
    try:
        first = python_interpreters()[0]
        assert not any(secret.is_relative_to(shown) for shown in first.view)
        program = f"import os, json, ctypes, ssl; print(os.path.exists({str(secret)!r}))"
        assert attack(sandbox, first, program).output == "False"
    finally:
        secret.unlink()


def test_an_interpreter_whose_library_cannot_be_looked_at(monkeypatch):
    monkeypatch.setattr(sysconfig, "get_config_var", lambda name: "/" + "x" * 5000)
    assert python_interpreters()[0].view


def test_nothing_is_left_in_the_temporary_folder(sandbox, python, tmp_path, monkeypatch):
    tmp_path.chmod(0o755)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert attack(sandbox, python, "open('x', 'w').write('y')").status == "ok"
    assert list(tmp_path.iterdir()) == []


def test_a_machine_without_bubblewrap_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(jail, "PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"bubblewrap \(bwrap\) is missing.*apt install bubblewrap.*dpkg-deb -x"):
        open_sandbox()


def test_a_jail_that_leaks_is_refused(sandbox, monkeypatch):
    whole = jail.command
    monkeypatch.setattr(jail, "command", lambda *given: [word for word in whole(*given) if word != "--unshare-net"])
    with pytest.raises(
        ConfigError, match=r"bubblewrap .*: these protections do not hold: network\. Install bubblewrap 0.8"
    ):
        open_sandbox()


def test_a_jail_that_does_not_start_says_nothing_about_a_program(monkeypatch):
    broken = Sandbox("", "watched", Limits(wall_seconds=30))
    monkeypatch.setattr(jail, "command", lambda *_: ["/bin/sh", "-c", "echo no such thing; exit 0"])
    outcome = broken.run({}, "exit 0")
    assert (outcome.status, outcome.output) == ("sandbox error", "no such thing")
    with pytest.raises(ConfigError, match=r"no such thing.*User namespaces must be allowed"):
        open_sandbox()
    monkeypatch.setattr(jail, "command", lambda *_: ["no-such-program-anywhere"])
    assert broken.run({}, "exit 0").status == "sandbox error"


def test_a_starved_program_gets_more_time_and_is_then_a_timeout(sandbox, monkeypatch):
    short = replace(sandbox, limits=replace(sandbox.limits, wall_seconds=1))
    monkeypatch.setattr(module, "PATIENCE", 3)
    starved, slow, starves_itself = Tree({}, 0, 0.1, 100, 1), Tree({}, 0, 100, 100, 1), Tree({}, 0, 0.1, 100, 10_000)
    for tree in (starved, slow, starves_itself):
        monkeypatch.setattr(module, "look_at_tree", lambda _, tree=tree: tree)
        outcome = short.run({}, "sleep 60")
        assert (outcome.status, outcome.seconds > 3) == ("timeout", tree is starved)
    monkeypatch.setattr(module, "look_at_tree", lambda _: starved)
    monkeypatch.setattr(module, "PATIENCE", 100)
    assert short.run({}, "sleep 1.5; exit 3").status == "failed"
    monkeypatch.setattr(module, "available_memory", lambda: 0)
    assert sandbox.run({}, "sleep 60").status == "sandbox error"


def test_time_to_build_the_jail_is_not_the_programs(sandbox, monkeypatch):
    whole = jail.command
    slowly = lambda *given: ["/bin/sh", "-c", 'sleep 1.5; exec "$@"', "sh", *whole(*given)]  # noqa: E731
    monkeypatch.setattr(jail, "command", slowly)
    short = replace(sandbox, limits=replace(sandbox.limits, wall_seconds=1))
    outcome = short.run({}, "sleep 60")
    assert outcome.status == "timeout" and outcome.seconds >= 1
    assert short.run({}, "exit 0").status == "ok"
    monkeypatch.setattr(module, "START_SECONDS", 0.5)
    assert short.run({}, "exit 0").status == "sandbox error"


def test_memory_of_a_tree_counts_children():
    code = "import os, time\nif os.fork() == 0:\n    x = bytearray(os.urandom(1) * (64 << 20))\n"
    child = subprocess.Popen([sys.executable, "-S", "-c", code + "time.sleep(60)"], start_new_session=True)
    try:
        deadline = time.monotonic() + 100
        while look_at_tree(child.pid).memory(0) < 64 << 20 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert 64 << 20 <= look_at_tree(child.pid).memory(0) < 200 << 20
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


@pytest.mark.parametrize("field", ["cpu_seconds", "wall_seconds", "memory_mb", "processes", "output_kb"])
def test_limits_out_of_range(field):
    with pytest.raises(ConfigError, match=f"limit {field} must be above 0, got 0"):
        Limits(**{field: 0})
