"""Loader processes that raise, die or hang: the reason in bounded time, and no process left."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from torch.utils.data._utils import signal_handling

from monet.data.loading.datamodule import MonetDataModule
from monet.data.loading.windows import WindowDataset
from monet.errors import ConfigError, DataError
from tests.data.samples import make_shards

VICTIM = 5


def children() -> set[str]:
    """Process ids of this process's children, zombies included."""
    found: set[str] = set()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that has just ended
            found.update((task / "children").read_text().split())
    return found


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Batches of one window; what reads one of the victims does `fault` in its process."""

    def make(fault, victims=(VICTIM,), **settings):
        documents = [[number % 90 + 5] * 9 for number in range(30)]
        make_shards(tmp_path / "data", {"train": {"a": documents}, "validation": {"a": documents}})
        read = WindowDataset.__getitem__
        home = os.getpid()

        def faulty(self, index):
            if index in victims and os.getpid() != home:
                fault()
            return read(self, index)

        monkeypatch.setattr(WindowDataset, "__getitem__", faulty)
        settings = {"num_workers": 2, "loader_timeout": 2} | settings
        return MonetDataModule(str(tmp_path / "data"), seq_len=8, batch_size=1, max_val_windows=None, **settings)

    return make


FAULTS = {
    "killed": (lambda: os.kill(os.getpid(), signal.SIGKILL), r"killed by signal: Killed|exited unexpectedly", 1.0),
    "exits": (lambda: os._exit(7), r"exited unexpectedly|exit code 7", 1.0),
    "hangs": (lambda: time.sleep(1000), r"timed out after 2 seconds", 2.0),
    "is stopped": (lambda: os.kill(os.getpid(), signal.SIGSTOP), r"timed out after 2 seconds", 2.0),
}


@pytest.mark.parametrize("loader", ["train_dataloader", "val_dataloader"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_process_that_does_not_answer(data, fault, loader):
    action, reason, seconds = FAULTS[fault]
    before, began = children(), time.monotonic()
    with pytest.raises(DataError, match=rf"data loading failed: .*({reason}).*loader_timeout 2.*num_workers 0"):
        for _ in zip(range(100), getattr(data(action), loader)(), strict=False):
            pass
    assert time.monotonic() - began < seconds + 20
    assert children() == before


def test_what_a_process_raises_is_told_as_if_it_were_raised_here(data, tmp_path):
    module = data(lambda: None)
    assert module.shards.splits == ["train", "validation"]  # open, so that only reading can find the damage
    path = tmp_path / "data" / "train" / "a" / "shard-00000.bin"
    ids = np.memmap(path, dtype="<u2", mode="r+")
    ids[20] = 4000
    ids.flush()
    before = children()
    with pytest.raises(DataError) as caught:
        for _ in zip(range(100), module.train_dataloader(), strict=False):
            pass
    assert str(caught.value).startswith(f"{path}: id 4000 at token 20 is outside the vocabulary of 100")
    assert "Traceback" not in str(caught.value)
    assert children() == before


def test_an_iteration_that_is_left_leaves_no_process(data):
    before = children()
    iterator = iter(data(lambda: None).train_dataloader())
    next(iterator)
    assert len(children() - before) == 2
    iterator.close()
    assert children() == before


def test_a_process_that_is_still_starting_ends_whatever_handler_of_sigterm_it_has(data, monkeypatch):
    """Until torch has set its own handler in the process, it has that of the run, which only takes a note."""
    set_handlers = getattr(signal_handling, "_set_worker_signal_handlers")  # noqa: B009 - private to the checker

    def late():
        if sys._getframe(1).f_locals["worker_id"] == 1:
            time.sleep(1)
        set_handlers()

    monkeypatch.setattr(signal_handling, "_set_worker_signal_handlers", late)
    earlier = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        before = children()
        iterator = iter(data(lambda: None).train_dataloader())
        next(iterator)
        iterator.close()
        assert children() == before
    finally:
        signal.signal(signal.SIGTERM, earlier)


def test_a_process_that_has_the_lock_of_torchs_event_when_it_is_ended(data):
    """The event asks the processes to end; to set it takes the lock."""

    def hang():
        frame = sys._getframe()
        while "done_event" not in frame.f_locals:
            assert frame.f_back is not None
            frame = frame.f_back
        frame.f_locals["done_event"]._cond.acquire()
        time.sleep(1000)

    def give_up(*_):
        raise TimeoutError("the loader waits for a lock that no process releases")

    before, handler = children(), signal.signal(signal.SIGALRM, give_up)
    signal.alarm(30)
    try:
        with pytest.raises(DataError, match="timed out after 2 seconds"):
            list(zip(range(100), data(hang).train_dataloader(), strict=False))
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
    assert children() == before


def test_processes_that_all_hang_end_at_once(data):
    before, began = children(), time.monotonic()
    with pytest.raises(DataError, match="timed out after 2 seconds"):
        list(data(lambda: time.sleep(1000), victims=range(100), num_workers=6).train_dataloader())
    assert time.monotonic() - began < 2 + 5
    assert children() == before


def test_the_timeout_is_a_time(data):
    with pytest.raises(ConfigError, match="loader_timeout -1 must be at least 0"):
        data(lambda: None, loader_timeout=-1)
