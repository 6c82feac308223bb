"""Turns documents into splits, tokens and shards: the `monet data prepare` verb.

The work happens in a folder `OUT.partial` next to OUT, which is renamed to OUT when it is complete. Finished work in it
(fetched parts, tokenizer, shards) survives a kill, and the same command continues from there.
"""

from __future__ import annotations

import hashlib
import os
from itertools import chain
from pathlib import Path

from monet.data.documents import hub
from monet.data.documents.division import divided, part_folder, parts_folder
from monet.data.documents.formats import FileFormat, described
from monet.data.documents.keys import check_keys
from monet.data.documents.reader import Keys
from monet.data.documents.records import MAX_DOCUMENT_BYTES
from monet.data.documents.sources import OnError, TextFile, check_domain, find_files, identities_of, inventory
from monet.data.documents.splits import DEFAULT_SHARES, SplitBy, check_shares
from monet.data.preparation.partial_folder import make, refuse_foreign
from monet.data.preparation.pipeline import Job
from monet.data.report import print_made
from monet.data.storage.shards import FORMAT, TokenShards
from monet.errors import ConfigError
from monet.files import sha256_file
from monet.parts import Part


def prepare(
    source: str | dict[str, str],
    out: Path,
    *,
    domain: str | None = None,
    tokenizer: str | None = None,
    vocab_size: int = 32000,
    tokenizer_bytes: int = 100_000_000,
    splits: dict[str, float] | None = None,
    split_by: SplitBy = "original",
    seed: int = 0,
    text_key: str = "text",
    source_key: str = "source",
    domain_key: str | None = None,
    format: FileFormat = "auto",
    document_separator: str | None = None,
    max_documents: int | None = None,
    on_error: OnError = "refuse",
    add_bos: bool = False,
    shard_tokens: int = 1 << 24,
    stream: bool = False,
    processes: int = 1,
    max_document_bytes: int = MAX_DOCUMENT_BYTES,
    part: str | None = None,
    overwrite: bool = False,
) -> TokenShards:
    """Turn text into token shards with a domain label, ready for training.

    Prints the documents, tokens and bytes per token of every domain and split. If a preparation is killed, the same
    command continues it. The tokens are then byte for byte those of an uninterrupted run; they do not depend on the
    number of processes either. A finished preparation is kept if the settings and the text are the same, and refused if
    they differ.

    Args:
        source: file, folder (each sub-folder is a domain), Hugging Face dataset, or mapping from domain to any of them.
            A dataset is written as hf://OWNER/NAME?config=NAME&data_dir=DIR&split=train&revision=COMMIT, or as hf://
            before a local folder. Files are UTF-8. JSON lines (.jsonl, .ndjson, .jsonlines, .json), tables (.csv, .tsv)
            and plain text (one document per file) may be compressed (.gz, .xz, .bz2, .zst); .parquet is read too.
        out: folder for the result.
        domain: one name for everything in the source; without it sub-folders or domain_key give the names.
        tokenizer: folder or Hugging Face name of a fast tokenizer; without it a byte-level BPE is trained on the
            training split.
        vocab_size: number of ids of the trained tokenizer, at least 259; not used with `tokenizer`.
        tokenizer_bytes: maximum UTF-8 bytes of text for training the tokenizer, in equal parts from the domains.
        splits: share of the originals in train, validation, identify and evaluate; they add up to 1, a share of 0
            leaves the split out. Default 0.80, 0.04, 0.08 and 0.08.
        split_by: original puts all text of one original in the same split. position cuts each text into the splits by
            their shares, from start to end, so that every split has a part of every text; use it for one long text.
        seed: seed for the assignment of originals to splits.
        text_key: key or column of a record that holds its text; data.text is the key "text" inside "data". Several keys
            separated by commas (title,body) give one text with blank lines between; each record must have all of them,
            and empty or null values are left out.
        source_key: key or column of a record that names its original; records of one original stay in one split.
        domain_key: key of a Hugging Face record that names its domain.
        format: format of local files: text, jsonl, csv or tsv, for any file name (parquet tables stay tables). auto
            decides by the name, for .json also by the first lines, and refuses JSON lines under another name.
        document_separator: text between the documents of a plain text file, such as `<|endoftext|>`; without it a file
            is one document.
        max_documents: maximum number of documents from each domain, the first ones; without it all.
        on_error: refuse stops at the first unreadable file or record and names it; skip leaves it out and counts it.
        add_bos: put the tokenizer's bos id before each document. The tokenizer that is stored with the data, and with
            models trained on them, puts bos before texts if and only if the data have it.
        shard_tokens: maximum number of tokens in a shard (a longer document gets its own shard).
        stream: read the source once, directly into shards, for sources that are too large to be read twice or stored:
            hub datasets are not stored as text. Needs a `tokenizer`. Faults are found during the work. Only the hash
            decides about splits, so a domain with few originals can have empty splits.
        processes: tokenising processes; 1 works in this process with one thread per core, 0 starts one per core.
        max_document_bytes: a longer document (in .jsonl a longer line) is a fault; limits the memory.
        part: i/n prepares part i of n parts of the source, counted from 0, into its own folder in OUT.parts; for
            several processes or machines, with `stream`. When all parts are done, `monet data join` makes OUT of them.
        overwrite: replace finished or partial data with other settings.
    Returns:
        the prepared data, or the part, opened.
    Raises:
        DataError: the text, the tokenizer or existing data cannot be used; names the file and line.
        ConfigError: a setting is out of range, or differs from those of the data in `out`.
        MonetError: the disk is full or cannot be written.
    """
    own, out = Part.parse(part), Path(out)
    for name, value, least in (
        ("tokenizer_bytes", tokenizer_bytes, 1),
        ("shard_tokens", shard_tokens, 1),
        ("max_document_bytes", max_document_bytes, 1),
        ("processes", processes, 0),
    ):
        if value < least:
            raise ConfigError(f"{name} {value} must be at least {least}")
    if stream and tokenizer is None:
        raise ConfigError("stream reads the text once, so it cannot train a tokenizer on it first; give a --tokenizer")
    if max_documents is not None and max_documents < 1:
        raise ConfigError(f"max_documents {max_documents} must be at least 1; leave it out for all documents")
    if own is not None and not stream:
        raise ConfigError(
            "part needs --stream true and a --tokenizer: otherwise one process reads all text first, to train a "
            "tokenizer and to give small domains all splits"
        )
    if own is not None and max_documents is not None:
        raise ConfigError(
            f"max_documents {max_documents} counts the first documents of the whole source, but part {part} reads only "
            "a part of it; leave max_documents or part out"
        )
    if document_separator == "":
        raise ConfigError("document_separator is empty; leave it out to take each text file as one document")
    check_keys(text_key, source_key)
    shares = check_shares(DEFAULT_SHARES if splits is None else splits)
    refuse_foreign(out)
    if own is None and not out.exists() and parts_folder(out).exists():
        raise ConfigError(
            f"{parts_folder(out)} holds parts of {out}; join them with `monet data join --out {out}`, or "
            "remove that folder to prepare everything in one run"
        )
    files, remote, notes = _find(source, domain)
    own_remote, division = remote, None
    if own is not None:
        files, own_remote, division = divided(files, remote, own)
    identities = identities_of(files)
    settings = {
        "format": FORMAT,
        "tokenizer": _tokenizer_identity(tokenizer),
        "vocab_size": vocab_size if tokenizer is None else None,
        "tokenizer_bytes": tokenizer_bytes if tokenizer is None else None,
        "splits": shares,
        "seed": seed,
        "text_key": text_key,
        "source_key": source_key,
        "domain_key": domain_key,
        "max_documents": max_documents,
        "on_error": on_error,
        "add_bos": add_bos,
        "shard_tokens": shard_tokens,
        "remote": remote,
        "text": inventory(identities),
    }
    # record settings of later versions only if they are used, so that data of earlier versions keep their settings
    if stream:
        settings["stream"] = True
    if max_document_bytes != MAX_DOCUMENT_BYTES:
        settings["max_document_bytes"] = max_document_bytes
    if format != "auto":
        settings["file_format"] = format
    if split_by != "original":
        settings["split_by"] = split_by
    if document_separator is not None:
        settings["document_separator"] = document_separator
    if own is not None:
        settings["part"] = {"index": own.index, "count": own.count, "division": division}
    for name, uri in own_remote.items():
        hub.check_labels(uri, name or None, domain_key)
    keys = Keys(text_key, source_key, domain_key, max_document_bytes, format, document_separator)

    def work(partial: Path) -> None:
        if (line := described(chain.from_iterable(files.values()), format, text_key)) is not None:
            print(line)
        job = Job(partial, files, own_remote, settings, keys, processes or os.cpu_count() or 1)
        job.run(tokenizer, None if own is None else identities)

    folder = out if own is None else part_folder(out, own)
    worked = make(folder, settings, work, overwrite=overwrite)
    shards = TokenShards(folder)
    print_made(shards.folder, shards.manifest, notes, worked)
    if own is not None:
        if not (any(files.values()) or own_remote):
            print("note: no file of the source belongs to this part; parts are divided by the size of the files")
        print(f"part {own.index} of {own.count}; when all are done: monet data join --out {out}")
    return shards


def _find(
    source: str | dict[str, str], domain: str | None
) -> tuple[dict[str, list[TextFile]], dict[str, str], list[str]]:
    """Return local files by domain, remote datasets by domain ("" if the records name theirs), and notes."""
    if isinstance(source, dict) and domain is not None:
        raise ConfigError(f"domain {domain!r} and a source that maps domains exclude each other; give only one of them")
    parts = {check_domain(name, "source"): part for name, part in source.items()} if isinstance(source, dict) else {}
    parts = parts or {domain or "": str(source)}
    files: dict[str, list[TextFile]] = {}
    remote: dict[str, str] = {}
    notes: list[str] = []
    for name, part in parts.items():
        if part.startswith(hub.SCHEME):
            remote[name] = part
            continue
        found, loose = find_files(part, name or None)
        files.update(found)
        if loose:
            notes.append(f"not read, because they are outside the domain folders of {part}: {', '.join(loose)}")
    return files, remote, notes


def _tokenizer_identity(name: str | None) -> str | None:
    """Identify a local tokenizer by its content, and one of the hub by its name."""
    if name is None or not Path(name).is_dir():
        return name
    digests = [f"{sha256_file(path)} {path.name}\n" for path in sorted(Path(name).glob("*token*.json"))]
    return f"sha256:{hashlib.sha256(''.join(digests).encode()).hexdigest()}"
