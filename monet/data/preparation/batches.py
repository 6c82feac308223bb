"""Groups documents into batches for tokenising, and records how much of a preparation is on the disk."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from monet.data import limits
from monet.data.documents.originals import Originals
from monet.data.documents.reader import Reader
from monet.data.documents.sources import Document
from monet.data.documents.splits import SplitPlan
from monet.data.storage.writer import ShardWriter
from monet.data.tokens.fidelity import SAMPLE_CHARACTERS
from monet.files import atomic_write_json
from monet.json_text import read_json


class Batch:
    """Documents to encode together, and the reader's place after them.

    Attributes:
        documents: split, domain, name, size in UTF-8 bytes and known source of each document.
        samples: for each domain, the first letters of its first document in the batch.
    """

    def __init__(self, reader: Reader, plan: SplitPlan, originals: Originals | None) -> None:
        self.documents: list[tuple[str, str, str, int, str | None]] = []
        self.texts: list[bytes] = []
        self.samples: dict[str, str] = {}
        self._reader = reader
        self._plan = plan
        self._originals = originals

    def add(self, document: Document) -> None:
        if self._originals is not None:
            self._originals.add(document)
        if document.domain not in self.samples:
            self.samples[document.domain] = document.text[:SAMPLE_CHARACTERS]
        for split, text in self._plan.parts(document.source, document.text):
            self.texts.append(text.encode())
            size = len(self.texts[-1])
            self.documents.append((split, document.domain, document.name, size, document.known_source))

    def name_of(self, index: int) -> str:
        return self.documents[index][2]

    def close(self) -> tuple[list[bytes], Batch]:
        self.place = self._reader.place()
        self.skipped = self._reader.skipped.state()
        self.originals = {} if self._originals is None else self._originals.state()
        texts, self.texts = self.texts, []
        return texts, self


def batches(reader: Reader, plan: SplitPlan, originals: Originals | None) -> Iterator[tuple[list[bytes], Batch]]:
    """Yield the reader's documents in batches, all parts of a document in one batch; `originals` counts documents."""
    batch, characters = Batch(reader, plan, originals), 0
    for document in reader:
        batch.add(document)
        characters += len(document.text)
        if len(batch.documents) >= limits.BATCH_DOCUMENTS or characters >= limits.BATCH_CHARACTERS:
            yield batch.close()
            batch, characters = Batch(reader, plan, originals), 0
    if batch.documents:
        yield batch.close()


class Written:
    """Progress on the disk: the reader's place and the state of every writer, in one file that is replaced whole."""

    def __init__(self, path: Path, processes: int) -> None:
        self._path = path
        self._processes = processes
        kept: dict[str, Any] = read_json(path) if path.is_file() else {}
        self.place: dict[str, Any] | None = kept.get("place")
        self.skipped: dict[str, Any] = kept.get("skipped", {"counts": {}, "messages": []})
        self.fidelity: dict[str, Any] | None = kept.get("fidelity")
        self.originals: dict[str, Any] = kept.get("originals", {})
        self.writers: dict[str, dict[str, int]] = kept.get("writers", {})
        self.documents: int = kept.get("documents", 0)
        self.tokens: int = kept.get("tokens", 0)
        self._seconds: float = kept.get("seconds", 0.0)
        self._began = self._kept = time.perf_counter()

    def add(self, batch: Batch, tokens: int) -> None:
        self.place, self.skipped, self.originals = batch.place, batch.skipped, batch.originals
        self.documents += len(batch.documents)
        self.tokens += tokens

    @property
    def seconds(self) -> float:
        return self._seconds + time.perf_counter() - self._began

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / max(self.seconds, 1e-9)

    def throughput(self) -> dict[str, Any]:
        """Return the tokens and the time to read, tokenise and write them, over all starts, without lost work."""
        return {
            "tokens": self.tokens,
            "seconds": round(self.seconds, 3),
            "tokens_per_second": round(self.tokens_per_second, 1),
            "processes": self._processes,
        }

    def is_due(self) -> bool:
        return time.perf_counter() - self._kept >= limits.KEEP_SECONDS

    def keep(self, writers: dict[str, dict[str, ShardWriter]]) -> None:
        states = {f"{split}/{name}": writer.state() for split, w in writers.items() for name, writer in w.items()}
        content = {
            "place": self.place,
            "skipped": self.skipped,
            "originals": self.originals,
            "fidelity": self.fidelity,
            "writers": states,
            "documents": self.documents,
            "tokens": self.tokens,
            "seconds": self.seconds,
        }
        atomic_write_json(self._path, content)
        self._kept = time.perf_counter()
