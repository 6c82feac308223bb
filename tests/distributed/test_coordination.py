"""Agreement between ranks: real processes over one store, without connections to each other."""

from __future__ import annotations

import os
import time
from typing import Any

import pytest

from benchmarks.processes import forked_ranks
from monet.training.ranks.coordination import ProcessRanks, RankError


def talk(ranks: ProcessRanks, before: int) -> Any:
    told = ranks.broadcast(["from", ranks.rank], "talking")
    heard = ranks.gather({"rank": ranks.rank}, "talking")
    again = ranks.broadcast(ranks.rank, "talking")
    return told, heard, again, max(0, len(os.listdir("/proc/self/fd")) - before)


@pytest.mark.parametrize("world_size", [1, 6])
def test_ranks_agree_over_the_connections_that_they_have(world_size):
    first, *others = forked_ranks(talk, world_size)
    assert first == (["from", 0], [{"rank": rank} for rank in range(world_size)], 0, 0)
    assert others == [(["from", 0], None, 0, 0)] * (world_size - 1)


def miss_one(ranks: ProcessRanks, before: int) -> Any:
    if ranks.rank == 2:
        time.sleep(4)
    try:
        ranks.broadcast("first", "meeting")
    except RankError as error:
        return str(error), ranks.broadcast("second", "meeting again")
    return "all came"


def test_a_late_rank_is_named_and_the_next_call_works_again():
    message = "meeting: rank 2 died or took more than 3 s"
    assert forked_ranks(miss_one, 4, seconds=3) == [(message, "second")] * 4


def die(ranks: ProcessRanks, before: int) -> Any:
    if ranks.rank in (1, 3):
        os._exit(9)
    return ranks.gather(0, "saving")


def test_ranks_that_died_are_named():
    found = forked_ranks(die, 4, seconds=1)
    message = "saving: ranks 1, 3 died or took more than 1 s"
    assert found == [message, None, message, None]
