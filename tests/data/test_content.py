"""Training data whose bytes differ from their manifest."""

import os
import resource
import shutil

import pytest

from monet.data import limits
from monet.data.loading.datamodule import MonetDataModule
from monet.data.storage.shards import TokenShards, TokenStream
from monet.errors import DataError
from tests.data.samples import make_shards


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
    monkeypatch.setattr(limits, "HASHED_TOKEN_BYTES", 0)
    MonetDataModule(str(changed), seq_len=16).train_dataloader()


def test_a_shard_that_is_truncated_while_it_is_mapped_gives_an_error(changed):
    stream = TokenShards(changed).stream("train", "english")
    stream.read(0, 10)
    path = stream.path(0)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(DataError, match=r"shard-00000.bin: \d+ bytes, but the manifest says"):
        stream.read(0, 10)


@pytest.mark.parametrize("held", [0, 600])
def test_more_shards_than_descriptors(tmp_path, held):
    """Also in a process that holds many descriptors already: a quarter of the limit would be more than are free."""
    others = [os.open(os.devnull, os.O_RDONLY) for _ in range(held)]
    limit = max(map(int, os.listdir("/proc/self/fd"))) + 100
    shards_there = limit + 50
    make_shards(tmp_path, {"train": {"a": [list(range(2, 40))] * shards_there}}, shard_tokens=40)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        shards = TokenShards(tmp_path, full=True)
        stream = shards.stream("train", "a")
        found = [stream.read(39 * n, 39 * n + 39).tolist() for n in range(shards_there)]
        assert stream.document_at(39 * (shards_there - 1)) == shards_there - 1
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in others:
            os.close(descriptor)
    assert found == [[*range(2, 40), 1]] * shards_there


def test_a_trusted_folder_is_not_looked_at(changed, monkeypatch):
    monkeypatch.setattr(TokenStream, "check", None)
    shards = TokenShards(changed, trusted=True)
    assert shards.stream("train", "english").read(0, 5).size == 5
    path = shards.stream("train", "english").path(0)
    os.truncate(path, 10)
    with pytest.raises(DataError, match="10 bytes, but"):
        TokenShards(changed, trusted=True).stream("train", "english").read(0, 5)
