"""Two real ranks over gloo open prepared data: one checks every shard, the other trusts it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.data_exponents import write_shards
from tests.marks import nightly


def start(ranks: Any, data: Path, out: Path) -> list[dict[str, Any]]:
    for done in ranks(["-m", "tests.distributed.data_ranks", str(data), str(out)]):
        assert done.returncode == 0, done.stderr
    return [json.loads((out / f"{rank}.json").read_text(encoding="utf-8")) for rank in (0, 1)]


@pytest.mark.parametrize("shards", [20, nightly(200)])
def test_one_rank_looks_at_every_shard(ranks, tmp_path, shards):
    first, second = start(ranks, write_shards(tmp_path / "data", shards), tmp_path)
    assert first["looks"] > 10 * shards and second["looks"] < 20
    assert first["refused"] == second["refused"] == ""
    assert len(first["seen"]) == len(second["seen"]) == 2 and first["seen"] != second["seen"]


def test_a_fault_that_one_rank_finds_ends_all(ranks, tmp_path):
    data = write_shards(tmp_path / "data", 5)
    shard = data / "train" / "text" / "shard-00003.bin"
    shard.write_bytes(shard.read_bytes()[:-2])
    for found in start(ranks, data, tmp_path):
        assert "shard-00003.bin: 78 bytes, but the manifest says 80" in found["refused"]
        assert found["seen"] == []
