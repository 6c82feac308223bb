"""Ranks forked from one server process that has imported everything: real processes, without seconds of imports each.

They share what an interpreter chooses at its start, such as the seed of its hashes; test_launchers.py has ranks that
do not.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import runpy
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from multiprocessing.context import ForkServerContext
from pathlib import Path
from unittest.mock import patch

import numpy as np
from lightning.fabric.utilities.rank_zero import rank_zero_only

from benchmarks.processes import ROOT

_IMPORTED = ["deepspeed", "monet.convert.export", "monet.training.cli"]
# libraries read them at import, so the server needs them too
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}


class ForkedRank:
    """The part of `subprocess.Popen` that `run_ranks` needs."""

    def __init__(self, words: Sequence[str], environment: Mapping[str, str], out: Path, err: Path) -> None:
        self._process = _server().Process(target=_work, args=(list(words), dict(environment), str(out), str(err)))
        self._process.start()

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("a forked rank", timeout or 0.0)
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()


@cache
def _server() -> ForkServerContext:
    from multiprocessing.forkserver import ensure_running

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_IMPORTED)
    with patch.dict(os.environ, _ENVIRONMENT):
        ensure_running()
    return context


def _work(words: list[str], environment: dict[str, str], out: str, err: str) -> None:
    """`python WORDS` with this environment and these outputs."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(ROOT)
    np.random.seed()
    rank_zero_only.rank = int(environment["RANK"])  # Lightning read it at import
    for descriptor, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), descriptor)
    try:
        if words[0] == "-c":
            sys.argv = ["-c", *words[2:]]
            exec(words[1], {"__name__": "__main__"})
        elif words[0] == "-m":
            sys.argv = words[1:]
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = list(words)
            runpy.run_path(words[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()
