"""Disturbs training runs in forked children and records how they end: `python -m tests.training.fault_driver OUT`.

It is a separate process, because only a process that has computed nothing can fork safely. Each scenario is a function
that returns values for test_faults.py.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from monet.training.watch.signals import ONE_SIGNAL_SECONDS
from tools.proofs import forked_runs
from tools.proofs.kill_series import differences


class Scene:
    """Folders of one scenario, and runs in them."""

    def __init__(self, root: Path, name: str, data: Path) -> None:
        self.folder = root / name
        self.folder.mkdir()
        self.run_dir, self.log = self.folder / "run", self.folder / "log"
        self.log.touch()
        settings = {**forked_runs.SETTINGS, "data": {**forked_runs.SETTINGS["data"], "data_dir": str(data)}}
        self.config = self.folder / "config.yaml"
        self.config.write_text(yaml.safe_dump(settings), encoding="utf-8")

    def start(self, *words: str, before: Callable[[], None] | None = None) -> int:
        return forked_runs.start(forked_runs.train(self.config, self.run_dir, *words, before=before), self.log)

    def run(self, *words: str, before: Callable[[], None] | None = None) -> int:
        return forked_runs.wait(self.start(*words, before=before), 300)

    def said(self) -> str:
        """Output of the runs since the last call."""
        text = self.log.read_text(encoding="utf-8")
        self.log.write_text("", encoding="utf-8")
        return text

    def steps(self) -> list[str]:
        return sorted(path.name for path in (self.run_dir / "checkpoints").iterdir())

    def valid_step(self) -> int:
        from monet.training.checkpoints.checkpoint import newest_valid

        return newest_valid(self.run_dir / "checkpoints").step

    def logged(self) -> int:
        return (self.run_dir / "metrics.jsonl").read_bytes().count(b"\n")

    def wait_for(self, text: str) -> None:
        end = time.monotonic() + 120
        while text not in self.log.read_text(encoding="utf-8"):
            if time.monotonic() > end:
                raise TimeoutError(f"{self.folder.name}: the run never said {text!r}")
            time.sleep(0.005)


def slow_steps(seconds: float = 0.5) -> None:
    """Make micro-batches take this long after the fourth step, and at most 0.5 s before it, so that signals hit one."""
    from monet.training.module import MonetLightningModule

    step = MonetLightningModule.training_step

    def slow(self: Any, *arguments: Any) -> Any:
        time.sleep(seconds if self.trainer.global_step >= 4 else min(seconds, 0.5))
        return step(self, *arguments)

    MonetLightningModule.training_step = slow


def stopped_by(number: int) -> Callable[[Scene], dict[str, Any]]:
    def scenario(scene: Scene) -> dict[str, Any]:
        pid = scene.start("--trainer.max_steps=200", "--trainer.log_every_n_steps=1", before=slow_steps)
        scene.wait_for("step 1/")
        os.kill(pid, number)
        scene.wait_for("finishing the step")
        os.kill(pid, number)  # again at once, as from a launcher that passes it on
        code, logged = forked_runs.wait(pid, 120), scene.logged()
        return {"code": code, "said": scene.said(), "logged": logged, "valid": scene.valid_step()}

    return scenario


def stopped_twice(scene: Scene) -> dict[str, Any]:
    pid = scene.start("--trainer.log_every_n_steps=1", before=lambda: slow_steps(3.0))
    scene.wait_for("checkpoints/step-00000004")
    os.kill(pid, signal.SIGTERM)
    scene.wait_for("SIGTERM: finishing the step")
    time.sleep(ONE_SIGNAL_SECONDS)
    begin = time.monotonic()
    os.kill(pid, signal.SIGTERM)
    code = forked_runs.wait(pid, 120)
    seconds, valid = time.monotonic() - begin, scene.valid_step()
    return {"code": code, "seconds": seconds, "valid": valid, "after": finish(scene), "said": scene.said()}


def stopped_twice_inside_a_save(scene: Scene) -> dict[str, Any]:
    assert scene.run("--trainer.max_steps=4", "--model.schedule.name=constant") == 0

    def before() -> None:
        def act(count: int) -> None:
            if any((scene.run_dir / "checkpoints").glob(".step-00000008*/MANIFEST*")):
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(ONE_SIGNAL_SECONDS)

        forked_runs.on_change(scene.run_dir / "checkpoints", act)

    code, names = scene.run("--model.schedule.name=constant", before=before), scene.steps()
    said = scene.said()
    return {"code": code, "names": names, "valid": scene.valid_step(), "said": said,
            "after": scene.run("--model.schedule.name=constant"), "names_after": scene.steps()}  # fmt: skip


def asked_for_a_checkpoint(scene: Scene) -> dict[str, Any]:
    words = ("--checkpoint_every=100", "--trainer.log_every_n_steps=1", "--trainer.max_steps=5")
    pid = scene.start(*words, before=slow_steps)
    scene.wait_for("step 2/")
    os.kill(pid, signal.SIGUSR1)
    code = forked_runs.wait(pid, 120)
    return {"code": code, "names": scene.steps(), "said": scene.said()}


def finish(scene: Scene) -> dict[str, Any]:
    """Continue to the end, and compare with an undisturbed run."""
    code = scene.run()
    return {"code": code, "differences": differences(REFERENCE["run_dir"], scene.run_dir) if code == 0 else None}


REFERENCE: dict[str, Path] = {}


def killed_in_a_save(scene: Scene) -> list[dict[str, Any]]:
    """A kill before a change of the save at step 8 or the deletion after it: a few, all with MONET_EVERY_CHANGE."""
    rows, every = [], 1 if os.environ.get("MONET_EVERY_CHANGE") else 13
    counted, run_dir = scene.folder / "count", scene.run_dir

    def count() -> None:
        forked_runs.on_change(run_dir / "checkpoints", lambda n: os.write(descriptor, b"."))

    descriptor = os.open(counted, os.O_WRONLY | os.O_CREAT)
    assert scene.run("--trainer.max_steps=4", "--model.schedule.name=constant") == 0
    first = scene.folder / "first"
    os.rename(run_dir, first)
    shutil.copytree(first, run_dir)
    words = ("--trainer.max_steps=8", "--model.schedule.name=constant", "--checkpoint_keep=1")
    assert scene.run(*words, before=count) == 0
    whole, changes = scene.folder / "whole", counted.stat().st_size
    os.rename(run_dir, whole)
    for change in range(1, changes + 1, every):
        shutil.copytree(first, run_dir)
        code = scene.run(*words, before=forked_runs.die_at_change(run_dir / "checkpoints", change))
        left, valid = scene.steps(), scene.valid_step()
        again = scene.run(*words)
        rows.append({"change": change, "code": code, "left": left, "valid": valid, "again": again,
                     "names": scene.steps(), "differences": differences(whole, run_dir)})  # fmt: skip
        os.rename(run_dir, scene.folder / f"killed-{change}")
    return rows


def limit_files() -> None:
    """Limit every file of this process to 32 KiB: it gives the error of a full disk at a known place."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 15, 1 << 15))


def file_too_large(policy: str) -> Callable[[Scene], dict[str, Any]]:
    def scenario(scene: Scene) -> dict[str, Any]:
        assert scene.run("--trainer.max_steps=4", "--model.schedule.name=constant") == 0
        scene.said()
        words = (f"--checkpoint_failure={policy}", "--model.schedule.name=constant")
        code, logged = scene.run(*words, before=limit_files), scene.logged()
        said, valid, names = scene.said(), scene.valid_step(), scene.steps()
        after = scene.run("--model.schedule.name=constant")
        return {"code": code, "logged": logged, "said": said, "valid": valid, "names": names, "after": after}

    return scenario


@contextlib.contextmanager
def small_disk(folder: Path, kibibytes: int) -> Iterator[bool]:
    """A file system of this size mounted at `folder`, if the system allows it."""
    folder.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    mounted = libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, f"size={kibibytes}k".encode()) == 0
    try:
        yield mounted
    finally:
        if mounted:
            libc.umount2(os.fsencode(folder), 2)


def disk_full(scene: Scene) -> dict[str, Any] | None:
    scene.run_dir = scene.folder / "disk" / "run"
    with small_disk(scene.folder / "disk", 900) as mounted:
        if not mounted:
            return None
        code = scene.run("--checkpoint_keep=5", "--checkpoint_every=2")
        return {"code": code, "said": scene.said(), "names": scene.steps(), "valid": scene.valid_step()}


def disk_read_only(scene: Scene) -> dict[str, Any] | None:
    """The folder of checkpoints becomes read-only while the run trains."""
    scene.run_dir.mkdir()
    checkpoints = scene.run_dir / "checkpoints"
    with small_disk(checkpoints, 9000) as mounted:
        if not mounted:
            return None
        assert scene.run("--trainer.max_steps=4", "--model.schedule.name=constant") == 0
        scene.said()
        libc = ctypes.CDLL(None, use_errno=True)

        def remount() -> None:
            libc.mount(b"tmpfs", os.fsencode(checkpoints), b"tmpfs", 1 | 32, b"")  # MS_RDONLY | MS_REMOUNT

        code = scene.run("--model.schedule.name=constant", before=lambda: at_step(5, remount))
        return {"code": code, "said": scene.said(), "valid": scene.valid_step(), "logged": scene.logged()}


def log_takes_no_more(scene: Scene) -> dict[str, Any]:
    """metrics.jsonl itself cannot be written."""

    def fill() -> None:
        size = (scene.run_dir / "metrics.jsonl").stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, resource.RLIM_INFINITY))

    code = scene.run(before=lambda: at_step(6, fill))
    return {"code": code, "said": scene.said(), "valid": scene.valid_step(), "after": finish(scene)}


def at_step(finished_steps: int, act: Callable[[], None]) -> None:
    """Call `act` when this number of steps is done and the next one starts."""
    from monet.training.module import MonetLightningModule

    step = MonetLightningModule.training_step

    def first_act(self: Any, *arguments: Any) -> Any:
        if self.trainer.global_step == finished_steps:
            act()
        return step(self, *arguments)

    MonetLightningModule.training_step = first_act


def out_of_memory(scene: Scene) -> dict[str, Any]:
    """The address space is limited, and a step needs more than it has."""

    def more_than_there_is() -> None:
        import torch

        with open("/proc/self/statm", encoding="ascii") as file:
            now = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (now + (400 << 20), resource.RLIM_INFINITY))
        torch.zeros(1 << 30).sum()

    code = scene.run(before=lambda: at_step(5, more_than_there_is))
    return {"code": code, "said": scene.said(), "names": scene.steps(), "after": finish(scene)}


def worker_that(fault: str) -> Callable[[Scene], dict[str, Any]]:
    def before() -> None:
        from monet.data.loading.windows import WindowDataset
        from monet.errors import DataError

        parent, read = os.getpid(), WindowDataset.__getitem__

        def hurt(self: Any, index: int) -> Any:
            if os.getpid() != parent and len(calls) > 8:
                if fault == "dies":
                    os.kill(os.getpid(), signal.SIGKILL)
                elif fault == "raises":
                    raise DataError("shard-00000.bin: offset 96: id 999 is outside the vocabulary")
                time.sleep(600)
            calls.append(index)
            return read(self, index)

        calls: list[int] = []
        WindowDataset.__getitem__ = hurt

    def scenario(scene: Scene) -> dict[str, Any]:
        begin = time.monotonic()
        pid = scene.start("--data.num_workers=1", "--data.loader_timeout=3", before=before)
        code = forked_runs.wait(pid, 120)
        time.sleep(0.2)
        left = [entry for entry in os.listdir("/proc") if entry.isdigit() and _parent_of(entry) in (pid, os.getpid())]
        return {"code": code, "seconds": time.monotonic() - begin, "said": scene.said(), "left": left}

    return scenario


def _parent_of(pid: str) -> int:
    try:
        return int(Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return -1


SCENARIOS: dict[str, Callable[[Scene], Any]] = {
    "sigterm": stopped_by(signal.SIGTERM),
    "sigint": stopped_by(signal.SIGINT),
    "sigterm twice": stopped_twice,
    "sigterm twice inside a save": stopped_twice_inside_a_save,
    "sigusr1": asked_for_a_checkpoint,
    "killed in a save": killed_in_a_save,
    "file too large, stop": file_too_large("stop"),
    "file too large, continue": file_too_large("continue"),
    "disk full": disk_full,
    "disk read-only": disk_read_only,
    "log takes no more": log_takes_no_more,
    "out of memory": out_of_memory,
    "worker dies": worker_that("dies"),
    "worker raises": worker_that("raises"),
    "worker hangs": worker_that("hangs"),
}


def main() -> None:
    import torch

    import monet.training.cli  # noqa: F401  imported once, for all children

    root, chosen = Path(sys.argv[1]), sys.argv[2:] or list(SCENARIOS)
    torch.set_num_threads(1)  # a pool of threads does not survive a fork
    root.mkdir(parents=True, exist_ok=True)
    data = forked_runs.prepare_text(root)
    reference = Scene(root, "reference", data)
    assert reference.run() == 0, reference.said()
    REFERENCE["run_dir"] = reference.run_dir
    results = {}
    for name in chosen:
        begin = time.monotonic()
        results[name] = SCENARIOS[name](Scene(root, name.replace(" ", "-"), data))
        print(f"{name}: {time.monotonic() - begin:.1f} s", flush=True)
    (root / "results.json").write_text(json.dumps(results, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
