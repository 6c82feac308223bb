"""How ranks agree outside the training's collectives: small objects, a process group of their own, bounded time."""

from __future__ import annotations

import contextlib
import os
import time
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

from monet.errors import MonetError

T = TypeVar("T")
ROLL_CALL_SECONDS = 10.0  # for ranks that are alive to notice a broken connection


def other_ranks_wait() -> bool:
    """Whether a launcher outside (torchrun, srun, deepspeed) has started other ranks, which will wait for this one."""
    return int(os.environ.get("WORLD_SIZE", os.environ.get("SLURM_NTASKS", "1"))) > 1


def launched_environment() -> ClusterEnvironment | None:
    """The ranks as torch's variables tell them, if a launcher set all of those; None leaves it to Lightning.

    Lightning believes torchrun's and SLURM's only: under DeepSpeed's launcher it takes every node for the first.
    """
    given = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()
    return TorchElasticEnvironment() if given else None


class RankError(MonetError):
    """Another rank failed, or did not answer in time."""


def is_broken_connection(error: RuntimeError) -> bool:
    """Whether an error in a collective says that another rank is gone or silent, whatever the backend."""
    return isinstance(error, dist.DistError) or "gloo/transport" in str(error)


class Ranks:
    """One process alone: what it says is what all say."""

    rank, world_size = 0, 1

    def broadcast(self, value: T, what: str) -> T:
        """Rank 0's value, on every rank."""
        return value

    def gather(self, value: T, what: str) -> list[T]:
        """Every rank's value, in the order of the ranks, on every rank."""
        return [value]


class ProcessRanks(Ranks):
    """The ranks of a run, over gloo whatever the training uses. Every rank must construct it and make the same calls.

    Args:
        timeout: how long the slowest rank may take to any call.
    """

    def __init__(self, timeout: timedelta) -> None:
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.timeout = timeout
        self._group: Any = dist.new_group(backend="gloo", timeout=timeout)

    def broadcast(self, value: T, what: str) -> T:
        """Rank 0's value, on every rank.

        Args:
            value: what can be pickled; it goes to processes of this run only.
            what: for messages, what the ranks are about to do.
        Raises:
            RankError: names the ranks that did not come, where gloo knows them.
        """
        self._meet(what)
        values: list[Any] = [value]
        dist.broadcast_object_list(values, src=0, group=self._group)
        return values[0]

    def gather(self, value: T, what: str) -> list[T]:
        """Every rank's value, in the order of the ranks, on every rank; see `broadcast`."""
        self._meet(what)
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self._group)
        return values

    def lost(self, error: RuntimeError) -> RankError:
        """What to say of a broken connection, after waiting for the others to notice it too."""
        silent = ", ".join(map(str, self._silent()))
        gone = f"rank {silent} died or does not answer" if silent else "the connection between the ranks broke"
        return RankError(
            f"{gone} ({_first_line(error)}); its own output says why, and the same command continues from the newest"
            " checkpoint"
        )

    def _silent(self) -> list[int]:
        """Ranks that have not noticed it: those that are gone, or wait in a call that has not failed yet."""
        keys = {rank: f"monet/noticed/{rank}" for rank in range(self.world_size)}
        end = time.monotonic() + ROLL_CALL_SECONDS
        try:
            store = dist.distributed_c10d._get_default_store()
            store.set(keys[self.rank], "")
        except RuntimeError:  # it lived in rank 0
            return [0]
        with contextlib.suppress(RuntimeError):
            while keys and time.monotonic() < end:
                keys = {rank: key for rank, key in keys.items() if not store.check([key])}
                time.sleep(0.1)
        return list(keys)

    def _meet(self, what: str) -> None:
        try:
            dist.monitored_barrier(self._group, timeout=self.timeout, wait_all_ranks=True)
        except RuntimeError as error:
            seconds = self.timeout.total_seconds()
            raise RankError(f"{what}: a rank died or took more than {seconds:g} s ({_first_line(error)})") from error


def _first_line(error: RuntimeError) -> str:
    return str(error).strip().splitlines()[0]
