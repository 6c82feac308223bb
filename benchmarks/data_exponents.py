"""Counts how the costs of reading data grow with shards, ranks and the length of a document; part of `scale_plan`."""

from __future__ import annotations

import builtins
import io
import os
import resource
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np

from benchmarks.scale_exponents import Growth, growth
from benchmarks.thread_ranks import ThreadRanks, on_all
from monet.data.loading.datamodule import MonetDataModule
from monet.data.storage.shards import TokenShards, dtype_for, write_manifest
from monet.data.storage.writer import ShardWriter
from monet.data.tokens.text_encoder import TextEncoder

EOS, VOCABULARY, TOKENS = 1, 100, 40


def write_shards(folder: Path, shards: int) -> Path:
    """Prepared data of this many shards, with one document in each."""
    writer = ShardWriter(folder / "train" / "text", dtype_for(VOCABULARY), VOCABULARY, TOKENS)
    with patch.object(os, "fsync", lambda descriptor: None):  # they are not kept
        for number in range(shards):
            writer.add([*range(2, TOKENS + 1), EOS], str(number), TOKENS)
        writer.flush()
    for entry in folder.rglob("shard-*.json"):
        entry.unlink()
    write_manifest(folder, {"train": {"text": writer.entries}}, VOCABULARY, EOS)
    return folder


@contextmanager
def counted_looks() -> Iterator[list[int]]:
    """A list that gets an entry for every file that is opened or whose status is read."""
    looks: list[int] = []

    def counted(look: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: looks.append(threading.get_ident()) or look(*args, **kwargs)

    with ExitStack() as stack:
        for module, name in ((os, "stat"), (os, "lstat"), (os, "open"), (io, "open"), (builtins, "open")):
            stack.enter_context(patch.object(module, name, counted(getattr(module, name))))
        yield looks


def descriptors(shards: int) -> int:
    """Most descriptors that a process holds while it reads this many shards, with a low limit on descriptors."""
    with tempfile.TemporaryDirectory() as name:
        folder = write_shards(Path(name), shards)
        before = {int(number) for number in os.listdir("/proc/self/fd")}
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        # few more than what is open already: a quarter of them is fewer than the shards
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(before) + 256, hard))
        try:
            stream = TokenShards(folder).stream("train", "text")
            most = 0
            for start in range(0, stream.num_tokens, TOKENS):
                assert len(stream.read(start, start + TOKENS)) == TOKENS
                most = max(most, len(os.listdir("/proc/self/fd")) - len(before))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return most


def looks_of_rank(shards: int, trusted: bool) -> int:
    """File accesses of a rank that opens this many shards."""
    with tempfile.TemporaryDirectory() as name:
        folder = write_shards(Path(name), shards)
        with counted_looks() as looks:
            TokenShards(folder, trusted=trusted)
    return len(looks)


def looks_of_all(world_size: int, shards: int = 100) -> int:
    """File accesses of all ranks of a run while they open its data."""
    with tempfile.TemporaryDirectory() as name:
        folder = write_shards(Path(name), shards)

        def start(ranks: ThreadRanks) -> None:
            data = MonetDataModule(data_dir=str(folder), full_check=False)
            strategy = SimpleNamespace(broadcast=lambda value: ranks.broadcast(value, "data"))
            trainer = SimpleNamespace(world_size=world_size, is_global_zero=ranks.rank == 0, strategy=strategy)
            data.trainer = trainer  # type: ignore[assignment]
            data.setup()
            assert data.shards.stream("train", "text").num_documents == shards

        with counted_looks() as looks:
            on_all(world_size, start)
    return len(looks)


class _Letters(SimpleNamespace):
    """Stand-in for a tokenizer: an id for each letter; records the largest number of letters it got at once."""

    most = 0

    def no_truncation(self) -> None:
        pass

    def no_padding(self) -> None:
        pass

    def encode_batch_fast(self, texts: list[str], add_special_tokens: bool) -> list[SimpleNamespace]:
        self.most = max(self.most, sum(map(len, texts)))
        return [SimpleNamespace(ids=np.frombuffer(text.encode("ascii"), dtype=np.uint8).tolist()) for text in texts]


def letters_at_once(length: int) -> int:
    """Largest number of letters that the tokenizer gets at once from one document of this length."""
    backend = _Letters()
    text = ("a line of words\n" * (length // 16 + 1))[:length]
    (ids,) = TextEncoder(backend, [], EOS).arrays([text])  # type: ignore[arg-type]
    assert len(ids) == length + 1
    return backend.most


def growths() -> list[Growth]:
    """All costs of reading data."""
    shards, ranks = (10, 100), (8, 64)
    return [
        growth("descriptors held, reading all shards", "shards", descriptors, (600, 1200), 0.1),
        growth("looks at files, a rank that trusts", "shards", lambda n: looks_of_rank(n, True), shards, 0.1),
        growth("looks at files, the rank that checks", "shards", lambda n: looks_of_rank(n, False), shards, 1.05),
        growth("looks at files, opening 100 shards, all ranks", "ranks", looks_of_all, ranks, 0.3),
        growth("letters in the tokenizer at once", "letters of a document", letters_at_once,
               (1_000_000, 16_000_000), 0.3),
    ]  # fmt: skip
