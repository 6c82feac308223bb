"""Ranks that are threads of one process: they run the same code as the processes of a run, on any machine."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from monet.training.ranks.coordination import Ranks


class ThreadRanks(Ranks):
    """Ranks that are threads: the same interface as a run's ranks, over a barrier.

    Args:
        rank: this thread's place.
        board: shared by all ranks of a run.
    """

    def __init__(self, rank: int, board: Board) -> None:
        self.rank, self.world_size, self._board = rank, board.world_size, board

    def broadcast(self, value: Any, what: str) -> Any:
        return self._exchange(value)[0]

    def gather(self, value: Any, what: str) -> list[Any] | None:
        values = self._exchange(value)
        return values if self.rank == 0 else None

    def _exchange(self, value: Any) -> list[Any]:
        self._board.said[self.rank] = value
        self._board.barrier.wait()
        values = list(self._board.said)
        self._board.barrier.wait()
        return values


class Board:
    """Messages of the ranks of one run."""

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size
        self.said: list[Any] = [None] * world_size
        self.barrier = threading.Barrier(world_size, timeout=120)


def on_all(world_size: int, work: Callable[[ThreadRanks], Any]) -> list[Any]:
    """Run `work` once on each rank, all at the same time."""
    board = Board(world_size)
    with ThreadPoolExecutor(world_size) as pool:
        return list(pool.map(work, [ThreadRanks(rank, board) for rank in range(world_size)]))
