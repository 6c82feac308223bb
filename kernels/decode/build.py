"""Builds and loads the C++ kernels of this folder with torch's extension loader: once per machine, at first use.

`MONET_CPP=0` in the environment disables them. If no compiler is found, they are disabled with one warning. The ops
then run as plain torch.
"""

from __future__ import annotations

import fcntl
import functools
import grp
import hashlib
import logging
import os
import platform
import pwd
import re
import stat
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

_log = logging.getLogger("monet.kernels")

FOLDER = Path(__file__).parent
_SOURCES = ("decode.cpp",)
_HEADERS = ("gathered.h", "mixing.h")
# The flags that torch's own kernels use for a processor with this capability. -march=native is not used: machines with
# different processors may share the folder of built extensions.
_INSTRUCTIONS = {
    "AVX512": ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma"),
    "AVX2": ("-mavx2", "-mfma"),
}


@functools.cache
def has_cpp() -> bool:
    """Whether the C++ kernels are loaded; the first call builds them if no earlier run did (about ten seconds)."""
    wanted = os.environ.get("MONET_CPP", "1")
    if wanted not in ("0", "1"):
        raise ValueError(f"MONET_CPP={wanted!r}; set it to 1, or to 0 to run without the C++ kernels")
    if wanted == "0" or os.environ.get("MONET_KERNELS") == "torch":
        return False
    try:
        load()
    except Exception as error:  # a compiler can fail in many ways; no failure may stop the model
        reason = str(error).strip().splitlines() or [type(error).__name__]
        warnings.warn(
            f"Monet's C++ kernels could not be built, so decoding on the CPU is slower: {reason[0][:200]}. Install g++ "
            "and ninja (pip install ninja), or set MONET_CPP=0 to silence this warning.",
            stacklevel=2,
        )
        return False
    return True


def load() -> None:
    """Build the C++ ops if this machine has no such build yet, and load them.

    Raises:
        RuntimeError: the compiler fails.
        PermissionError: another user could have written the library.
    """
    # Imported here because it imports setuptools, which nothing else needs.
    from torch.utils import cpp_extension

    capability = torch.backends.cpu.get_cpu_capability()
    # OpenMP is not linked: its symbols come from the runtime that torch has loaded, so only one thread pool exists.
    flags = ["-O3", "-fopenmp", "-Wno-psabi", *_INSTRUCTIONS.get(capability, ())]
    name = library_name(capability, flags)
    folder = Path(os.path.realpath(cpp_extension._get_build_directory(name, verbose=False)))
    _refuse_foreign(folder)
    with _opened_lock(folder / "monet.lock") as lock:
        # torch waits forever for a lock file left by a killed build; this lock is released when its process ends.
        fcntl.flock(lock, fcntl.LOCK_EX)
        (folder / "lock").unlink(missing_ok=True)
        if not (folder / f"{name}.so").exists():
            _log.info("building the C++ kernels in %s", folder)
        sources = [str(FOLDER / source) for source in _SOURCES]
        with _own_programs_on_path():
            cpp_extension.load(
                name,
                sources,
                extra_cflags=flags,
                build_directory=str(folder),
                with_cuda=False,
                is_python_module=False,
            )


def _refuse_foreign(folder: Path) -> None:
    """Refuse a folder where another user can place, or has placed, the library that we load as our own code.

    Args:
        folder: where the library is built and loaded from, without symbolic links in its path.
    Raises:
        PermissionError: the folder, a file in it or a folder above it belongs to another user or can be written by one.
    """
    for path in (folder, *sorted(folder.rglob("*"))):
        _refuse_unless_private(path, path.lstat(), folder)
    for path in folder.parents[:-1]:
        about = path.lstat()
        if not about.st_mode & stat.S_ISVTX:  # in a sticky folder, other users cannot rename our files
            _refuse_unless_private(path, about, folder)


def _refuse_unless_private(path: Path, about: os.stat_result, folder: Path) -> None:
    if about.st_uid not in (os.geteuid(), 0):
        reason = f"belongs to user {about.st_uid}"
    elif about.st_mode & stat.S_IWOTH or (about.st_mode & stat.S_IWGRP and not _is_own_group(about.st_gid)):
        reason = f"can be written by others (mode {stat.S_IMODE(about.st_mode):04o})"
    elif not (stat.S_ISREG(about.st_mode) or stat.S_ISDIR(about.st_mode)):
        reason = "is neither file nor folder"
    else:
        return
    raise PermissionError(
        f"{path} {reason}, so the library built in {folder} is not safe to load; set TORCH_EXTENSIONS_DIR to a folder "
        "that only you can write"
    )


def _is_own_group(group: int) -> bool:
    """Whether only this user is in a group, as in the private group that many systems give each user."""
    try:
        user, entry = pwd.getpwuid(os.geteuid()), grp.getgrgid(group)
    except KeyError:
        return False
    return entry.gr_gid == user.pw_gid and entry.gr_name == user.pw_name and set(entry.gr_mem) <= {user.pw_name}


@contextmanager
def _opened_lock(path: Path) -> Iterator[int]:
    """Open a file to lock, and create it if it is missing. Symbolic links are refused; the content is not changed."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _own_programs_on_path() -> Iterator[None]:
    """Let torch find ninja in an environment that is not activated."""
    before = os.environ.get("PATH", os.defpath)
    os.environ["PATH"] = f"{before}{os.pathsep}{Path(sys.executable).parent}"
    try:
        yield
    finally:
        os.environ["PATH"] = before


def library_name(capability: str, flags: list[str]) -> str:
    """Name a build by everything it depends on, so that a build from other sources or another torch is never loaded."""
    digest = hashlib.sha256(repr((torch.__version__, platform.machine(), flags)).encode())
    for source in (*_SOURCES, *_HEADERS):
        digest.update((FOLDER / source).read_bytes())
    return re.sub(r"\W", "_", f"monet_decode_{capability.lower()}_{digest.hexdigest()[:16]}")
