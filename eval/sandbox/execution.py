"""Runs programs in the sandbox, several at a time. Each distinct program runs once, and its outcome is kept.

One store holds the outcomes of a language. It stays open until the last program of the language has run.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict

from monet.errors import ConfigError
from monet.eval.core.store import ExampleStore
from monet.eval.sandbox.limits import Outcome
from monet.eval.sandbox.runtimes import Runtime
from monet.eval.sandbox.sandbox import Sandbox
from monet.parts import Part


def kept_statuses(
    runtime: Runtime, sandbox: Sandbox, folder: str | os.PathLike[str], part: Part | None = None
) -> ExampleStore:
    """The store of a language's outcomes; open it once. It holds only the status of each outcome in memory.

    Args:
        runtime: runtime of the language.
        sandbox: sandbox that programs run in.
        folder: folder of the outcomes.
        part: part of a divided run; the outcomes of every part are read.
    """
    key = {
        "suite": "code-outcomes/1",
        "runtime": [runtime.language, runtime.version, runtime.script],
        "sandbox": [sandbox.jail, sandbox.memory],
        "limits": asdict(sandbox.limits),
    }
    return ExampleStore(folder, key, part=part, parts=True, remember=lambda outcome: sys.intern(outcome["status"]))


def execute(
    programs: Iterable[str],
    runtime: Runtime,
    sandbox: Sandbox,
    store: ExampleStore,
    workers: int = 1,
    advance: Callable[[int], object] = lambda _: None,
) -> dict[str, str]:
    """Run programs and return how each one ended.

    Args:
        programs: programs; they may repeat.
        runtime: runtime of their language.
        sandbox: sandbox that isolates them.
        store: open store made by `kept_statuses`; a program that could not be run is not kept and is tried again next
            time.
        workers: number of programs that run at the same time.
        advance: called with 1 for each distinct program that is done.

    Returns:
        Status by program: one of `monet.eval.sandbox.limits.Status`.

    Raises:
        ConfigError: workers is below 1.
    """
    check_workers(workers)
    found: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(workers))
        stack.callback(pool.shutdown, wait=True, cancel_futures=True)
        waiting: dict[Future[Outcome], str] = {}

        def finish(most: int) -> None:
            while len(waiting) > most:
                for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                    program, outcome = waiting.pop(future), future.result()
                    found[program] = outcome.status
                    if outcome.status != "sandbox error":
                        store.put(_name(program), {**asdict(outcome), "seconds": round(outcome.seconds, 3)})
                    advance(1)

        for program in dict.fromkeys(programs):
            if _name(program) in store:
                found[program] = store[_name(program)]
                advance(1)
                continue
            waiting[pool.submit(runtime.run, program, sandbox)] = program
            finish(most=2 * workers)
        finish(most=0)
    return found


def check_workers(workers: int) -> None:
    """Refuse fewer than one worker.

    Raises:
        ConfigError: workers is below 1; the message names the number.
    """
    if workers < 1:
        raise ConfigError(f"workers {workers} must be at least 1")


def _name(program: str) -> str:
    return hashlib.sha256(program.encode("utf-8", errors="replace")).hexdigest()
