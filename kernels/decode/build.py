"""Builds and loads the C++ kernels of this folder: once a machine, at first use, with torch's own extension loader.

`MONET_CPP=0` in the environment leaves them out; so does a missing compiler, with one warning. The ops then run as
plain torch.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import logging
import os
import platform
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

_log = logging.getLogger("monet.kernels")

_FOLDER = Path(__file__).parent
_SOURCES = ("decode.cpp",)
_HEADERS = ("gathered.h", "mixing.h")
# What torch's own kernels assume of a processor with this capability. Not -march=native: the folder of built
# extensions may be shared by machines with different processors.
_INSTRUCTIONS = {
    "AVX512": ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma"),
    "AVX2": ("-mavx2", "-mfma"),
}


@functools.cache
def has_cpp() -> bool:
    """Whether the C++ kernels are loaded; the first call builds them if no earlier run has (about ten seconds)."""
    wanted = os.environ.get("MONET_CPP", "1")
    if wanted not in ("0", "1"):
        raise ValueError(f"MONET_CPP={wanted!r}; use 1, or 0 to run without the C++ kernels")
    if wanted == "0" or os.environ.get("MONET_KERNELS") == "torch":
        return False
    try:
        _load()
    except Exception as error:  # a compiler fails in many ways, and none of them may stop the model
        reason = str(error).strip().splitlines() or [type(error).__name__]
        warnings.warn(
            f"Monet's C++ kernels could not be built, so decoding on the CPU is slower: {reason[0][:200]}. They need "
            "g++ and ninja (pip install ninja); MONET_CPP=0 silences this warning.",
            stacklevel=2,
        )
        return False
    return True


def _load() -> None:
    # Imported here: it brings setuptools, which nothing else needs.
    from torch.utils import cpp_extension

    capability = torch.backends.cpu.get_cpu_capability()
    # Without linking OpenMP: its symbols come from the runtime that torch has loaded, so there is one pool of threads.
    flags = ["-O3", "-fopenmp", "-Wno-psabi", *_INSTRUCTIONS.get(capability, ())]
    name = _name(capability, flags)
    folder = Path(cpp_extension._get_build_directory(name, verbose=False))
    with open(folder.with_suffix(".lock"), "w") as lock:
        # torch waits forever for a lock file that a killed build left behind; this lock ends with its process.
        fcntl.flock(lock, fcntl.LOCK_EX)
        (folder / "lock").unlink(missing_ok=True)
        if not (folder / f"{name}.so").exists():
            _log.info("building the C++ kernels in %s", folder)
        sources = [str(_FOLDER / source) for source in _SOURCES]
        with _own_programs_on_path():
            cpp_extension.load(name, sources, extra_cflags=flags, with_cuda=False, is_python_module=False)


@contextmanager
def _own_programs_on_path() -> Iterator[None]:
    """Lets torch find the ninja of an environment that was not activated."""
    before = os.environ.get("PATH", os.defpath)
    os.environ["PATH"] = f"{before}{os.pathsep}{Path(sys.executable).parent}"
    try:
        yield
    finally:
        os.environ["PATH"] = before


def _name(capability: str, flags: list[str]) -> str:
    """Names a build by all it depends on: one made from other sources or for another torch is never loaded."""
    digest = hashlib.sha256(repr((torch.__version__, platform.machine(), flags)).encode())
    for source in (*_SOURCES, *_HEADERS):
        digest.update((_FOLDER / source).read_bytes())
    return re.sub(r"\W", "_", f"monet_decode_{capability.lower()}_{digest.hexdigest()[:16]}")
