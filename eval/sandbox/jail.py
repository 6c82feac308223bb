"""Isolates a program with bubblewrap (bwrap), the sandbox of Flatpak.

Inside, /program holds the program's files and is read-only. The program works in /box, which is in memory and has a
limited size. The only other visible files are the system's own programs, read-only. If the caller is root, the jail
switches to a user id that owns nothing before the program starts, because limits on the number of processes do not
apply to root.
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
# Runtimes keep links and settings in /etc; nothing else of that folder is shown.
_SETTINGS = ("alternatives", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "java*", "php*", "localtime")
# Not /dev/zero: a shared mapping of it is memory that belongs to no process.
_DEVICES = ("null", "full", "random", "urandom")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# Links to the working folder, unless a shown path is below it.
_TEMPORARY = "/tmp"
_ENVIRONMENT = {
    "PATH": PATH,
    "HOME": BOX,
    "TMPDIR": BOX,
    "LANG": "C.UTF-8",
    "LC_ALL": "C.UTF-8",
    "PYTHONHASHSEED": "0",
}


def version() -> str | None:
    """Version that bubblewrap prints; None if it is not on the search path or does not run."""
    try:
        shown = subprocess.run(
            [_bubblewrap(), "--version"], capture_output=True, text=True, errors="replace", timeout=60
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return shown.stdout.strip() or None if shown.returncode == 0 else None


def command(script: str, program: Path, view: Sequence[Path], limits: Limits, before: Sequence[str] = ()) -> list[str]:
    """Words of the command that runs a script in the jail.

    Args:
        script: script for sh; it works in /box.
        program: folder that is shown as /program.
        view: more files and folders of this machine to show, read-only.
        limits: limits of each process, and of /box.
        before: words to put before bubblewrap, as `monet.eval.sandbox.groups.entered` gives them.
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
    for parent in sorted(parents):  # bubblewrap would make them readable only by root
        words += ["--perms", "0755", "--dir", parent]
    for path in shown:
        words += ["--ro-bind", path, path]
    for link, target in _system()[1].items():
        words += ["--symlink", target, link]
    words += ["--proc", "/proc", "--dir", "/dev", "--ro-bind", str(program), PROGRAM]
    for device in _DEVICES:
        words += ["--dev-bind", f"/dev/{device}", f"/dev/{device}"]
    for path in ("/proc/keys", "/proc/key-users"):  # they list the caller's keys
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
    """A user id that owns nothing, to switch to before a program runs; None if we are not root or cannot switch."""
    if os.geteuid() != 0:
        return None
    try:
        mapped = [line.split() for line in Path("/proc/self/uid_map").read_text().splitlines()]
    except OSError:
        return 65534
    top = max(int(inside) + int(count) for inside, _, count in mapped)
    return random.SystemRandom().randrange(top // 2, top - 2) if top > 1000 else None


def _bubblewrap() -> str:
    return shutil.which("bwrap", path=f"{os.environ.get('PATH', '')}:{PATH}") or "bwrap"


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
