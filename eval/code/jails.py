"""How a program is shut in: bubblewrap, else namespaces by unshare(1), else resource limits alone.

Each jail turns a shell script into the command that runs it inside. Inside, the program's files lie in one folder that
cannot be written, and it works in another one of bounded size; nothing else of the machine is there but the system's
own programs, read-only. Whoever runs as root becomes a user id that owns nothing before the program starts, for
limits on the number of processes do not bind root.
"""

from __future__ import annotations

import functools
import os
import platform
import random
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from monet.eval.code.launch import FILTER_FD, filter_program
from monet.eval.code.limits import MEBIBYTE, Limits

_SYSTEM = ("usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32")
# Runtimes keep links and settings there; nothing else of that folder is shown.
_SETTINGS = ("alternatives", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "java*", "php*", "localtime")
# Not zero: a shared mapping of it is memory that belongs to no process.
_DEVICES = ("null", "full", "random", "urandom")
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_INODES = 20_000
# Leads to the working folder, unless something that is shown lies below it.
_TEMPORARY = "/tmp"


@dataclass(frozen=True)
class Places:
    """Folders as the program sees them.

    Args:
        program: its files, not to be written.
        box: empty, to work in.
    """

    program: str
    box: str


class Jail(Protocol):
    """A way to run a shell script shut in.

    Attributes:
        name: with the version of its tool.
        keeps: its first process kills what a run leaves, and wants SIGTERM and a moment for it.
    """

    name: str
    keeps: bool

    def places(self, folder: Path) -> Places:
        """Folders inside, for a run whose folder outside has a sub-folder `program`."""
        ...

    def command(self, script: str, folder: Path, view: Sequence[Path], limits: Limits) -> list[str]:
        """What to start: runs `script` by sh under the limits; `view` are more paths to show read-only."""
        ...


def environment(places: Places) -> dict[str, str]:
    """All that a program finds in its environment."""
    home = places.box
    return {"PATH": _PATH, "HOME": home, "TMPDIR": home, "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "0"}


def foreign_user() -> int | None:
    """A user id that owns nothing, to become before a program runs; None where the process is not root, or cannot."""
    if os.geteuid() != 0:
        return None
    try:
        mapped = [line.split() for line in Path("/proc/self/uid_map").read_text().splitlines()]
    except OSError:
        return 65534
    top = max(int(inside) + int(count) for inside, _, count in mapped)
    return random.SystemRandom().randrange(top // 2, top - 2) if top > 1000 else None


def _tool(name: str) -> str:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:{_PATH}") or name


def _version(tool: str) -> str:
    try:
        shown = subprocess.run([_tool(tool), "--version"], capture_output=True, text=True, errors="replace", timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return next(iter(shown.stdout.split()[-1:]), "")


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


def _limited(limits: Limits) -> list[str]:
    return [_tool("prlimit"), *(f"--{name}={soft}:{hard}" for name, (soft, hard) in limits.rlimits.items())]


def _unprivileged(user: int | None) -> list[str]:
    becomes = [] if user is None else [f"--reuid={user}", f"--regid={user}", "--clear-groups"]
    return [_tool("setpriv"), *becomes, "--no-new-privs", "--inh-caps=-all", "--bounding-set=-all"]


def _hidden() -> list[str]:
    """Files of /proc that tell of the caller's keys."""
    return [path for path in ("/proc/keys", "/proc/key-users") if os.path.exists(path)]


def _launched(where: str) -> list[str]:
    return [sys.executable, "-I", "-S", str(Path(__file__).with_name("launch.py")), where]


class Bubblewrap:
    """bwrap(1): the sandbox of Flatpak."""

    keeps = False

    def __init__(self) -> None:
        self.name = f"bubblewrap {_version('bwrap')}".strip()

    def places(self, folder: Path) -> Places:
        return Places("/program", "/box")

    def command(self, script: str, folder: Path, view: Sequence[Path], limits: Limits) -> list[str]:
        user = foreign_user()
        words = [
            *_launched(str(os.getpid())),
            _tool("bwrap"),
            "--die-with-parent",
            "--unshare-ipc",
            "--unshare-pid",
            "--unshare-net",
            "--unshare-uts",
        ]
        if os.geteuid() != 0:
            words += ["--unshare-user", "--cap-drop", "ALL"]
        else:
            words += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID", "--cap-add", "CAP_SETPCAP"]
        shown = _shown(view)
        parents = {str(parent) for path in shown for parent in Path(path).parents} - {"/"}
        for parent in sorted(parents):  # made as a matter of course they would be open to root alone
            words += ["--perms", "0755", "--dir", parent]
        for path in shown:
            words += ["--ro-bind", path, path]
        for link, target in _system()[1].items():
            words += ["--symlink", target, link]
        words += ["--proc", "/proc", "--dir", "/dev", "--ro-bind", str(folder / "program"), "/program"]
        for device in _DEVICES:
            words += ["--dev-bind", f"/dev/{device}", f"/dev/{device}"]
        words += [word for path in _hidden() for word in ("--ro-bind", "/dev/null", path)]
        words += ["--perms", "1777", "--size", str(limits.disk_mb * MEBIBYTE), "--tmpfs", "/box"]
        words += [*(["--symlink", "box", "/tmp"] if _TEMPORARY not in parents else [])]
        words += ["--seccomp", str(FILTER_FD)] if filter_program(platform.machine()) else []
        words += ["--remount-ro", "/", "--chdir", "/box", "--"]
        drop = [] if user is None else _unprivileged(user)
        return [*words, *drop, *_limited(limits), "/bin/sh", "-c", script]


class Namespaces:
    """unshare(1), mount(8) and setpriv(1) of util-linux: a root of its own with what is shown bound into it."""

    keeps = False

    def __init__(self) -> None:
        self.name = f"unshare (util-linux {_version('unshare')})"

    def places(self, folder: Path) -> Places:
        return Places("/program", "/box")

    def command(self, script: str, folder: Path, view: Sequence[Path], limits: Limits) -> list[str]:
        root = folder / "root"
        root.mkdir(exist_ok=True)
        inside = [*_unprivileged(foreign_user()), *_limited(limits), "/bin/sh", "-c", script]
        mapped = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
        spaces = ["--mount", "--net", "--pid", "--ipc", "--uts", "--fork", "--kill-child"]
        build = self._build(root, folder / "program", view, limits)
        filtered = [*_launched("inside"), "/bin/sh", "-c", f"{build}\nexec {shlex.join(inside)}"]
        return [*_launched(str(os.getpid())), _tool("unshare"), *mapped, *spaces, *filtered]

    def _build(self, root: Path, program: Path, view: Sequence[Path], limits: Limits) -> str:
        """The script that makes the root: nothing that is not bound here exists inside."""
        lines = ["set -e", f"mount -t tmpfs -o size=1m,mode=755,nosuid,nodev monet {shlex.quote(str(root))}"]
        lines += [f"cd {shlex.quote(str(root))}", "mkdir -p proc dev box"]
        binds = [*((path, path) for path in _shown(view)), (str(program), "/program")]
        for source, target in binds:
            inside = shlex.quote("." + target)
            made = f"mkdir -p {inside}" if os.path.isdir(source) else f'mkdir -p "$(dirname {inside})"; touch {inside}'
            lines += [made, f"mount --rbind {shlex.quote(source)} {inside}"]
            for at in [source, *_mounts_below(source)]:  # a remount reaches one mount, not those on top of it
                where = shlex.quote("." + target + at.removeprefix(source))
                lines += [f"mount -o remount,bind,ro,nosuid,nodev{_locked(at)} {where}"]
        lines += [f"ln -s {shlex.quote(target)} .{link}" for link, target in _system()[1].items()]
        lines += [f"touch dev/{name}; mount --bind /dev/{name} dev/{name}" for name in _DEVICES]
        lines += [
            "mount -t proc -o nosuid,nodev,noexec proc proc",
            *(f"mount --bind dev/null .{path}; mount -o remount,bind,ro .{path}" for path in _hidden()),
            # System V shared memory lives on without a process, and nobody needs it
            "echo 0 2> dev/null > proc/sys/kernel/shmall || true",
            f"mount -t tmpfs -o size={limits.disk_mb}m,nr_inodes={_INODES},mode=1777,nosuid,nodev box box",
            "test -e tmp || ln -s box tmp",
            "mount -o remount,bind,ro,nosuid,nodev .",
            "pivot_root . .",
            "umount -l .",
            "cd /box",
        ]
        return "\n".join(lines)


def _mounts_below(folder: str) -> list[str]:
    """Places below a folder that something else is mounted on, the outer ones first."""
    try:
        table = Path("/proc/self/mountinfo").read_text(errors="surrogateescape")
    except OSError:
        return []
    # the kernel writes a space, say, as \\040
    places = {
        re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), line.split()[4]) for line in table.splitlines()
    }
    # one that cannot be seen is out of the program's reach, too
    return sorted(place for place in places if place.startswith(folder.rstrip("/") + "/") and os.path.exists(place))


def _locked(source: str) -> str:
    """Options of the file system below a path that a remount must repeat: only the privileged may lift them."""
    flags = os.statvfs(source).f_flag
    names = ("noexec", "noatime", "nodiratime", "relatime")
    return "".join(f",{name}" for name in names if flags & getattr(os, f"ST_{name.upper()}", 0))


class LimitsOnly:
    """Resource limits and another user id (for root), and a keeper that kills whatever the program leaves behind.

    Network and files are as open as to any process of that user.
    """

    name = "resource limits only"
    keeps = True

    def places(self, folder: Path) -> Places:
        return Places(str(folder / "program"), str(folder / "box"))

    def command(self, script: str, folder: Path, view: Sequence[Path], limits: Limits) -> list[str]:
        user = foreign_user()
        box = folder / "box"
        box.mkdir(exist_ok=True)
        if user is not None:
            os.chown(box, user, user)
            folder.chmod(0o755)
        rlimits = [f"{name}={soft}:{hard}" for name, (soft, hard) in limits.rlimits.items()]
        keeper = [sys.executable, "-I", "-S", str(Path(__file__).with_name("keeper.py"))]
        return [*keeper, str(-1 if user is None else user), str(box), ",".join(rlimits), script]


JAILS: tuple[type[Jail], ...] = (Bubblewrap, Namespaces)
