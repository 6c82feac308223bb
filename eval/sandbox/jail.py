"""How a program is shut in: bubblewrap (bwrap), the sandbox of Flatpak.

Inside, the program's files lie in /program, which cannot be written. The program works in /box, which lies in memory
and has a bounded size. Nothing else of the machine is there but the system's own programs, read-only. A caller that is
root becomes a user id that owns nothing before the program starts, because limits on the number of processes do not
bind root.
"""

from __future__ import annotations

import functools
import os
import platform
import random
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from monet.eval.sandbox.launch import FILTER_FD, filter_program
from monet.eval.sandbox.limits import MEBIBYTE, Limits

PROGRAM = "/program"
BOX = "/box"
_SYSTEM = ("usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32")
# Runtimes keep links and settings there; nothing else of that folder is shown.
_SETTINGS = ("alternatives", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "java*", "php*", "localtime")
# Not zero: a shared mapping of it is memory that belongs to no process.
_DEVICES = ("null", "full", "random", "urandom")
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# Leads to the working folder, unless something that is shown lies below it.
_TEMPORARY = "/tmp"
_ENVIRONMENT = {
    "PATH": _PATH,
    "HOME": BOX,
    "TMPDIR": BOX,
    "LANG": "C.UTF-8",
    "LC_ALL": "C.UTF-8",
    "PYTHONHASHSEED": "0",
}


def version() -> str | None:
    """What bubblewrap says of its version; None if it is not on the search path or does not run."""
    try:
        shown = subprocess.run(
            [_bubblewrap(), "--version"], capture_output=True, text=True, errors="replace", timeout=60
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return shown.stdout.strip() or None if shown.returncode == 0 else None


def command(script: str, program: Path, view: Sequence[Path], limits: Limits, before: Sequence[str] = ()) -> list[str]:
    """What to start so that a script runs shut in.

    Args:
        script: for sh; works in /box.
        program: folder that is shown as /program.
        view: more files and folders of this machine to show, read-only.
        limits: of each process, and of /box.
        before: words that start bubblewrap in some other way, as `monet.eval.sandbox.groups.entered` gives them.
    """
    user = _foreign_user()
    words = [sys.executable, "-I", "-S", str(Path(__file__).with_name("launch.py")), str(os.getpid())]
    words += [*before, _bubblewrap()]
    words += ["--die-with-parent", "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--clearenv"]
    words += [word for name, value in _ENVIRONMENT.items() for word in ("--setenv", name, value)]
    if os.geteuid() != 0:
        words += ["--unshare-user", "--disable-userns", "--cap-drop", "ALL"]
    else:
        words += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID", "--cap-add", "CAP_SETPCAP"]
    shown = _shown(view)
    parents = {str(parent) for path in shown for parent in Path(path).parents} - {"/"}
    for parent in sorted(parents):  # bubblewrap would make them open to root only
        words += ["--perms", "0755", "--dir", parent]
    for path in shown:
        words += ["--ro-bind", path, path]
    for link, target in _system()[1].items():
        words += ["--symlink", target, link]
    words += ["--proc", "/proc", "--dir", "/dev", "--ro-bind", str(program), PROGRAM]
    for device in _DEVICES:
        words += ["--dev-bind", f"/dev/{device}", f"/dev/{device}"]
    for path in ("/proc/keys", "/proc/key-users"):  # they tell of the caller's keys
        words += ["--ro-bind", "/dev/null", path] if os.path.exists(path) else []
    words += ["--perms", "1777", "--size", str(limits.disk_mb * MEBIBYTE), "--tmpfs", BOX]
    words += ["--symlink", BOX.removeprefix("/"), _TEMPORARY] if _TEMPORARY not in parents else []
    words += ["--seccomp", str(FILTER_FD)] if filter_program(platform.machine()) else []
    words += ["--remount-ro", "/", "--chdir", BOX, "--"]
    if user is not None:
        words += ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"]
        words += ["--no-new-privs", "--inh-caps=-all", "--bounding-set=-all"]
    words += ["prlimit", *(f"--{name}={soft}:{hard}" for name, (soft, hard) in limits.rlimits.items())]
    return [*words, "/bin/sh", "-c", script]


def _foreign_user() -> int | None:
    """A user id that owns nothing, to become before a program runs; None where the process is not root, or cannot."""
    if os.geteuid() != 0:
        return None
    try:
        mapped = [line.split() for line in Path("/proc/self/uid_map").read_text().splitlines()]
    except OSError:
        return 65534
    top = max(int(inside) + int(count) for inside, _, count in mapped)
    return random.SystemRandom().randrange(top // 2, top - 2) if top > 1000 else None


def _bubblewrap() -> str:
    return shutil.which("bwrap", path=f"{os.environ.get('PATH', '')}:{_PATH}") or "bwrap"


@functools.cache
def _system() -> tuple[list[str], dict[str, str]]:
    """Folders and files of the system to show, and links to make."""
    links = {f"/{name}": os.readlink(f"/{name}") for name in _SYSTEM if os.path.islink(f"/{name}")}
    folders = [f"/{name}" for name in _SYSTEM if os.path.isdir(f"/{name}") and not os.path.islink(f"/{name}")]
    settings = [str(path) for pattern in _SETTINGS for path in Path("/etc").glob(pattern)]
    return folders + settings, links


def _shown(view: Sequence[Path]) -> list[str]:
    folders, _ = _system()
    return folders + sorted({str(path) for path in view if not any(path.is_relative_to(at) for at in folders)})
