"""Hugging Face datasets: rows streamed from any row on, or fetched into local .jsonl files."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from monet.data import limits
from monet.data.documents.keys import missing_text, split_keys, text_at, value_at
from monet.data.documents.offline import plain_columns, refuse_addresses
from monet.data.documents.records import MAX_DOCUMENT_BYTES, NO_SOURCE, usable
from monet.data.documents.sources import Document, Skipped, check_domain
from monet.data.report import Progress
from monet.errors import ConfigError, DataError
from monet.files import atomic_write_json, atomic_write_text

SCHEME = "hf://"
_OPTIONS = {"config": "name", "split": "split", "revision": "revision", "data_dir": "data_dir"}
_STATE = ".state.json"


def parse(uri: str) -> tuple[str, dict[str, Any]]:
    """Return name and arguments for `datasets.load_dataset`, from hf://NAME?config=..&data_dir=..&split=..&revision=..

    Raises:
        ConfigError: the name is missing, or an option is unknown.
    """
    name, _, query = uri.removeprefix(SCHEME).partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    if not name:
        raise ConfigError(f"source {uri!r}: the dataset name is missing; write {SCHEME}OWNER/NAME")
    if unknown := sorted(set(options) - set(_OPTIONS)):
        raise ConfigError(f"source {uri!r}: unknown option {unknown[0]!r}; choose from {', '.join(_OPTIONS)}")
    return name, {"split": "train"} | {_OPTIONS[key]: value for key, value in options.items()}


def check_labels(uri: str, domain: str | None, domain_key: str | None) -> None:
    """Refuse a source whose domain comes from neither a name nor a column, or from both.

    Raises:
        ConfigError: the domain is missing or ambiguous, or `parse` refuses the uri.
    """
    parse(uri)
    if (domain is None) == (domain_key is None):
        raise ConfigError(
            f"source {uri!r}: its domain must come either from a name (--domain, or a source that maps domains) or "
            f"from a column (--domain_key); got domain {domain!r} and domain_key {domain_key!r}"
        )


def commit_of(uri: str) -> str | None:
    """Return the commit that the source's revision names today, so that a later start can read the same rows.

    None for a local folder, and for a dataset whose commit cannot be found.
    """
    name, options = parse(uri)
    if Path(name).exists():
        return None
    try:
        from huggingface_hub import HfApi

        return HfApi().dataset_info(name, revision=options.get("revision"), timeout=30).sha
    except Exception:  # offline, or without access: opening the dataset reports the reason
        return None


class Rows:
    """Documents of a dataset in its order, from any row on.

    Args:
        uri: see `parse`.
        skipped: collects rows that are left out; raises an error unless its rule is "skip".
        place: where to start, a `place()` of the same dataset; None starts at the first row.
        commit: overrides the revision of the uri.
        domain: domain of all documents; None takes the domain of each row from the column `domain_key`.
        text_key, source_key: columns with the text and the name of its original (the latter may be absent).
        max_bytes: a longer text is a fault.
    Attributes:
        row: rows read so far.
    Raises:
        DataError: the dataset cannot be opened or lacks a column.
    """

    def __init__(
        self,
        uri: str,
        skipped: Skipped,
        place: dict[str, Any] | None = None,
        *,
        commit: str | None = None,
        domain: str | None,
        domain_key: str | None,
        text_key: str,
        source_key: str,
        max_bytes: int = MAX_DOCUMENT_BYTES,
    ) -> None:
        self.uri, self.skipped = uri, skipped
        self.domain, self.domain_key = domain, domain_key
        self.text_key, self.source_key, self.max_bytes = text_key, source_key, max_bytes
        self.row = 0 if place is None else place["row"]
        self._name, options = parse(uri)
        if commit is not None:
            options["revision"] = commit
        # the package and its dependencies (files, network, decoders) raise errors of many unrelated classes
        try:
            from datasets import load_dataset

            if Path(self._name).exists():
                refuse_addresses(Path(self._name))
            self._dataset = load_dataset(self._name, streaming=True, **options)
            columns = self._dataset.column_names
            if columns is not None:
                keys = split_keys(text_key, columns)
                self._dataset = plain_columns(self._dataset, {*keys, source_key, domain_key})
            if place is not None:
                self._dataset.load_state_dict(place["state"])
        except DataError:
            raise
        except Exception as error:
            raise DataError(
                f"{uri}: cannot be opened ({_first_line(error)}); check name, options and network"
            ) from error
        known = {*(columns or ())}
        absent = [key for key in split_keys(text_key, known) if known and not known & {key, key.split(".")[0]}]
        if absent:
            raise DataError(f"{uri}: no column {absent[0]!r} among {columns}; name the right one with --text_key")

    def place(self) -> dict[str, Any]:
        """Return the place of the next row, for JSON. Opening there skips whole files, so they are not loaded again."""
        return {"row": self.row, "state": self._dataset.state_dict()}

    def __iter__(self) -> Iterator[Document | None]:
        """Yield one item per row: its document, or None if the row is left out."""
        iterator = iter(self._dataset)
        while True:
            try:
                record = next(iterator)
            except StopIteration:
                return
            except Exception as error:
                raise DataError(
                    f"{self.uri}: reading stopped ({_first_line(error)}); finished work is kept, run the same command "
                    "again"
                ) from error
            self.row += 1
            yield self._document(record)

    def _document(self, record: dict[str, Any]) -> Document | None:
        where = f"{self.uri} row {self.row}"
        if (text := text_at(record, self.text_key)) is None:
            return self.skipped.problem("no text", f"{where}: {missing_text(record, self.text_key)}")
        domain = self.domain
        if domain is None:
            try:
                domain = check_domain(value_at(record, str(self.domain_key)), f"{where}, column {self.domain_key!r}")
            except DataError as error:
                return self.skipped.problem("no domain", str(error))
        if not text.strip():
            self.skipped.counts["empty"] += 1
        elif usable(text, where, self.skipped, self.max_bytes):
            original = value_at(record, self.source_key)
            source = where if original is None else str(original)
            return Document(text, domain, source, f"{self._name}:{self.row}", original is not None)
        return None


def fetch(
    uri: str, folder: Path, skipped: Skipped, *, max_documents: int | None, domain: str | None, **options: Any
) -> None:
    """Stream a dataset into `folder`/DOMAIN/part-00000.jsonl, one record {text_key, source_key} per document.

    Progress is saved after every part; the next call continues after the saved rows.

    Args:
        uri: see `parse`.
        folder: folder of the parts; created if missing.
        skipped: collects rows that are left out; raises an error unless its rule is "skip".
        max_documents: maximum number of documents of each domain; None takes all.
        domain, options: as for `Rows`.
    Raises:
        DataError: the dataset cannot be read, or a row has no usable text or domain.
    """
    path = folder / _STATE
    state: dict[str, Any] = {"place": None, "parts": 0, "documents": {}, "skipped": {}, "messages": [], "done": False}
    if path.is_file():
        state |= json.loads(path.read_text(encoding="utf-8"))
    taken, missed = Counter(state["documents"]), Skipped(skipped.on_error, Counter(state["skipped"]), state["messages"])
    if not state["done"]:
        rows = Rows(uri, missed, state["place"], domain=domain, **options)
        pending: dict[str, list[str]] = {}
        characters = 0

        def keep(done: bool) -> None:
            for name, lines in pending.items():
                atomic_write_text(folder / name / f"part-{state['parts']:05d}.jsonl", "".join(lines))
            pending.clear()
            state.update(place=rows.place(), parts=state["parts"] + 1, done=done)
            state.update(documents=dict(taken), skipped=dict(missed.counts), messages=missed.messages)
            atomic_write_json(path, state)

        with Progress() as progress:
            task = progress.start(f"fetching {uri}", None, "rows")
            task.advance(rows.row)
            for document in rows:
                if document is not None and taken[document.domain] != max_documents:
                    line: dict[str, Any] = {rows.text_key: document.text, rows.source_key: document.source}
                    if not document.has_source:
                        line[NO_SOURCE] = True
                    pending.setdefault(document.domain, []).append(json.dumps(line) + "\n")
                    characters += len(document.text)
                    taken[document.domain] += 1
                task.advance(1)
                if rows.row % limits.PART_ROWS == 0 or characters >= limits.PART_CHARACTERS:
                    keep(done=False)
                    characters = 0
                if domain is not None and taken[domain] == max_documents:
                    break
            keep(done=True)
    skipped.counts.update(missed.counts)
    skipped.messages.extend(missed.messages)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
