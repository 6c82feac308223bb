"""Documents -> splits -> tokens -> shards: the `monet data prepare` verb.

The work happens in a folder `OUT.partial` beside the result, which takes its final name when all of it is there. What
is finished in it (fetched parts, tokenizer, shards) outlives a kill, and the same command goes on from there.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from monet.data import hub
from monet.data.formats import FileFormat, described
from monet.data.keys import check_keys
from monet.data.pipeline import COMMITS, FETCHED, PROGRESS, SCAN, TOKENIZER_NOTES, Job
from monet.data.reader import Keys
from monet.data.records import MAX_DOCUMENT_BYTES
from monet.data.report import print_notes, print_table
from monet.data.shards import FORMAT, MANIFEST, TokenShards
from monet.data.sources import OnError, TextFile, check_domain, find_files, inventory
from monet.data.splits import DEFAULT_SHARES, SplitBy, check_shares
from monet.errors import ConfigError, DataError, MonetError
from monet.files import atomic_write_json, fsync_path, sha256_file

_SETTINGS, _LOCK, _REPLACED = "settings.json", ".lock", ".replaced"


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
    overwrite: bool = False,
) -> TokenShards:
    """Turn text into token shards with a domain label, ready for training.

    Prints the documents, tokens and bytes a token of every domain and split. A killed preparation goes on where it was
    when the same command runs again; its tokens are byte for byte those of an uninterrupted one, and do not depend on
    the number of processes. A finished one is left alone when the settings and the text are the same, and refused when
    they differ.

    Args:
        source: file, folder (each sub-folder is a domain) or Hugging Face dataset
            (hf://OWNER/NAME?config=NAME&data_dir=DIR&split=train&revision=COMMIT, or hf:// before a local folder); or
            a mapping from domain to any of these. Files are UTF-8: JSON lines (.jsonl, .ndjson, .jsonlines, .json),
            tables (.csv, .tsv) or plain text (one file is one document), each also as .gz, .xz, .bz2 or .zst; or
            .parquet tables.
        out: folder to make.
        domain: one name for everything in the source; without it sub-folders or domain_key give the names.
        tokenizer: folder or Hugging Face name of a fast tokenizer; without it a byte-level BPE is trained on the
            training split.
        vocab_size: number of ids of the trained tokenizer, at least 259; not used with `tokenizer`.
        tokenizer_bytes: UTF-8 bytes of text the tokenizer is trained on at most, in equal parts from the domains.
        splits: share of the originals in train, validation, identify and evaluate; they add up to 1, a share of 0
            leaves the split out. Default 0.80, 0.04, 0.08 and 0.08.
        split_by: original puts all text of one original in the same split; position cuts each text from its start to
            its end into the splits by their shares, as for a single long text, so that every text is in all splits.
        seed: chooses which originals fall in which split.
        text_key: key or column of a record that holds its text; data.text is the key "text" inside "data". Several with
            commas between (title,body) give one text with blank lines between; each record must have all of them, and
            an empty or null one is left out.
        source_key: key or column of a record that names its original; records of one original stay in one split.
        domain_key: key of a Hugging Face record that names its domain.
        format: how local files are read: text, jsonl, csv or tsv, whatever their names (parquet tables stay tables);
            auto decides by the name, for .json also by the first lines, and refuses JSON lines under another name.
        document_separator: text that stands between the documents of a plain text file, such as <|endoftext|>;
            without it a file is one document.
        max_documents: documents taken from each domain at most, the first ones; without it all.
        on_error: refuse stops at the first unreadable file or record and names it; skip leaves it out and counts it.
        add_bos: put the tokenizer's bos id before each document. The tokenizer that is stored with the data, and goes
            with models trained on them, puts it before texts if and only if the data have it.
        shard_tokens: tokens a shard holds at most (a longer document gets a shard to itself).
        stream: read the source once, straight into shards, for sources too large to be read twice or kept: datasets of
            the hub are not stored as text. It takes a `tokenizer`; faults are found where they are met, and the hash
            alone decides about splits, so a domain of a few originals can have none in one.
        processes: tokenising processes; 1 works in this one with a thread a core, 0 starts one a core.
        max_document_bytes: a longer document (in .jsonl a longer line) is a fault; bounds the memory.
        overwrite: replace finished or begun data of other settings.
    Returns:
        the prepared data, opened.
    Raises:
        DataError: the text, the tokenizer or existing data cannot be used; names the file and line.
        ConfigError: a setting is out of range, or differs from those of the data in `out`.
        MonetError: the disk takes no more.
    """
    from filelock import FileLock, Timeout

    out = Path(out)
    for name, value, least in (
        ("tokenizer_bytes", tokenizer_bytes, 1),
        ("shard_tokens", shard_tokens, 1),
        ("max_document_bytes", max_document_bytes, 1),
        ("processes", processes, 0),
    ):
        if value < least:
            raise ConfigError(f"{name} {value} must be at least {least}")
    if stream and tokenizer is None:
        raise ConfigError("stream reads the text once, so no tokenizer can be trained on it first; give a --tokenizer")
    if max_documents is not None and max_documents < 1:
        raise ConfigError(f"max_documents {max_documents} must be at least 1; leave it out for all documents")
    if document_separator == "":
        raise ConfigError("document_separator is empty; leave it out to take each text file as one document")
    check_keys(text_key, source_key)
    shares = check_shares(DEFAULT_SHARES if splits is None else splits)
    if (out.exists() or out.is_symlink()) and not (out / MANIFEST).is_file():
        raise DataError(f"{out} exists and holds no {MANIFEST}, so it is not prepared data; choose another --out")
    files, remote, notes = _find(source, domain)
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
        "text": inventory(files),
    }
    # settings that came later are recorded where they are used, so that data of earlier versions stay what they are
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
    for name, uri in remote.items():
        hub.check_labels(uri, name or None, domain_key)
    keys = Keys(text_key, source_key, domain_key, max_document_bytes, format, document_separator)
    worked = False
    if not _is_done(out, settings, overwrite):
        partial = out.with_name(f"{out.name}.partial")
        partial.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(partial / _LOCK, timeout=0):
                if _is_done(out, settings, overwrite):  # by another process in the meantime
                    shutil.rmtree(partial, ignore_errors=True)
                else:
                    _begin(partial, settings, overwrite)
                    if (line := described(chain.from_iterable(files.values()), format, text_key)) is not None:
                        print(line)
                    Job(partial, files, settings, keys, processes or os.cpu_count() or 1).run(tokenizer)
                    worked = True
                    _publish(partial, out)
        except Timeout:
            raise DataError(
                f"{partial}: another preparation of {out} is running; wait for it or choose another --out"
            ) from None
        except OSError as error:
            free = shutil.disk_usage(out.parent).free
            raise MonetError(
                f"{partial}: the preparation stopped: {error} ({free:,} bytes are free there, a quota can leave less); "
                "what is done is kept, run the same command again"
            ) from error
    shards = TokenShards(out)
    if not worked:
        print(f"{out}: already prepared with these settings, nothing to do")
        return shards
    print_notes(notes, shards.manifest["skipped"])
    print_table(shards.manifest)
    for note in shards.manifest.get("notes", []):
        print(f"note: {note}")
    print(f"prepared data: {out} (fingerprint {shards.fingerprint[:12]})")
    return shards


def _find(
    source: str | dict[str, str], domain: str | None
) -> tuple[dict[str, list[TextFile]], dict[str, str], list[str]]:
    """Local files by domain, remote datasets by domain ("" where the records name theirs), and notes."""
    if isinstance(source, dict) and domain is not None:
        raise ConfigError(f"domain {domain!r} and a source that maps domains: give one of them")
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
            notes.append(f"not read, they lie outside the domain folders of {part}: {', '.join(loose)}")
    return files, remote, notes


def _tokenizer_identity(name: str | None) -> str | None:
    """A local tokenizer is known by its content, one of the hub by its name."""
    if name is None or not Path(name).is_dir():
        return name
    digests = [f"{sha256_file(path)} {path.name}\n" for path in sorted(Path(name).glob("*token*.json"))]
    return f"sha256:{hashlib.sha256(''.join(digests).encode()).hexdigest()}"


def _differences(old: Any, new: Any, name: str = "") -> Iterator[str]:
    """Settings that differ, as lines; only the first few files of the text are named."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            yield from _differences(old.get(key), new.get(key), f"{name}.{key}" if name else key)
    elif old != new:
        yield f"{name}: {old!r} there, {new!r} asked for"


def _refusal(folder: Path, old: Any, new: Any) -> ConfigError:
    differences = list(_differences(old, new))
    more = f" and {len(differences) - 5} more" if len(differences) > 5 else ""
    return ConfigError(
        f"{folder} was prepared with other settings ({'; '.join(differences[:5])}{more}); choose another --out, or "
        "replace it with --overwrite true"
    )


def _is_done(out: Path, settings: dict[str, Any], overwrite: bool) -> bool:
    """Whether `out` already is what is asked for.

    Raises:
        DataError, ConfigError: it is something else, and was not to be overwritten.
    """
    if not out.exists():
        return False
    try:
        old = TokenShards(out).manifest["settings"]
    except DataError:
        if overwrite:
            return False
        raise
    if old != settings and not overwrite:
        raise _refusal(out, old, settings)
    return old == settings


def _begin(partial: Path, settings: dict[str, Any], overwrite: bool) -> None:
    """Make `partial` ready to go on: same settings, no half-written files.

    What was begun with other settings is refused once it holds work worth keeping, and started anew before that.
    """
    old = None
    for name in (_SETTINGS, MANIFEST):
        if (partial / name).is_file():
            old = json.loads((partial / name).read_text(encoding="utf-8"))
    old = old["settings"] if old is not None and "settings" in old else old
    if old != settings:
        if old is not None and not overwrite and _has_work(partial):
            raise _refusal(partial, old, settings)
        for child in partial.iterdir():
            if child.name != _LOCK:
                shutil.rmtree(child) if child.is_dir() else child.unlink()
    for leftover in list(partial.rglob(".*.tmp-*")):
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    atomic_write_json(partial / _SETTINGS, settings)


def _has_work(partial: Path) -> bool:
    return any(partial.rglob("shard-*.bin")) or any((partial / FETCHED).rglob("part-*.jsonl"))


def _publish(partial: Path, out: Path) -> None:
    """Drop what only the work needed and give the folder its final name."""
    shutil.rmtree(partial / FETCHED, ignore_errors=True)
    for path in [
        *(partial / name for name in (_SETTINGS, SCAN, COMMITS, PROGRESS, TOKENIZER_NOTES)),
        *partial.glob("*/*/shard-*.json"),
    ]:
        path.unlink(missing_ok=True)
    for folder, _, _ in os.walk(partial):
        fsync_path(folder)
    replaced = partial / _REPLACED
    if out.exists():
        os.rename(out, replaced)  # a kill must not leave half of it under the final name
    if replaced.is_symlink():
        replaced.unlink()
    elif replaced.exists():
        shutil.rmtree(replaced)
    os.rename(partial, out)
    (out / _LOCK).unlink(missing_ok=True)
    fsync_path(out.parent)
