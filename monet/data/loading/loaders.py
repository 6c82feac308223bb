"""Makes batches of windows: an endless training stream with an exact position, and a bounded validation pass."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from contextlib import closing
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from torch.utils.data._utils import signal_handling

from monet.data.loading.order import WindowOrder
from monet.data.loading.windows import WindowDataset, collate
from monet.errors import ConfigError, DataError

Batch = dict[str, torch.Tensor]


def _batches(
    windows: WindowDataset, batches: Any, num_workers: int, pin_memory: bool, timeout: int
) -> Generator[Batch, None, None]:
    """Yield batches in order, read ahead by `num_workers` processes; all processes end with this generator.

    Raises:
        DataError: a process raised an error (with its message), died, or gave no batch for `timeout` seconds.
    """
    loader = DataLoader(
        windows,
        batch_sampler=batches,
        collate_fn=_collated,
        num_workers=num_workers,
        timeout=timeout if num_workers else 0,
        # by default, torch's global generator would draw a seed, which changes what a resumed run draws
        generator=torch.Generator().manual_seed(0),
    )
    iterator = iter(loader)
    processes = list(getattr(iterator, "_workers", []))
    try:
        for arrays in iterator:
            tensors = {key: torch.from_numpy(array) for key, array in arrays.items()}
            yield {key: tensor.pin_memory() for key, tensor in tensors.items()} if pin_memory else tensors
    except DataError as error:
        # torch puts the worker's traceback before the message
        raise DataError(str(error).strip().rpartition("DataError: ")[2]) from None
    except RuntimeError as error:
        if not processes or "DataLoader" not in str(error):
            raise
        reason = " ".join(str(error).split("\n", 1)[0].split())
        raise DataError(
            f"data loading failed: {reason}; check whether (shared) memory is short or a disk does not answer, raise "
            f"loader_timeout {timeout} if reading is that slow, or set num_workers 0"
        ) from error
    finally:
        _end(iterator, processes)


def _collated(windows: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Return a batch as arrays. A tensor would travel as a handle that only its maker can turn into memory; if the
    maker dies or hangs, it would block other processes that take its finished batches."""
    return {key: tensor.numpy() for key, tensor in collate(windows).items()}


def _end(iterator: Any, processes: list[Any]) -> None:
    """Kill the loader's processes, which only read.

    SIGTERM is not enough: a process that is still starting has the run's handler, which only records the signal.
    """
    if not processes:
        return
    # stop torch's watch over these processes, which would report their end as a fault
    signal_handling._remove_worker_pids(id(iterator))  # pyright: ignore[reportPrivateImportUsage]
    iterator._worker_pids_set = False
    # a process that ends while it reads torch's event keeps the event's lock; torch would then wait forever
    iterator._workers_done_event = threading.Event()
    for process in processes:
        process.kill()
    iterator._shutdown_workers()
    for process in processes:
        process.join()


class TrainStream:
    """Endless stream of training batches; batch n depends only on (data, seed, weights, n, batch size, ranks).

    The ranks take positions of the shuffled order in turn: batch n of rank r holds positions
    (n*W + r)*B .. (n*W + r)*B + B-1. W ranks with B windows therefore see the same windows at every n as one rank with
    W*B.

    This is not a torch `DataLoader`, because Lightning would replace its sampler.

    Args:
        windows: the training windows.
        order: see `WindowOrder`.
        batch_size: B, windows in a batch of one rank.
        world_size, rank: W and this process's rank.
        num_workers: loader processes; 0 loads in this process.
        pin_memory: put batches in page-locked memory.
        timeout: seconds to wait for a batch of a loader process; 0 waits forever.
        count_on_yield: count a batch as consumed when the stream yields it; otherwise the caller sets `consumed`,
            because batches are fetched before they are used.
    Attributes:
        consumed: batches used so far; iteration starts here.
    """

    def __init__(
        self,
        windows: WindowDataset,
        order: WindowOrder,
        batch_size: int,
        *,
        world_size: int = 1,
        rank: int = 0,
        num_workers: int = 0,
        pin_memory: bool = False,
        timeout: int = 0,
        count_on_yield: bool = True,
    ) -> None:
        self.windows = windows
        self.order = order
        self.batch_size = batch_size
        self.world_size = world_size
        self.rank = rank
        self.num_workers = num_workers
        self.pin_memory = pin_memory
        self.timeout = timeout
        self.count_on_yield = count_on_yield
        self.consumed = 0

    def batch_windows(self, number: int) -> list[int]:
        """Return the window ids of batch `number` of this rank."""
        first = (number * self.world_size + self.rank) * self.batch_size
        return self.order(np.arange(first, first + self.batch_size)).tolist()

    def __iter__(self) -> Iterator[Batch]:
        """Yield batches from `consumed` on: {"input_ids": (B, T+1), "domain": (B,), "index": (B,), "document": (B,),
        "number": ()}, all int64; "number" is n."""
        first = self.consumed
        numbers = _BatchNumbers(self, first)
        with closing(_batches(self.windows, numbers, self.num_workers, self.pin_memory, self.timeout)) as batches:
            for number, batch in enumerate(batches, start=first):
                if self.count_on_yield:
                    self.consumed = number + 1
                yield {**batch, "number": torch.tensor(number)}

    def state_dict(self) -> dict[str, Any]:
        """Return the position and everything that it depends on; can be written as JSON."""
        return {
            "consumed": self.consumed,
            "batch_size": self.batch_size,
            "world_size": self.world_size,
            "seed": self.order.seed,
            "seq_len": self.windows.seq_len,
            "slots": self.order.slots,
            "document_mask": self.windows.document_mask,
            "fingerprint": self.windows.shards.fingerprint,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at a saved position.

        Another number of ranks or windows per batch is accepted if a batch starts at the position: the order stays
        the same.

        Raises:
            DataError: the position belongs to other data.
            ConfigError: the position belongs to another seed, window length, mixture, batch size or document mask.
        """
        here = self.state_dict()
        state = {"document_mask": False} | state  # checkpoints of earlier versions lack this key
        if missing := sorted(set(here) - set(state)):
            raise DataError(f"data position without {missing[0]!r}: this data loader did not save it; start a new run")
        if state["fingerprint"] != here["fingerprint"]:
            raise DataError(
                f"{self.windows.shards.folder}: fingerprint {here['fingerprint'][:12]}, but the run's data have "
                f"{state['fingerprint'][:12]}; give the data it was trained on, or start a new run"
            )
        for key in ("seed", "seq_len", "slots"):
            if state[key] != here[key]:
                name = "mixture" if key == "slots" else key
                raise ConfigError(
                    f"{name} {here[key]} differs from the run's {state[key]}, so its place in the data is lost; "
                    "restore that value, or start a new run"
                )
        if state["document_mask"] != here["document_mask"]:
            raise ConfigError(
                f"document_mask {here['document_mask']} differs from the run's {state['document_mask']}; restore the "
                "run's value, or start a new run"
            )
        windows = int(state["consumed"]) * state["batch_size"] * state["world_size"]
        if windows % (self.batch_size * self.world_size):
            raise ConfigError(
                f"batch_size {self.batch_size} on {self.world_size} rank(s): the run has used {windows} windows, which "
                f"is not a multiple of that; the run had batch_size {state['batch_size']} on {state['world_size']}"
            )
        self.consumed = windows // (self.batch_size * self.world_size)


class _BatchNumbers:
    """Endless batch sampler of a stream, starting at one batch number."""

    def __init__(self, stream: TrainStream, first: int) -> None:
        self._stream = stream
        self._first = first

    def __iter__(self) -> Iterator[list[int]]:
        number = self._first
        while True:
            yield self._stream.batch_windows(number)
            number += 1


class ValidationPass:
    """Batches of one validation pass: each holds windows of one domain, spread evenly over it.

    Each rank takes its share, at least one window of each domain. If a domain's windows do not divide evenly by the
    ranks, the last few are left out. All ranks then have the same number of batches.

    Args:
        windows: the held-out windows.
        batch_size: maximum number of windows in a batch.
        max_windows: maximum number of windows of each domain over all ranks, but at least one per rank; None takes all.
        world_size, rank, num_workers, pin_memory, timeout: as for `TrainStream`.
    """

    def __init__(
        self,
        windows: WindowDataset,
        batch_size: int,
        *,
        max_windows: int | None = None,
        world_size: int = 1,
        rank: int = 0,
        num_workers: int = 0,
        pin_memory: bool = False,
        timeout: int = 0,
    ) -> None:
        self.windows = windows
        self.num_workers = num_workers
        self.pin_memory = pin_memory
        self.timeout = timeout
        self.batches: list[list[int]] = []
        for domain, count in zip(windows.chosen, windows.counts, strict=True):
            taken = min(count, max(max_windows or count, world_size)) // world_size * world_size
            if taken == 0:
                raise DataError(
                    f"domain {domain!r} has {count} validation windows, but {world_size} ranks need one each; add "
                    "text or shorten seq_len"
                )
            first = windows.windows_of(domain).start
            spread = first + np.arange(taken) * count // taken
            mine = spread[rank::world_size].tolist()
            self.batches += [mine[start : start + batch_size] for start in range(0, len(mine), batch_size)]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        """Yield batches from `collate`."""
        return _batches(self.windows, self.batches, self.num_workers, self.pin_memory, self.timeout)
