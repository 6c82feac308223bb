"""`python -m benchmarks.data_scale`: measures the cost of preparing and opening data at growing sizes, with exponents.

Every figure is measured in a separate process, see benchmarks/measured.py.
"""

from __future__ import annotations

import contextlib
import io
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.data_exponents import write_shards
from benchmarks.measured import Cost, measured_main, now, spent
from monet.data.preparation.join import join
from monet.data.preparation.prepare import prepare
from monet.data.storage.shards import TokenShards
from monet.data.tokens.tokenizer import Encoder, save_tokenizer, train_tokenizer

MEGABYTE = 1_000_000


def words(size: int, seed: int = 0) -> str:
    """Lines of made-up words with this many letters."""
    generator = random.Random(seed)
    known = ["".join(generator.choices("etaoinshrdlu", k=generator.randint(2, 9))) for _ in range(2000)]
    some = " ".join("\n" * (number % 12 == 0) + generator.choice(known) for number in range(30_000))
    return (some * (size // len(some) + 1))[:size]


def tokenizer() -> Any:
    """A byte-level BPE of 2,048 ids."""
    return train_tokenizer([words(200_000, seed) for seed in range(3)], 2048)


def document(megabytes: int) -> dict[str, float]:
    """Encodes one document of this many megabytes."""
    encoder, text = Encoder(tokenizer()), words(megabytes * MEGABYTE)
    encoder.arrays([words(MEGABYTE)])
    before = now()
    encoder.arrays([text])
    return spent(before)


def document_as_one(megabytes: int) -> dict[str, float]:
    """Encodes one document as a whole, without cutting it into pieces."""
    encoder, text = Encoder(tokenizer()), words(megabytes * MEGABYTE)
    encoder.arrays([words(MEGABYTE)])
    before = now()
    encoder.plain([text])
    return spent(before)


def opened(shards: int, trusted: bool = False) -> dict[str, float]:
    """Opens prepared data of this many shards."""
    with tempfile.TemporaryDirectory() as name:
        folder = write_shards(Path(name), shards)
        before = now()
        TokenShards(folder, trusted=trusted)
        return spent(before)


def trusted(shards: int) -> dict[str, float]:
    """Opens the data on a rank that trusts another rank's checks."""
    return opened(shards, trusted=True)


def joined(files: int, parts: int = 3) -> dict[str, float]:
    """Joins three parts of this many files, with one shard in each."""
    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stdout(io.StringIO()):
        folder = Path(name)
        (folder / "text").mkdir()
        for number in range(files):
            (folder / "text" / f"{number:06d}.txt").write_text(words(400, number % 7), encoding="utf-8")
        save_tokenizer(tokenizer(), folder / "tokenizer", add_bos=False)
        for part in range(parts):
            prepare(str(folder / "text"), folder / "data", domain="text", tokenizer=str(folder / "tokenizer"),
                    shard_tokens=1, stream=True, splits={"train": 1.0}, part=f"{part}/{parts}")  # fmt: skip
        before = now()
        join(folder / "data")
        return spent(before)


MEASURED: dict[str, Cost] = {
    "document": Cost(document, [4, 8, 16, 32, 60], "MB of one document, encoded"),
    "document_as_one": Cost(document_as_one, [4, 8, 16], "MB of one document, given to the tokenizer as one text"),
    "opened": Cost(opened, [100, 1000, 10_000], "shards, opened and checked"),
    "trusted": Cost(trusted, [100, 1000, 10_000], "shards, opened by a rank that trusts"),
    "joined": Cost(joined, [100, 1000], "shards of three parts, joined"),
}


def main(words: Sequence[str] | None = None) -> None:
    """Measure, print a table, and write the figures as JSON on request."""
    measured_main("benchmarks.data_scale", __doc__ or "", MEASURED, words)


if __name__ == "__main__":
    main()
