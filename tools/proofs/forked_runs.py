"""Runs train.py's command in forked children that tests can kill and limit, without a new interpreter for each.

The parent imports everything once and computes nothing, so a child behaves like an independent process.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

WORDS = ["the", "cat", "sat", "on", "a", "mat", "def", "return", "for", "in", "range", "import", "class", "self"]
# Events of Python's audit hooks (also opening to read). Libraries in other languages write between these events.
_CHANGES = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.chmod", "os.truncate", "shutil.rmtree"}

SETTINGS: dict[str, Any] = {
    "seed_everything": 1,
    "checkpoint_every": 4,
    "checkpoint_keep": 2,
    "cpu_threads": 1,
    "loggers": [],
    "model": {
        "shape": {
            "vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "moe_dim": 4,
            "moe_heads": 2, "moe_experts": 8, "moe_topk": 3, "moe_groups": 2, "moe_decompose": "vertical",
            "max_position_embeddings": 64, "tie_word_embeddings": True, "attention_dropout": 0.1,
        },
        "optimizer": {"learning_rate": 3e-3},
        "schedule": {"name": "cosine", "warmup_steps": 3},
    },
    "data": {"data_dir": "", "seq_len": 32, "batch_size": 2, "max_val_windows": 4},
    "trainer": {
        "max_steps": 12, "accumulate_grad_batches": 2, "val_check_interval": 8, "accelerator": "cpu", "devices": 1,
    },
}  # fmt: skip


def prepare_text(folder: Path) -> Path:
    """Prepare a little random text of two domains in a child; returns the prepared folder."""
    chooser = random.Random(1)
    for domain in ("first", "second"):
        (folder / "text" / domain).mkdir(parents=True)
        for number in range(40):
            text = f"Number {number}. " + " ".join(chooser.choice(WORDS) for _ in range(150))
            (folder / "text" / domain / f"{number}.txt").write_text(text, encoding="utf-8")

    def work() -> int:
        from monet.data.preparation.prepare import prepare

        splits = {"train": 0.6, "validation": 0.2, "identify": 0.1, "evaluate": 0.1}
        prepare(str(folder / "text"), folder / "prepared", vocab_size=280, splits=splits)
        return 0

    if (code := wait(start(work, folder / "prepare.log"))) != 0:
        raise RuntimeError(f"the text could not be prepared (exit code {code}), see {folder / 'prepare.log'}")
    return folder / "prepared"


def start(work: Callable[[], int], log: Path) -> int:
    """Run `work` in a forked child that writes its output to `log`; returns its process id."""
    sys.stdout.flush()
    sys.stderr.flush()
    if (pid := os.fork()) != 0:
        return pid
    code = 70
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.argv = ["train.py"]
        for number in (signal.SIGINT, signal.SIGTERM):  # a shell's background job starts with the first ignored
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        code = work()
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def train(config: Path, run_dir: Path, *words: str, before: Callable[[], None] | None = None) -> Callable[[], int]:
    """Work for `start`: train.py's command, after `before` has prepared the fault in the child."""

    def work() -> int:
        from monet.training.cli import main

        if before is not None:
            before()
        return main(["fit", "--config", str(config), "--run_dir", str(run_dir), *words])

    return work


def wait(pid: int, timeout_seconds: float = 600.0) -> int:
    """Exit code of a child, negative for the signal that killed it; at the end of the time limit it is killed."""
    end = time.monotonic() + timeout_seconds
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise TimeoutError(f"process {pid} did not end within {timeout_seconds:g} seconds")


def on_change(folder: Path, act: Callable[[int], None]) -> None:
    """Call `act` with 1, 2, ... from now on, right before each change that this process makes below `folder`."""
    prefix, count = str(folder), 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        path = arguments[0] if event in _CHANGES and arguments else None
        if isinstance(path, (str, bytes, os.PathLike)) and os.fsdecode(path).startswith(prefix):
            count += 1
            act(count)

    sys.addaudithook(hook)


def die_at_change(folder: Path, number: int) -> Callable[[], None]:
    """For `before`: kill -9 right before the change with this number below `folder`."""

    def act(count: int) -> None:
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)

    return lambda: on_change(folder, act)
