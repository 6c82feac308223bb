"""The stages of one preparation: fetch, scan, tokenizer, shards, manifest; each stage skips finished work."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monet.data.documents import hub
from monet.data.documents.originals import Originals
from monet.data.documents.reader import Keys, Reader, Remote
from monet.data.documents.sources import Skipped, TextFile, find_files
from monet.data.documents.splits import SplitPlan
from monet.data.preparation.batches import Written, batches
from monet.data.preparation.summary import Counted, summary
from monet.data.report import Progress, Task
from monet.data.storage.shards import MANIFEST, TOKENIZER, dtype_for, write_manifest
from monet.data.storage.writer import ShardWriter
from monet.data.tokens.encode import encoding
from monet.data.tokens.fidelity import Fidelity
from monet.data.tokens.tokenizer import Encoder, load_tokenizer, notes_on_bos, save_tokenizer, train_tokenizer
from monet.errors import DataError
from monet.files import atomic_directory, atomic_write_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

FETCHED, SCAN, COMMITS, PROGRESS = "fetched", "scan.json", "commits.json", "progress.json"
TOKENIZER_NOTES = "tokenizer-notes.json"
_ORIGINALS_KEPT = 1 << 16


class Job:
    """One preparation inside its partial folder: scan, tokenizer, shards, manifest.

    Args:
        folder: the partial folder.
        files: local text by domain.
        remote: datasets by domain.
        settings: settings that the manifest records; everything that decides about the result.
        keys: how records are read.
        processes: see `monet.data.tokens.encode.encoding`.
    """

    def __init__(
        self,
        folder: Path,
        files: dict[str, list[TextFile]],
        remote: dict[str, str],
        settings: dict[str, Any],
        keys: Keys,
        processes: int,
    ) -> None:
        self.folder = folder
        self.remote = remote
        self.files = {domain: list(listed) for domain, listed in files.items()}
        self.settings = settings
        self.keys = keys
        self.processes = processes
        self.streamed = bool(settings.get("stream"))
        self.skipped = Skipped(settings["on_error"])
        self.originals = Originals(keys.source)
        self.text_bytes = 0

    def run(self, tokenizer: str | None, identities: dict[str, list[tuple[str, str]]] | None = None) -> None:
        """Do the remaining work.

        Args:
            tokenizer: tokenizer to use; None trains one.
            identities: for a part, its files by domain, see `identities_of`; None for a whole preparation.
        """
        if (self.folder / MANIFEST).is_file():
            return
        remotes = self._remotes()
        if not self.streamed:
            self._fetch(remotes)
            remotes = []
        elif not (self.folder / PROGRESS).is_file():
            # open every dataset now, so that a wrong name fails at once and not after hours
            for remote in remotes:
                self._reader(self.skipped).open(remote)
        plan, documents = self._scan()
        with Progress() as progress:
            if not (self.folder / TOKENIZER).is_dir():
                made = load_tokenizer(tokenizer) if tokenizer else self._train(plan, progress)
                notes = notes_on_bos(made, self.settings["add_bos"])
                atomic_write_json(self.folder / TOKENIZER_NOTES, notes)
                with atomic_directory(self.folder / TOKENIZER) as temporary:
                    try:
                        save_tokenizer(made, temporary, add_bos=self.settings["add_bos"])
                    except Exception as error:  # tokenizers has no error type for a full disk
                        raise OSError(f"the tokenizer cannot be written: {error}") from error
            encoder = Encoder(load_tokenizer(str(self.folder / TOKENIZER)), add_bos=self.settings["add_bos"])
            task = progress.start("tokens", sum(documents.values()) if documents else None, "documents")
            entries, throughput, fidelity = self._write(plan, encoder, list(documents), remotes, task)
        if not entries["train"] and identities is None:
            raise DataError("the source holds no document with text; nothing can be prepared")
        counted: Counted = {
            "skipped": self.skipped.state(),
            "originals": self.originals.state(),
            "fidelity": fidelity.state(),
            "tokenizer_notes": json.loads((self.folder / TOKENIZER_NOTES).read_text(encoding="utf-8")),
            "commits": {remote.uri: remote.commit for remote in self._remotes() if remote.commit},
            "throughput": throughput,
        }
        more = summary(counted, entries, self.settings)
        if identities is not None:  # a part may lack data that the whole has; `join` writes the notes
            more = {key: value for key, value in more.items() if key != "notes"}
            more["part"] = {"identities": identities, "counted": counted}
        write_manifest(self.folder, entries, encoder.vocab_size, encoder.eos_id, **more)

    def _remotes(self) -> list[Remote]:
        """Return the datasets, each at the commit at which this preparation started."""
        path = self.folder / COMMITS
        if not path.is_file():
            atomic_write_json(path, {uri: hub.commit_of(uri) for uri in self.remote.values()})
        commits = json.loads(path.read_text(encoding="utf-8"))
        return [Remote(uri, name or None, commits[uri]) for name, uri in self.remote.items()]

    def _fetch(self, remotes: list[Remote]) -> None:
        for remote in remotes:
            # the name omits the commit, so that data fetched by an earlier start are found again
            digest = hashlib.sha256(f"{remote.domain or ''}\n{remote.uri}".encode()).hexdigest()
            folder = self.folder / FETCHED / digest[:16]
            hub.fetch(
                remote.uri,
                folder,
                self.skipped,
                max_documents=self.settings["max_documents"],
                commit=remote.commit,
                domain=remote.domain,
                domain_key=self.keys.domain,
                text_key=self.keys.text,
                source_key=self.keys.source,
                max_bytes=self.keys.max_bytes,
            )
            if any(folder.iterdir()):
                for domain, listed in find_files(folder)[0].items():
                    self.files.setdefault(domain, []).extend(replace(file, fetched=True) for file in listed)
        self.files = dict(sorted(self.files.items()))

    def _reader(
        self,
        skipped: Skipped,
        domains: list[str] | None = None,
        remotes: list[Remote] | None = None,
        place: dict[str, Any] | None = None,
    ) -> Reader:
        """Return all sources in their fixed order: by domain, and last the streams with a domain column."""
        chosen = self.files if domains is None else domains
        pieces: list[TextFile | Remote] = [file for domain in chosen for file in self.files[domain]]
        streams = sorted(remotes or [], key=lambda remote: (remote.domain is None, remote.domain))
        pieces += streams
        return Reader(pieces, self.keys, skipped, max_documents=self.settings["max_documents"], place=place)

    def _plan(self, moved: dict[int, str] | None = None) -> SplitPlan:
        by = self.settings.get("split_by", "original")
        return SplitPlan(self.settings["splits"], self.settings["seed"], moved, by)

    def _scan(self) -> tuple[SplitPlan, dict[str, int]]:
        """Read everything once: this finds bad input before hours of work, and gives every split its originals.

        A streamed preparation reads only once. Then only the hash decides about splits, and no count is known.
        """
        plan = self._plan()
        if self.streamed:
            return plan, {}
        path = self.folder / SCAN
        if path.is_file():
            scan = json.loads(path.read_text(encoding="utf-8"))
            self.skipped.restore(scan["skipped"])
            self.originals = Originals(self.keys.source, scan["originals"])
            self.text_bytes = scan["text_bytes"]
            return self._plan({int(place): split for place, split in scan["moved"].items()}), scan["documents"]
        places: dict[str, set[int]] = {domain: set() for domain in self.files}
        seen: dict[str, set[str]] = {domain: set() for domain in self.files}
        documents = dict.fromkeys(self.files, 0)
        with Progress() as progress:
            task = progress.start("reading", None, "documents")
            for document in self._reader(self.skipped):
                documents[document.domain] += 1
                if plan.by == "position":
                    seen[document.domain].update(split for split, _ in plan.parts(document.source, document.text))
                else:
                    self.originals.add(document)
                    place = plan.hash_of(document.source)
                    # with this many originals no split is empty, and a set of all would grow with the corpus
                    split, known = plan.split_of_hash(place), places[document.domain]
                    if len(known) < _ORIGINALS_KEPT or split not in seen[document.domain]:
                        known.add(place)
                        seen[document.domain].add(split)
                self.text_bytes += len(document.text.encode())
                task.advance(1)
        for domain in [domain for domain, count in documents.items() if not count]:
            self.skipped.problem("empty domain", f"domain {domain!r}: it has no document with text")
            del places[domain], documents[domain]
        if not places:
            raise DataError("the source holds no document with text; nothing can be prepared")
        if plan.by == "position":
            for domain in documents:
                if missing := set(plan.shares) - seen[domain]:
                    raise DataError(
                        f"domain {domain!r} has too little text to be cut into splits by position: none is left for "
                        f"{min(missing)!r}; add text, or give that split a larger share or the share 0"
                    )
        else:
            self.originals.refuse_few(plan.shares)
            plan.fill(places)
        moved = {str(place): split for place, split in sorted(plan.moved.items())}
        left_out = {"skipped": self.skipped.state(), "originals": self.originals.state()}
        atomic_write_json(path, {"documents": documents, "moved": moved, "text_bytes": self.text_bytes, **left_out})
        return plan, documents

    def _train(self, plan: SplitPlan, progress: Progress) -> PreTrainedTokenizerFast:
        """Train a tokenizer on the first training documents of each domain."""
        budget = self.settings["tokenizer_bytes"] // len(self.files)
        share = min(self.text_bytes * plan.shares["train"], self.settings["tokenizer_bytes"])
        task = progress.start("training the tokenizer", round(share), "bytes")

        def texts() -> Iterator[str]:
            for domain in self.files:
                left = budget
                for document in self._reader(Skipped(self.settings["on_error"]), [domain]):
                    for split, text in plan.parts(document.source, document.text):
                        if split == "train":
                            yield text
                            size = len(text.encode())
                            task.advance(size)
                            left -= size
                    if left <= 0:
                        break

        return train_tokenizer(texts(), self.settings["vocab_size"])

    def _write(
        self, plan: SplitPlan, encoder: Encoder, domains: list[str], remotes: list[Remote], task: Task
    ) -> tuple[dict[str, dict[str, list[dict[str, Any]]]], dict[str, Any], Fidelity]:
        """Write all shards; continue where an earlier start stopped.

        Returns:
            entries of the shards by split and domain, the throughput from `Written`, and what the ids lose.
        """
        progress = Written(self.folder / PROGRESS, self.processes)
        writers: dict[str, dict[str, ShardWriter]] = {split: {} for split in plan.shares}
        dtype, size = dtype_for(encoder.vocab_size), self.settings["shard_tokens"]

        def add_domain(domain: str) -> None:
            for split, listed in writers.items():
                state = progress.writers.get(f"{split}/{domain}")
                folder = self.folder / split / domain
                listed[domain] = ShardWriter(folder, dtype, encoder.vocab_size, size, state)

        for domain in [*domains, *sorted({key.partition("/")[2] for key in progress.writers} - {*domains})]:
            add_domain(domain)
        skipped = self.skipped if self.streamed else Skipped(self.settings["on_error"])
        if self.streamed:
            skipped.restore(progress.skipped)
            self.originals = Originals(self.keys.source, progress.originals)
        fidelity = Fidelity(encoder, Skipped(self.settings["on_error"]), progress.fidelity)
        reader = self._reader(skipped, domains if domains else None, remotes, progress.place)
        task.advance(progress.documents)
        with encoding(encoder, self.processes) as encode:
            for batch, encoded in encode(batches(reader, plan, self.originals if self.streamed else None)):
                for (split, domain, name, text_bytes, source), ids in zip(batch.documents, encoded, strict=True):
                    if domain not in writers["train"]:
                        add_domain(domain)
                    if fidelity.check(ids, domain, name):
                        writers[split][domain].add(ids, name, text_bytes, source)
                for domain, text in batch.samples.items():
                    fidelity.sample(text, domain)
                progress.add(batch, sum(map(len, encoded)))
                task.advance(len(batch.documents))
                task.describe(f"{progress.tokens:,} tokens, {progress.tokens_per_second:,.0f}/s")
                if progress.is_due():
                    progress.fidelity = fidelity.state()
                    progress.keep(writers)
        for listed in writers.values():
            for writer in listed.values():
                writer.flush()
        parts = {split: {name: writer.entries for name, writer in listed.items()} for split, listed in writers.items()}
        return parts, progress.throughput(), fidelity
