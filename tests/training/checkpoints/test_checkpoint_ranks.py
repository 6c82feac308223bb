"""Work of each rank when many ranks open one checkpoint."""

from __future__ import annotations

import os
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.testing._internal.distributed.fake_pg import FakeStore

from benchmarks.thread_ranks import ThreadRanks, on_all
from monet.errors import CheckpointError
from monet.training.checkpoints import tensor_files
from monet.training.checkpoints.folder_io import FolderCheckpointIO
from monet.training.checkpoints.sharded_state import ShardedState
from monet.training.checkpoints.states import MOMENTS

RANKS, FILES = 8, 16


def checkpoint_io(ranks: ThreadRanks) -> FolderCheckpointIO:
    io = FolderCheckpointIO()
    io.ranks = ranks
    return io


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A checkpoint of eight ranks with a file for each of sixteen weights."""
    monkeypatch.setattr(tensor_files, "FILE_BYTES", 40)
    weights = {f"model.layers.{n}.weight": torch.full((4, 2), float(n)) for n in range(FILES)}
    path = tmp_path / "step-00000001"

    def save(ranks: ThreadRanks) -> None:
        content = {"state_dict": weights, "config": {"model_type": "monet"}, "rank_state": {"rank": ranks.rank}}
        checkpoint_io(ranks).save_checkpoint(content, path)

    on_all(RANKS, save)
    return path


@pytest.mark.skipif(
    sys.version_info < (3, 11), reason="pathlib of Python 3.10 holds os.stat itself: no look is counted"
)
def test_one_rank_looks_at_all_files_and_the_others_trust_it(folder, monkeypatch):
    looks: Counter[int] = Counter()

    def counted(look: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: looks.update([threading.get_ident()]) or look(*args, **kwargs)

    for name in ("stat", "lstat"):
        monkeypatch.setattr(os, name, counted(getattr(os, name)))

    def load(ranks: ThreadRanks) -> tuple[int, int]:
        found = checkpoint_io(ranks).load_checkpoint(folder)
        assert found["rank_state"] == {"rank": ranks.rank}
        assert torch.equal(found["state_dict"]["model.layers.3.weight"], torch.full((4, 2), 3.0))
        return looks[threading.get_ident()], len(found["state_dict"].weights._files)

    counts, opened = zip(*on_all(RANKS, load), strict=True)
    assert counts[0] > 2 * FILES and max(counts[1:]) < 5, counts
    assert set(opened) == {1}, "only the file with the tensor is opened"


def test_what_one_rank_finds_wrong_all_ranks_say(folder):
    with open(folder / "rank-00005.safetensors", "ab") as file:
        file.write(b"more")

    def load(ranks: ThreadRanks) -> str:
        with pytest.raises(CheckpointError) as raised:
            checkpoint_io(ranks).load_checkpoint(folder)
        return str(raised.value)

    (message,) = set(on_all(RANKS, load))
    assert "rank-00005.safetensors" in message and "bytes where the manifest says" in message


SHAPES = {"a": (7, 3, 2), "b": (10,), "c": (), "d": (0, 4), "e": (5, 0)}


def test_a_part_of_a_stored_tensor_is_that_of_the_whole(tmp_path):
    tensors = {name: torch.rand(shape) for name, shape in SHAPES.items()}
    save_file(tensors, tmp_path / "model.safetensors")
    stored = tensor_files.StoredTensors(tmp_path, "model")
    for name, tensor in tensors.items():
        assert stored.shape(name) == tuple(tensor.shape)
        for start in range(tensor.numel() + 2):
            for stop in range(start, tensor.numel() + 3):
                assert torch.equal(stored.part(name, start, stop), tensor.flatten()[start:stop]), (name, start, stop)


class Counted(tensor_files.StoredTensors):
    """Counts the requested elements."""

    read = 0

    def __getitem__(self, name: str) -> torch.Tensor:
        tensor = super().__getitem__(name)
        self.read += tensor.numel()
        return tensor

    def part(self, name: str, start: int, stop: int) -> torch.Tensor:
        part = super().part(name, start, stop)
        self.read += part.numel()
        return part


def test_a_rank_of_fsdp2_reads_its_own_rows(tmp_path):
    names = {"0.weight": (33, 8), "0.bias": (33,), "1.weight": (5, 33), "1.bias": (5,)}
    weights = {f"model.{name}": torch.rand(shape) for name, shape in names.items()}
    moments = {f"{name}/{key}": torch.rand(shape) for name, shape in names.items() for key in MOMENTS}
    moments |= {f"{name}/step": torch.tensor(3.0) for name in names}
    for stem, tensors in (("model", weights), ("optimizer", moments)):
        save_file(tensors, tmp_path / f"{stem}.safetensors")
    dist.init_process_group("fake", store=FakeStore(), rank=3, world_size=RANKS)
    try:
        model = torch.nn.Sequential(torch.nn.Linear(8, 33), torch.nn.Linear(33, 5))
        fully_shard(model, mesh=init_device_mesh("cpu", (RANKS,)))
        optimizer = torch.optim.AdamW(model.parameters())
        stored, stored_moments = Counted(tmp_path, "model"), Counted(tmp_path, "optimizer")
        ShardedState(model, optimizer).load(stored, stored_moments)
        for name, parameter in model.named_parameters():
            rows = slice(3 * 5, 4 * 5) if name.startswith("0") else slice(3, 4)
            assert torch.equal(parameter.to_local(), weights[f"model.{name}"][rows])
            state = optimizer.state[parameter]
            assert state["step"] == 3
            for key in MOMENTS:
                assert state[key].shape == parameter.shape
                assert torch.equal(state[key].to_local(), moments[f"{name}/{key}"][rows])
    finally:
        dist.destroy_process_group()
    own = 5 * 8 + 5 + 33 + 1
    assert stored.read == own and stored_moments.read == 2 * own + len(names)
