"""Small labelled text and shards for tests."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any
from unittest.mock import patch

from monet.data.storage.shards import dtype_for, write_manifest
from monet.data.storage.writer import ShardWriter

SENTENCES = {
    "english": "the river runs under a wooden bridge and people walk over it every morning to buy bread",
    "python": "def return import self lambda yield for in range(10): print(value) class None True",
    "italian": "il fiume scorre sotto un ponte di legno e la gente passa ogni mattina per comprare il pane",
}
EOS = 1


def write_corpus(folder: Path, *, originals: int = 30, parts: int = 2, words: int = 40) -> Path:
    """Records in one sub-folder a domain; `parts` records come from each original."""
    for domain, sentence in SENTENCES.items():
        generator = random.Random(domain)
        lines = [
            json.dumps({"text": " ".join(generator.choices(sentence.split(), k=words)), "source": f"{domain}/{number}"})
            for number in range(originals)
            for _ in range(parts)
        ]
        (folder / domain).mkdir(parents=True)
        (folder / domain / "part-00.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    """Content of every file below a folder; a manifest without the speed, which differs from run to run."""
    content = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for name in content.keys() & {"manifest.json"}:
        manifest = json.loads(content[name])
        manifest["throughput"] = sorted(manifest["throughput"])
        content[name] = json.dumps(manifest).encode()
    return content


def zstandard(content: bytes) -> bytes:
    """A zstandard frame."""
    import pyarrow

    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


def make_shards(
    folder: Path,
    documents: dict[str, dict[str, list[list[int]]]],
    *,
    vocab_size: int = 100,
    shard_tokens: int = 50,
    sources: dict[str, list[str | None]] | None = None,
) -> Path:
    """Prepared data from token ids by split and domain; eos is added to each document.

    `sources` are the sources of a domain's documents in every split.
    """
    parts: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for split, domains in documents.items():
        parts[split] = {}
        for domain, listed in domains.items():
            writer = ShardWriter(folder / split / domain, dtype_for(vocab_size), vocab_size, shard_tokens)
            with patch.object(os, "fsync", lambda descriptor: None):  # shards of a test are not kept
                for number, ids in enumerate(listed):
                    writer.add([*ids, EOS], f"{domain}-{number}", len(ids), sources and sources[domain][number])
                writer.flush()
            parts[split][domain] = writer.entries
    for entry in folder.rglob("shard-*.json"):
        entry.unlink()
    write_manifest(folder, parts, vocab_size, EOS)
    return folder
