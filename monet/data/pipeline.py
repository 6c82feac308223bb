"""The work of one preparation: fetch, scan, tokenizer, shards, manifest; each stage passes over what is there."""

from __future__ import annotations

import hashlib
import json
import time
from array import array
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monet.data import hub
from monet.data.report import Progress
from monet.data.shards import MANIFEST, TOKENIZER, ShardWriter, dtype_for, write_manifest
from monet.data.sources import Document, Skipped, TextFile, find_files, read_documents
from monet.data.splits import SplitPlan
from monet.data.tokenizer import Encoder, load_tokenizer, train_tokenizer
from monet.errors import DataError
from monet.files import atomic_directory, atomic_write_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

FETCHED, SCAN = "fetched", "scan.json"
_BATCH_DOCUMENTS, _BATCH_CHARACTERS = 512, 1 << 21


class Job:
    """One preparation inside its partial folder: scan, tokenizer, shards, manifest."""

    def __init__(self, folder: Path, files: dict[str, list[TextFile]], settings: dict[str, Any]) -> None:
        self.folder = folder
        self.files = {domain: list(listed) for domain, listed in files.items()}
        self.settings = settings
        self.skipped = Skipped(settings["on_error"])
        self.text_bytes = 0
        self.tokens_per_second = 0.0

    def run(self, tokenizer: str | None) -> None:
        if (self.folder / MANIFEST).is_file():
            return
        self._fetch()
        plan, documents = self._scan()
        with Progress() as progress:
            if not (self.folder / TOKENIZER).is_dir():
                made = load_tokenizer(tokenizer) if tokenizer else self._train(plan, progress)
                with atomic_directory(self.folder / TOKENIZER) as temporary:
                    made.save_pretrained(str(temporary))
            encoder = Encoder(load_tokenizer(str(self.folder / TOKENIZER)), add_bos=self.settings["add_bos"])
            began, tokens = time.perf_counter(), 0
            parts: dict[str, dict[str, list[dict[str, Any]]]] = {split: {} for split in plan.shares}
            for domain, num_documents in documents.items():
                writers = self._writers(domain, list(parts), encoder)
                tokens += self._write(domain, num_documents, writers, plan, encoder, progress)
                for split, writer in writers.items():
                    parts[split][domain] = writer.entries
            self.tokens_per_second = tokens / (time.perf_counter() - began)
        skipped = {"counts": dict(sorted(self.skipped.counts.items())), "examples": self.skipped.messages}
        write_manifest(self.folder, parts, encoder.vocab_size, encoder.eos_id, skipped=skipped, settings=self.settings)

    def _fetch(self) -> None:
        keys = ("domain_key", "text_key", "source_key", "max_documents")
        options = {key: self.settings[key] for key in keys}
        for name, uri in self.settings["remote"].items():
            folder = self.folder / FETCHED / hashlib.sha256(f"{name}\n{uri}".encode()).hexdigest()[:16]
            hub.fetch(uri, folder, self.skipped, domain=name or None, **options)
            if any(folder.iterdir()):
                for domain, listed in find_files(folder)[0].items():
                    self.files.setdefault(domain, []).extend(listed)
        self.files = dict(sorted(self.files.items()))

    def _documents(self, domain: str, skipped: Skipped) -> Iterator[Document]:
        """The domain's documents in their fixed order."""
        left = self.settings["max_documents"]
        for file in self.files[domain]:
            for document in read_documents(
                file, skipped, text_key=self.settings["text_key"], source_key=self.settings["source_key"]
            ):
                yield document
                if left is not None and (left := left - 1) == 0:
                    return

    def _scan(self) -> tuple[SplitPlan, dict[str, int]]:
        """Read everything once: bad input is found before hours of work, and every split gets its originals."""
        path = self.folder / SCAN
        if path.is_file():
            scan = json.loads(path.read_text(encoding="utf-8"))
            self.skipped.counts, self.skipped.messages = Counter(scan["skipped"]), scan["messages"]
            self.text_bytes = scan["text_bytes"]
            moved = {int(place): split for place, split in scan["moved"].items()}
            return SplitPlan(self.settings["splits"], self.settings["seed"], moved), scan["documents"]
        plan = SplitPlan(self.settings["splits"], self.settings["seed"])
        places: dict[str, array[int]] = {}
        with Progress() as progress:
            task = progress.start("reading", None, "documents")
            for domain in self.files:
                places[domain] = array("Q")
                for document in self._documents(domain, self.skipped):
                    places[domain].append(plan.hash_of(document.source))
                    self.text_bytes += len(document.text.encode())
                    task.advance(1)
        for domain in [domain for domain, listed in places.items() if not listed]:
            self.skipped.problem("empty domain", f"domain {domain!r}: no document with text in it")
            del places[domain]
        if not places:
            raise DataError("the source holds no document with text; nothing can be prepared")
        plan.fill(places)
        documents = {domain: len(listed) for domain, listed in places.items()}
        moved = {str(place): split for place, split in sorted(plan.moved.items())}
        left_out = {"skipped": dict(sorted(self.skipped.counts.items())), "messages": self.skipped.messages}
        atomic_write_json(path, {"documents": documents, "moved": moved, "text_bytes": self.text_bytes, **left_out})
        return plan, documents

    def _train(self, plan: SplitPlan, progress: Progress) -> PreTrainedTokenizerFast:
        """A tokenizer from the first training documents of each domain."""
        budget = self.settings["tokenizer_bytes"] // len(self.files)
        share = min(self.text_bytes * plan.shares["train"], self.settings["tokenizer_bytes"])
        task = progress.start("training the tokenizer", round(share), "bytes")

        def texts() -> Iterator[str]:
            for domain in self.files:
                left = budget
                for document in self._documents(domain, Skipped(self.settings["on_error"])):
                    if plan.split_of(document.source) == "train":
                        yield document.text
                        size = len(document.text.encode())
                        task.advance(size)
                        left -= size
                    if left <= 0:
                        break

        return train_tokenizer(texts(), self.settings["vocab_size"])

    def _writers(self, domain: str, splits: list[str], encoder: Encoder) -> dict[str, ShardWriter]:
        dtype, size = dtype_for(encoder.vocab_size), self.settings["shard_tokens"]
        return {split: ShardWriter(self.folder / split / domain, dtype, encoder.vocab_size, size) for split in splits}

    def _write(
        self,
        domain: str,
        num_documents: int,
        writers: dict[str, ShardWriter],
        plan: SplitPlan,
        encoder: Encoder,
        progress: Progress,
    ) -> int:
        """Write one domain's shards of all splits; documents in shards that are there already are passed over.

        Returns:
            tokens written now.
        """
        task = progress.start(f"tokens of {domain}", num_documents, "documents")
        seen: Counter[str] = Counter()
        batch: list[tuple[ShardWriter, Document]] = []
        characters = tokens = 0

        def encode() -> int:
            encoded = encoder([document.text for _, document in batch])
            for (writer, document), ids in zip(batch, encoded, strict=True):
                writer.add(ids, document.name, len(document.text.encode()))
            batch.clear()
            return sum(map(len, encoded))

        for document in self._documents(domain, Skipped(self.settings["on_error"])):
            task.advance(1)
            split = plan.split_of(document.source)
            seen[split] += 1
            if seen[split] <= writers[split].done:
                continue
            batch.append((writers[split], document))
            characters += len(document.text)
            if len(batch) == _BATCH_DOCUMENTS or characters >= _BATCH_CHARACTERS:
                tokens += encode()
                characters = 0
        tokens += encode()
        for writer in writers.values():
            writer.flush()
        return tokens
