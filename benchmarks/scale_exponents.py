"""Counts how costs grow with the number of ranks and with a run's length, on one machine; part of `scale_plan`.

The counts (tensors, file accesses, descriptors, lines, bytes) do not depend on the machine or on its load, so tests
can compare the exponents with limits.
"""

from __future__ import annotations

import json
import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.processes import forked_ranks
from benchmarks.thread_ranks import ThreadRanks, on_all
from monet.kernels.routing.reference import BatchStatistics
from monet.model.ranks import GlobalBatch
from monet.training.checkpoints.folder_io import FolderCheckpointIO
from monet.training.checkpoints.sharded_state import ShardedState
from monet.training.checkpoints.states import MOMENTS, STEP
from monet.training.checkpoints.tensor_files import Source
from monet.training.metrics import truncate_log


class Growth(NamedTuple):
    """A cost at several sizes.

    Attributes:
        what: name of the count.
        by: unit of the sizes.
        most: largest allowed exponent.
    """

    what: str
    by: str
    sizes: Sequence[int]
    costs: Sequence[float]
    most: float

    @property
    def exponent(self) -> float:
        """Slope of log(cost) over log(size); a cost of zero counts as one."""
        slope = float(np.polyfit(np.log(self.sizes), np.log(np.maximum(self.costs, 1)), 1)[0])
        return round(slope, 6) + 0.0  # no negative zero

    @property
    def holds(self) -> bool:
        return self.exponent <= self.most

    def row(self) -> dict[str, Any]:
        """For a table and for JSON."""
        return {
            "what": self.what, "by": self.by, "sizes": ", ".join(f"{size:,}" for size in self.sizes),
            "counted": ", ".join(f"{cost:,.0f}" for cost in self.costs), "exponent": self.exponent, "most": self.most,
            "holds": self.holds,
        }  # fmt: skip


COLUMNS = {"what": "", "by": "", "sizes": "", "counted": "", "exponent": ".2f", "most": ".2f"}


@contextmanager
def rank_of_many(world_size: int, rank: int = 0) -> Iterator[None]:
    """Makes this process one rank of many; torch's fake backend moves no data."""
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size)
    try:
        yield
    finally:
        dist.destroy_process_group()


class CollectiveTensors(TorchDispatchMode):
    """Counts the tensors that collectives take and return."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if "c10d" in str(func):
            self.count += sum(isinstance(leaf, Tensor) for leaf in tree_leaves((args, kwargs, out)))
        return out


def router_gather(world_size: int) -> int:
    """Tensors that the gather of a router's statistics handles on a rank."""
    half = torch.rand(8, dtype=torch.float64)
    moments = BatchStatistics(torch.tensor(16.0, dtype=torch.float64), half, half)
    with rank_of_many(world_size), CollectiveTensors() as tensors:
        GlobalBatch().merge(moments, moments)
    return tensors.count


def coordination(world_size: int) -> int:
    """File descriptors that the connections between ranks add, on the rank with the most of them."""

    def talk(ranks: Any, before: int) -> int:
        ranks.broadcast("all", "counting")
        ranks.gather(ranks.rank, "counting")
        return len(os.listdir("/proc/self/fd")) - before

    return max(forked_ranks(talk, world_size))


def opening(world_size: int) -> int:
    """File accesses of all ranks while they open a checkpoint that as many ranks wrote."""
    weights = {"model.weight": torch.zeros(4)}
    looks: list[int] = []

    def counted(look: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: looks.append(threading.get_ident()) or look(*args, **kwargs)

    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "step-00000001")

        def checkpoint_io(ranks: ThreadRanks) -> FolderCheckpointIO:
            io = FolderCheckpointIO()
            io.ranks = ranks
            return io

        def save(ranks: ThreadRanks) -> None:
            content = {"state_dict": weights, "config": {"model_type": "monet"}, "rank_state": ranks.rank}
            checkpoint_io(ranks).save_checkpoint(content, path)

        on_all(world_size, save)
        with patch.object(os, "stat", counted(os.stat)), patch.object(os, "lstat", counted(os.lstat)):
            on_all(world_size, lambda ranks: checkpoint_io(ranks).load_checkpoint(path))
    return len(looks)


class _Zeros(Source):
    """Stored tensors of zeros that count the bytes that are read."""

    def __init__(self, shapes: dict[str, tuple[int, ...]]) -> None:
        self.shapes, self.bytes = shapes, 0

    def __getitem__(self, name: str) -> Tensor:
        tensor = torch.zeros(self.shapes[name])
        self.bytes += tensor.nbytes
        return tensor

    def __contains__(self, name: object) -> bool:
        return name in self.shapes

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.shapes[name]

    def part(self, name: str, start: int, stop: int) -> Tensor:
        self.bytes += 4 * (stop - start)
        return torch.zeros(stop - start)


def restart(world_size: int) -> int:
    """Bytes of a checkpoint that a rank of FSDP2 reads to continue."""
    with rank_of_many(world_size):
        model = nn.Sequential(*(nn.Linear(64, 256, bias=False) for _ in range(4)))
        fully_shard(model, mesh=init_device_mesh("cpu", (world_size,)))
        shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
        weights = _Zeros({f"model.{name}": shape for name, shape in shapes.items()})
        moments = {f"{name}/{key}": shape for name, shape in shapes.items() for key in MOMENTS}
        stored = _Zeros(moments | {f"{name}/{STEP}": () for name in shapes})
        ShardedState(model, torch.optim.AdamW(model.parameters())).load(weights, stored)
    return weights.bytes + stored.bytes


def log_lines(steps: int) -> int:
    """Lines of a log that are read when a run continues ten steps before the log's end."""
    loads, read = json.loads, []
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "metrics.jsonl")
        path.write_text("".join(f'{{"step": {step}}}\n' for step in range(1, steps + 1)), encoding="utf-8")
        with patch.object(json, "loads", lambda line, **options: read.append(line) or loads(line, **options)):
            truncate_log(path, steps - 10)
    return len(read)


def growth(what: str, by: str, count: Callable[[int], int], sizes: Sequence[int], most: float) -> Growth:
    """Count a cost at all sizes."""
    return Growth(what, by, sizes, [count(size) for size in sizes], most)


def growths() -> list[Growth]:
    """All counted costs."""
    # processes are forked before anything here starts threads
    return [
        growth("descriptors of a rank for agreeing", "ranks", coordination, (2, 4, 8), 0.1),
        growth("tensors of a router's gather", "ranks", router_gather, (8, 64, 512), 0.1),
        growth("looks at files, opening a checkpoint, all ranks", "ranks", opening, (8, 16, 32, 64), 1.15),
        growth("bytes that a rank reads to continue, FSDP2", "ranks", restart, (2, 8, 32), -0.9),
        growth("lines of a log read to continue", "steps", log_lines, (1_000, 10_000, 100_000), 0.1),
    ]
