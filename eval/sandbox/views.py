"""Finds the paths of this machine that a runtime needs to see inside a jail."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

# Names, or beginnings of names, of the entries that an installation makes in its own folder.
_INSTALLED = (
    "bin", "sbin", "lib", "include", "share", "etc", "conf", "jmods", "legal", "man", "ssl", "mkspecs", "libexec",
    "x86_64-", "aarch64-", "conda-meta", "compiler_compat", "condabin", "shell", "release", "license", "licence",
    "readme", "notice", "copying", "changelog", "changes", "news", "version", "assembly_exception", "third",
)  # fmt: skip
_LIBRARIES = ("lib", "lib32", "lib64", "libexec", "include")


@dataclass(frozen=True)
class Command:
    """A program of this machine.

    Args:
        path: path with every link followed.
        view: paths that it needs to run, in addition to the system's own folders.
    """

    path: Path
    view: tuple[Path, ...]

    @property
    def command(self) -> str:
        """The path as a word for sh."""
        return shlex.quote(str(self.path))


def find_command(*names: str) -> Command | None:
    """The first of these programs on the search path."""
    found = next((found for name in names if (found := shutil.which(name))), None)
    return None if found is None else command_at(Path(found))


def command_at(path: Path) -> Command:
    """A program and its installation folder: the parent of its `bin`, unless that folder may hold more than programs.

    The folder is shown if it is not the root, a home or its `.local` (keys and tokens are in `share`), and holds only
    entries that an installation makes. Otherwise only the program is shown, with the libraries next to its `bin` if the
    folder is not a home.
    """
    real, home = path.resolve(), Path.home().resolve()
    prefix = real.parent.parent
    if real.parent.name not in ("bin", "sbin") or prefix in (Path("/"), home, home / ".local"):
        return Command(real, (real,))
    with contextlib.suppress(OSError):  # a folder that cannot be listed is not shown either way
        if all(entry.name.lower().startswith(_INSTALLED) for entry in prefix.iterdir()):
            return Command(real, (prefix,))
    return Command(real, (real, *(folder for name in _LIBRARIES if (folder := prefix / name).is_dir())))


def python_interpreters() -> list[Command]:
    """Interpreters without the packages of an environment: this interpreter's own, then the system's."""
    base = Path(getattr(sys, "_base_executable", "") or sys.executable).resolve()
    library = Path(sysconfig.get_config_var("LIBDIR") or "/none", sysconfig.get_config_var("INSTSONAME") or "none")
    bases = {"base": sys.base_prefix, "installed_base": sys.base_prefix}
    bases |= {"platbase": sys.base_exec_prefix, "installed_platbase": sys.base_exec_prefix}
    parts = [base, *(Path(sysconfig.get_path(name, vars=bases)) for name in ("stdlib", "platstdlib")), library]
    shown = dict.fromkeys(part.resolve() for part in parts if os.path.exists(part))
    # Programs look for a library by its name, which may be a link.
    found = [Command(base, tuple(dict.fromkeys([*shown, *([library] if os.path.exists(library) else [])])))]
    for name in ("/usr/bin/python3", shutil.which("python3")):
        if name and os.access(name, os.X_OK) and Path(name).resolve() not in [known.path for known in found]:
            found.append(command_at(Path(name)))
    return found


def version_of(words: list[str]) -> str | None:
    """The first line of a program's version message; None if it cannot be run."""
    try:
        shown = subprocess.run(
            words, capture_output=True, text=True, errors="replace", timeout=60, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = [line.strip() for line in (shown.stdout + shown.stderr).splitlines() if line.strip()]
    return lines[0] if shown.returncode == 0 and lines else None
