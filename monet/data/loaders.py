"""Windows -> batches: an endless training stream with an exact position, and a bounded validation pass."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from contextlib import closing
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from torch.utils.data._utils import signal_handling

from monet.data.order import WindowOrder
from monet.data.windows import WindowDataset, collate
from monet.errors import ConfigError, DataError

Batch = dict[str, torch.Tensor]


def _batches(
    windows: WindowDataset, batches: Any, num_workers: int, pin_memory: bool, timeout: int
) -> Generator[Batch, None, None]:
    """Batches in order, read ahead by `num_workers` processes, none of which is left when this ends.

    Raises:
        DataError: a process raised (with its message), died, or gave nothing for `timeout` seconds.
    """
    loader = DataLoader(
        windows,
        batch_sampler=batches,
        collate_fn=_collated,
        num_workers=num_workers,
        timeout=timeout if num_workers else 0,
        # the default would draw a seed from torch's global generator, and with it change what a resumed run draws
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
            f"data loading failed: {reason}; look for a lack of (shared) memory or a disk that does not answer, raise "
            f"loader_timeout {timeout} if reading is that slow, or set num_workers 0"
        ) from error
    finally:
        _end(iterator, processes)


def _collated(windows: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """A batch as arrays: a tensor would travel as a handle that only its maker can turn into memory, so a maker that
    died or hangs would hold up those who take batches it has finished long ago."""
    return {key: tensor.numpy() for key, tensor in collate(windows).items()}


def _end(iterator: Any, processes: list[Any]) -> None:
    """Kill the loader's processes, which only read.

    SIGTERM would not do: in a process that is still starting it has the run's handler, which only takes a note.
    """
    if not processes:
        return
    # off torch's watch, which takes the end of a process for a fault
    signal_handling._remove_worker_pids(id(iterator))  # pyright: ignore[reportPrivateImportUsage]
    iterator._worker_pids_set = False
    # one that ends while it looks at torch's event keeps the event's lock, for which torch would wait for ever
    iterator._workers_done_event = threading.Event()
    for process in processes:
        process.kill()
    iterator._shutdown_workers()
    for process in processes:
        process.join()


class TrainStream:
    """Endless stream of training batches whose batch n follows from (data, seed, weights, n, batch size, ranks).

    Positions of the shuffled order are dealt to the ranks in turn: batch n of rank r holds positions
    (n*W + r)*B .. (n*W + r)*B + B-1. So W ranks with B windows and one rank with W*B see the same windows at every n.

    Not a torch `DataLoader`, since Lightning would give one a sampler of its own.

    Args:
        windows: the training windows.
        order: see `WindowOrder`.
        batch_size: B, windows in a batch of one rank.
        world_size, rank: W and this process's place.
        num_workers: loader processes; 0 loads in this one.
        pin_memory: put batches in page-locked memory.
        timeout: seconds to wait for a batch of a loader process; 0 waits for ever.
        count_on_yield: count a batch as consumed when it is handed out; otherwise somebody else sets `consumed`,
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
        """Window ids of batch `number` of this rank."""
        first = (number * self.world_size + self.rank) * self.batch_size
        return self.order(np.arange(first, first + self.batch_size)).tolist()

    def __iter__(self) -> Iterator[Batch]:
        """Batches from `consumed` on: {"input_ids": (B, T+1), "domain": (B,), "index": (B,), "document": (B,),
        "number": ()}, all int64; "number" is n."""
        first = self.consumed
        numbers = _BatchNumbers(self, first)
        with closing(_batches(self.windows, numbers, self.num_workers, self.pin_memory, self.timeout)) as batches:
            for number, batch in enumerate(batches, start=first):
                if self.count_on_yield:
                    self.consumed = number + 1
                yield {**batch, "number": torch.tensor(number)}

    def state_dict(self) -> dict[str, Any]:
        """Position and everything it is a position in; JSON-able."""
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

        Another number of ranks or windows in a batch is accepted where a batch begins at the position: the order stays
        the same.

        Raises:
            DataError: the position belongs to other data.
            ConfigError: it belongs to another seed, window length, mixture, batch size or use of document masks.
        """
        here = self.state_dict()
        state = {"document_mask": False} | state  # checkpoints of earlier versions do not name it
        if missing := sorted(set(here) - set(state)):
            raise DataError(f"data position without {missing[0]!r}: it was not saved by this data loader")
        if state["fingerprint"] != here["fingerprint"]:
            raise DataError(
                f"{self.windows.shards.folder}: fingerprint {here['fingerprint'][:12]}, but the run's data have "
                f"{state['fingerprint'][:12]}; give the data it was trained on, or start a new run"
            )
        for key in ("seed", "seq_len", "slots"):
            if state[key] != here[key]:
                name = "mixture" if key == "slots" else key
                raise ConfigError(
                    f"{name} {here[key]} differs from the run's {state[key]}, so its place in the data is lost; set it "
                    "back, or start a new run"
                )
        if state["document_mask"] != here["document_mask"]:
            raise ConfigError(
                f"document_mask {here['document_mask']} differs from the run's {state['document_mask']}; set it back, "
                "or start a new run"
            )
        windows = int(state["consumed"]) * state["batch_size"] * state["world_size"]
        if windows % (self.batch_size * self.world_size):
            raise ConfigError(
                f"batch_size {self.batch_size} on {self.world_size} rank(s): the run has used {windows} windows, which "
                f"is no whole number of such batches; its own were {state['batch_size']} on {state['world_size']}"
            )
        self.consumed = windows // (self.batch_size * self.world_size)


class _BatchNumbers:
    """Endless batch sampler of a stream, from one batch number on."""

    def __init__(self, stream: TrainStream, first: int) -> None:
        self._stream = stream
        self._first = first

    def __iter__(self) -> Iterator[list[int]]:
        number = self._first
        while True:
            yield self._stream.batch_windows(number)
            number += 1


class ValidationPass:
    """Batches for one look at held-out text: each holds windows of one domain, spread evenly over it.

    Each rank takes its share, at least one window of each domain; where a domain's windows do not divide by the ranks,
    the last few are left out, so that all ranks have equally many batches.

    Args:
        windows: the held-out windows.
        batch_size: windows in a batch at most.
        max_windows: windows of each domain over all ranks at most, or one a rank if that is more; None takes all.
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
                    f"domain {domain!r} has {count} validation windows for {world_size} ranks, and each takes one; add "
                    "text or shorten seq_len"
                )
            first = windows.windows_of(domain).start
            spread = first + np.arange(taken) * count // taken
            mine = spread[rank::world_size].tolist()
            self.batches += [mine[start : start + batch_size] for start in range(0, len(mine), batch_size)]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        """Batches as `collate` gives them."""
        return _batches(self.windows, self.batches, self.num_workers, self.pin_memory, self.timeout)
