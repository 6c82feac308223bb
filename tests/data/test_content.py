"""Training data whose bytes are no longer those of their manifest."""

import shutil

import pytest

from monet.data import datamodule
from monet.data.datamodule import MonetDataModule
from monet.errors import DataError


@pytest.fixture
def changed(prepared, tmp_path):
    """Data of the same sizes with two ids of one document exchanged."""
    folder = shutil.copytree(prepared, tmp_path / "data")
    shard = next(folder.glob("train/*/shard-00000.bin"))
    content = bytearray(shard.read_bytes())
    place = next(i for i in range(0, len(content), 2) if content[i : i + 2] != content[i + 2 : i + 4])
    content[place : place + 4] = content[place + 2 : place + 4] + content[place : place + 2]
    shard.write_bytes(content)
    return folder


def test_other_shards_of_equal_size_are_refused(changed):
    with pytest.raises(DataError, match=r"shard-00000\.bin: content differs"):
        MonetDataModule(str(changed), seq_len=16).train_dataloader()


def test_large_data_are_not_hashed_at_every_start(changed, monkeypatch):
    monkeypatch.setattr(datamodule, "_HASHED_BELOW_BYTES", 0)
    MonetDataModule(str(changed), seq_len=16).train_dataloader()
