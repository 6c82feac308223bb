"""Which paths of this machine a runtime needs to see inside a jail."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Command:
    """A program of this machine.

    Args:
        path: with every link followed.
        view: what has to be shown for it to run, beside the system's own folders.
    """

    path: Path
    view: tuple[Path, ...]

    @property
    def command(self) -> str:
        """The path as a word for sh."""
        return shlex.quote(str(self.path))


def find_command(*names: str) -> Command | None:
    """The first of these programs that the search path has."""
    found = next((found for name in names if (found := shutil.which(name))), None)
    return None if found is None else command_at(Path(found))


def command_at(path: Path) -> Command:
    """A program and the folder it is installed in: the parent of its `bin`, unless that holds more than programs.

    A home, its `.local` (keys and tokens lie below `share`) and the root are not shown; of them the program alone is.
    """
    real, home = path.resolve(), Path.home().resolve()
    prefix = real.parent.parent
    whole = real.parent.name in ("bin", "sbin") and prefix not in (Path("/"), Path("/opt"), home, home / ".local")
    return Command(real, (prefix,) if whole else (real,))


def python_interpreters() -> list[Command]:
    """Interpreters without an environment's packages: this one's own, then the system's."""
    base = Path(getattr(sys, "_base_executable", "") or sys.executable).resolve()
    found = [Command(base, (Path(sys.base_prefix).resolve(),))]
    for name in ("/usr/bin/python3", shutil.which("python3")):
        if name and os.access(name, os.X_OK) and Path(name).resolve() not in [known.path for known in found]:
            found.append(command_at(Path(name)))
    return found


def version_of(words: list[str]) -> str | None:
    """The first line that a program prints about itself; None if it cannot be run."""
    try:
        shown = subprocess.run(
            words, capture_output=True, text=True, errors="replace", timeout=60, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = [line.strip() for line in (shown.stdout + shown.stderr).splitlines() if line.strip()]
    return lines[0] if shown.returncode == 0 and lines else None
