"""Hugging Face datasets -> local .jsonl parts, streamed, so that a broken download goes on where it stopped."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from monet.data.report import Progress
from monet.data.sources import Skipped, check_domain
from monet.errors import ConfigError, DataError
from monet.files import atomic_write_json, atomic_write_text

SCHEME = "hf://"
_OPTIONS = {"config": "name", "split": "split", "revision": "revision"}
_STATE = ".state.json"
_ROWS_A_PART = 5000


def parse(uri: str) -> tuple[str, dict[str, Any]]:
    """Name and keyword arguments for `datasets.load_dataset`, from hf://NAME?config=..&split=..&revision=..

    Raises:
        ConfigError: there is no name, or an option is unknown.
    """
    name, _, query = uri.removeprefix(SCHEME).partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    if not name:
        raise ConfigError(f"source {uri!r}: no dataset name; write {SCHEME}OWNER/NAME")
    if unknown := sorted(set(options) - set(_OPTIONS)):
        raise ConfigError(f"source {uri!r}: unknown option {unknown[0]!r}; known are {', '.join(_OPTIONS)}")
    return name, {"split": "train"} | {_OPTIONS[key]: value for key, value in options.items()}


def fetch(
    uri: str,
    folder: Path,
    skipped: Skipped,
    *,
    domain: str | None,
    domain_key: str | None,
    text_key: str,
    source_key: str,
    max_documents: int | None,
) -> None:
    """Stream a dataset into `folder`/DOMAIN/part-00000.jsonl, one record {text_key, source_key} a document.

    Progress is kept after every part; called again it skips the rows that are already there.

    Args:
        uri: see `parse`.
        folder: where the parts go; made when missing.
        skipped: collects rows that are left out; refuses instead unless its rule is "skip".
        domain: one name for all rows; None takes it from the column `domain_key`.
        text_key, source_key: columns with the text and the name of its original (the latter may be absent).
        max_documents: rows taken of each domain at most; None takes all.
    Raises:
        ConfigError: neither or both of domain and domain_key are given.
        DataError: the dataset cannot be read, or a row has no usable text or domain.
    """
    if (domain is None) == (domain_key is None):
        raise ConfigError(
            f"source {uri!r}: its domain must come either from a name (--domain, or a source that maps domains) or "
            f"from a column (--domain_key); got domain {domain!r} and domain_key {domain_key!r}"
        )
    path = folder / _STATE
    state: dict[str, Any] = {"rows": 0, "parts": 0, "documents": {}, "skipped": {}, "messages": [], "done": False}
    if path.is_file():
        state = json.loads(path.read_text(encoding="utf-8"))
    taken, missed = Counter(state["documents"]), Skipped(skipped.on_error, Counter(state["skipped"]), state["messages"])
    pending: dict[str, list[str]] = {}
    row = state["rows"]

    def keep(done: bool) -> None:
        for name, lines in pending.items():
            atomic_write_text(folder / name / f"part-{state['parts']:05d}.jsonl", "".join(lines))
        pending.clear()
        state.update(rows=row, parts=state["parts"] + 1, documents=dict(taken), skipped=dict(missed.counts), done=done)
        atomic_write_json(path, state)

    if not state["done"]:
        with Progress() as progress:
            task = progress.start(f"fetching {uri}", None, "rows")
            task.advance(row)
            for record in _rows(uri, row, text_key):
                row += 1
                where = f"{uri} row {row}"
                text = record.get(text_key)
                if not isinstance(text, str):
                    missed.problem("no text", f"{where}: {text_key!r} is {type(text).__name__}, not text")
                elif (name := _domain_of(record, domain, domain_key, where, missed)) and taken[name] != max_documents:
                    original = record.get(source_key)
                    line = {text_key: text, source_key: where if original is None else str(original)}
                    pending.setdefault(name, []).append(json.dumps(line) + "\n")
                    taken[name] += 1
                task.advance(1)
                if row % _ROWS_A_PART == 0:
                    keep(done=False)
                if domain is not None and taken[domain] == max_documents:
                    break
            keep(done=True)
    skipped.counts.update(missed.counts)
    skipped.messages.extend(missed.messages)


def _domain_of(
    record: dict[str, Any], domain: str | None, domain_key: str | None, where: str, skipped: Skipped
) -> str | None:
    if domain is not None:
        return domain
    try:
        return check_domain(record.get(str(domain_key)), f"{where}, column {domain_key!r}")
    except DataError as error:
        return skipped.problem("no domain", str(error))


def _rows(uri: str, first: int, text_key: str) -> Iterator[dict[str, Any]]:
    """Rows of the dataset from number `first` on."""
    name, options = parse(uri)
    # the package and what lies behind it (files, network, decoders) raise errors of many unrelated classes
    try:
        from datasets import load_dataset

        dataset = load_dataset(name, streaming=True, **options)
    except Exception as error:
        raise DataError(f"{uri}: cannot be opened ({_first_line(error)}); check name, options and network") from error
    columns = dataset.column_names
    if columns is not None and text_key not in columns:
        raise DataError(f"{uri}: no column {text_key!r} among {columns}; name the right one with --text_key")
    iterator = iter(dataset.skip(first))
    while True:
        try:
            yield next(iterator)
        except StopIteration:
            return
        except Exception as error:
            raise DataError(
                f"{uri}: reading stopped ({_first_line(error)}); what was fetched is kept, run the same command again"
            ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
