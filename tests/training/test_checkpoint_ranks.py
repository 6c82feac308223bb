"""What each of many ranks does when all of them open one checkpoint."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.scale_plan import ThreadRanks, on_all
from monet.errors import CheckpointError
from monet.training import tensor_files
from monet.training.folder_io import FolderCheckpointIO

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
