"""Agreement between ranks outside the training's collectives: small objects through one store, in bounded time."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

from monet.errors import MonetError

T = TypeVar("T")
# keys of the store: each rank's last value; its last call; how often all ranks came; rank 0's answers; how many ranks
# have read them
SAID, CAME, ANSWER, READ = "monet/said", "monet/came", "monet/answer", "monet/read"
ROLL_CALL_SECONDS = 10.0  # time for live ranks to notice a broken connection


def other_ranks_wait() -> bool:
    """Return whether an outside launcher (torchrun, srun, deepspeed) has started other ranks that wait for this one."""
    return int(os.environ.get("WORLD_SIZE", os.environ.get("SLURM_NTASKS", "1"))) > 1


def launched_environment() -> ClusterEnvironment | None:
    """Return the ranks from torch's variables, if a launcher set all of them; None leaves it to Lightning.

    Lightning recognises only torchrun and SLURM: under DeepSpeed's launcher it takes every node for the first.
    """
    given = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()
    return TorchElasticEnvironment() if given else None


_trainers = itertools.count()


class RankError(MonetError):
    """Another rank failed, or did not answer in time."""


def is_broken_connection(error: RuntimeError) -> bool:
    """Return whether an error in a collective of any backend means that another rank is gone or silent."""
    return isinstance(error, dist.DistError) or "gloo/transport" in str(error)


class Ranks:
    """A single process: its value is the value of all ranks."""

    rank, world_size = 0, 1

    def broadcast(self, value: T, what: str) -> T:
        """Return rank 0's value, on every rank."""
        return value

    def gather(self, value: T, what: str) -> list[T] | None:
        """Return every rank's value in rank order, on rank 0; None on the others."""
        return [value]


class ProcessRanks(Ranks):
    """The ranks of a run, connected by the key-value store of torch.distributed. Every rank must make the same calls.

    Each rank already has a connection to the store, so the ranks need no connections to each other. In a call, each
    rank writes its value to the store. After all have written, rank 0 answers, and the others wait for the answer. A
    late rank finds the answer that the call failed, so all ranks have made the same calls afterwards.

    Args:
        timeout: how long rank 0 waits for the slowest rank in any call.
    """

    def __init__(self, timeout: timedelta) -> None:
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.timeout = timeout
        # A process may train several times; calls of an earlier trainer have left their counts in the store.
        store = dist.distributed_c10d._get_default_store()
        prefix = f"monet/trainer/{next(_trainers)}"
        self._store = dist.PrefixStore(prefix, store)  # pyright: ignore[reportPrivateImportUsage]
        self._calls = 0
        # with many ranks, each polls the store less often
        self._longest_pause = 0.05 + self.world_size / 10_000

    def broadcast(self, value: T, what: str) -> T:
        """Return rank 0's value, on every rank.

        Args:
            value: a JSON-able value; tuples come back as lists.
            what: the next action of the ranks, for messages.
        Raises:
            RankError: names the missing ranks.
        """
        return self._meet(None, what, lambda: value)

    def gather(self, value: T, what: str) -> list[T] | None:
        """Return every rank's value in rank order, on rank 0; None on the others; see `broadcast`."""
        keys = [f"{SAID}/{rank}" for rank in range(self.world_size)]
        values = self._meet(value, what, lambda: [json.loads(said) for said in self._store.multi_get(keys)], False)
        return values if self.rank == 0 else None

    def _meet(self, said: Any, what: str, answer: Callable[[], Any], is_told: bool = True) -> Any:
        """Write a value to the store; after all ranks have, rank 0 makes the answer, and the others read it."""
        self._calls += 1
        answered, read = f"{ANSWER}/{self._calls}", f"{READ}/{self._calls}"
        found = None
        try:
            self._store.set(f"{SAID}/{self.rank}", json.dumps(said))
            self._store.set(f"{CAME}/{self.rank}", str(self._calls))
            self._store.add(CAME, 1)
            if self.rank == 0:
                all_came = self._wait(lambda: self._store.add(CAME, 0) == self._calls * self.world_size, self.timeout)
                absent = [] if all_came else self._absent()
                found = answer() if all_came else None
                self._store.set(answered, json.dumps([found if is_told else None, absent]))
                # rank 0 may end next, and the store ends with it
                readers = self.world_size - 1 - len(absent)
                self._wait(lambda: self._store.add(read, 0) >= readers, timedelta(seconds=ROLL_CALL_SECONDS))
                if all_came:  # otherwise late ranks still have to read it
                    self._store.delete_key(answered)
                    self._store.delete_key(read)
            # rank 0 may be late itself, and then wait for others
            elif self._wait(lambda: self._store.check([answered]), 2 * self.timeout):
                found, absent = json.loads(self._store.get(answered))
                self._store.add(read, 1)
            else:
                absent = [0]
        except RuntimeError as error:  # from the store
            raise RankError(
                f"{what}: the store of the ranks, at rank 0, does not answer ({_first_line(error)})"
            ) from error
        if absent:
            more = f" and {len(absent) - 10} more" if len(absent) > 10 else ""
            ranks = f"rank{'s' if len(absent) > 1 else ''} {', '.join(map(str, absent[:10]))}{more}"
            raise RankError(f"{what}: {ranks} died or took more than {self.timeout.total_seconds():g} s")
        return found

    def _wait(self, is_done: Callable[[], bool], timeout: timedelta) -> bool:
        """Return whether it is done in time."""
        end, pause = time.monotonic() + timeout.total_seconds(), 0.001
        while not is_done():
            if time.monotonic() > end:
                return False
            time.sleep(pause)
            pause = min(1.5 * pause, self._longest_pause)
        return True

    def _absent(self) -> list[int]:
        """Return the ranks that are missing from this call."""
        keys = [f"{CAME}/{rank}" for rank in range(self.world_size)]
        return [
            rank for rank, key in enumerate(keys)
            if not self._store.check([key]) or int(self._store.get(key)) != self._calls
        ]  # fmt: skip

    def lost(self, error: RuntimeError) -> RankError:
        """Return the message for a broken connection, after the other ranks had time to notice it."""
        silent = ", ".join(map(str, self._silent()))
        gone = f"rank {silent} died or does not answer" if silent else "the connection between the ranks broke"
        return RankError(
            f"{gone} ({_first_line(error)}); its own output has the reason. Run the same command to continue from the"
            " newest checkpoint"
        )

    def _silent(self) -> list[int]:
        """Return the ranks that have not noticed the break: they are gone, or wait in a call that has not failed."""
        keys = {rank: f"monet/noticed/{rank}" for rank in range(self.world_size)}
        end = time.monotonic() + ROLL_CALL_SECONDS
        try:
            store = dist.distributed_c10d._get_default_store()
            store.set(keys[self.rank], "")
        except RuntimeError:  # the store was in rank 0
            return [0]
        with contextlib.suppress(RuntimeError):
            while keys and time.monotonic() < end:
                keys = {rank: key for rank, key in keys.items() if not store.check([key])}
                time.sleep(0.1)
        return list(keys)


def _first_line(error: RuntimeError) -> str:
    return str(error).strip().splitlines()[0]
