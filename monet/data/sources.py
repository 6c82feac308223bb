"""Files and folders -> documents with a domain. Hugging Face datasets come through `monet.data.hub`."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import json
import lzma
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from monet.errors import DataError
from monet.files import sha256_file

OnError = Literal["refuse", "skip"]

_OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}
_BROKEN_ARCHIVE = (EOFError, lzma.LZMAError, gzip.BadGzipFile, zlib.error)
_MAX_NAMED_SKIPS = 20


@dataclass(frozen=True)
class Document:
    """One text with its domain.

    `source` names the original it was cut from: documents of one original never fall in two splits.
    `name` says where it was read, for messages.
    """

    text: str
    domain: str
    source: str
    name: str


@dataclass(frozen=True)
class TextFile:
    """A file of one domain; `name` is its path inside the source, the same wherever the source lies."""

    path: Path
    domain: str
    name: str


@dataclass
class Skipped:
    """What was left out, and the rule that decides whether leaving out is allowed."""

    on_error: OnError = "refuse"
    counts: Counter[str] = field(default_factory=Counter)
    messages: list[str] = field(default_factory=list)

    def problem(self, kind: str, message: str) -> None:
        """Raise, or with on_error "skip" count under `kind` and keep the first messages."""
        if self.on_error == "refuse":
            raise DataError(f"{message}; repair or remove it, or leave such items out with --on_error skip")
        self.counts[kind] += 1
        if len(self.messages) < _MAX_NAMED_SKIPS:
            self.messages.append(message)


def check_domain(domain: object, where: str) -> str:
    """The domain's name, if it can be a folder's name.

    Raises:
        DataError: it is not text, empty, hidden or holds a separator.
    """
    if not isinstance(domain, str) or not domain.strip():
        raise DataError(f"{where}: domain {domain!r} is not a name; give every document a non-empty domain")
    printable = domain.isprintable() and not domain.startswith(".") and "/" not in domain and "\\" not in domain
    if not printable or len(domain.encode()) > 200:
        raise DataError(f"{where}: domain {domain!r} cannot be a folder's name; rename it (no '/', no leading '.')")
    return domain


def find_files(source: str | Path, domain: str | None = None) -> tuple[dict[str, list[TextFile]], list[str]]:
    """Files of a source by domain, in sorted order.

    A file is one domain; so is a folder when `domain` names it. Otherwise each sub-folder is a domain and all files
    below belong to it. Hidden files and folders are passed over.

    Args:
        source: path of a file or folder.
        domain: name for everything found; None takes the sub-folder's name, or for a single file its stem.
    Returns:
        files of each domain (a domain can have none), and the names of loose files beside the domain folders.
    Raises:
        DataError: the path does not exist, or there is no domain.
    """
    root = Path(source)
    if root.is_file():
        name = check_domain(domain or root.name.split(".")[0], str(root))
        return {name: [TextFile(root, name, root.name)]}, []
    if not root.is_dir():
        raise DataError(
            f"source {str(source)!r}: no such file or folder; a Hugging Face dataset is written hf://OWNER/NAME"
        )
    visible = sorted(path for path in root.iterdir() if not path.name.startswith("."))
    if domain is not None:
        return {check_domain(domain, str(root)): _files_below(root, root, domain)}, []
    folders = [path for path in visible if path.is_dir()]
    if not folders:
        raise DataError(
            f"source {str(source)!r}: no domains; make one sub-folder for each domain, or name one with --domain"
        )
    loose = [path.name for path in visible if path.is_file()]
    return {folder.name: _files_below(folder, root, check_domain(folder.name, str(root))) for folder in folders}, loose


def _files_below(folder: Path, root: Path, domain: str) -> list[TextFile]:
    found = [
        path
        for path in folder.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(root).parts)
    ]
    # file names are bytes, not always text: a name is what of them can be written down
    named = {os.fsencode(path.relative_to(root)).decode("utf-8", "backslashreplace"): path for path in found}
    return [TextFile(path, domain, name) for name, path in sorted(named.items())]


def inventory(files: dict[str, list[TextFile]]) -> dict[str, dict[str, Any]]:
    """Number of files of each domain, and one SHA-256 over their names and contents."""
    found: dict[str, dict[str, Any]] = {}
    for domain, listed in sorted(files.items()):
        digest = hashlib.sha256()
        for file in listed:
            digest.update(f"{sha256_file(file.path)} {file.name}\n".encode())
        found[domain] = {"files": len(listed), "sha256": digest.hexdigest()}
    return found


def read_documents(
    file: TextFile, skipped: Skipped, *, text_key: str = "text", source_key: str = "source"
) -> Iterator[Document]:
    """Documents of one file: each record of a .jsonl file, or the whole of any other file as one text.

    A file may also be compressed (.gz, .xz, .bz2). Documents without any visible character are left out and counted
    as "empty" whatever the rule for errors: an empty `__init__.py` is no fault.

    Args:
        file: the file to read, UTF-8.
        skipped: collects what is left out; refuses instead unless its rule is "skip".
        text_key: key of a JSON record that holds the text.
        source_key: key of a JSON record that names its original; where it is absent each record is an original.
    Raises:
        DataError: names the file and, where there is one, the line or byte.
    """
    opener = _OPENERS.get(file.path.suffix.lower(), open)
    suffixes = [suffix.lower() for suffix in file.path.suffixes]
    is_jsonl = (suffixes[-2:-1] if opener is not open else suffixes[-1:]) == [".jsonl"]
    documents = _records(file, opener, skipped, text_key, source_key) if is_jsonl else _text(file, opener, skipped)
    for document in documents:
        if not document.text.strip():
            skipped.counts["empty"] += 1
        elif (position := _first_surrogate(document.text)) is not None:
            skipped.problem(
                "surrogate", f"{document.name}: character {position} is half of a surrogate pair and no text"
            )
        else:
            yield document


def _first_surrogate(text: str) -> int | None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return error.start
    return None


def _text(file: TextFile, opener: Callable[..., Any], skipped: Skipped) -> Iterator[Document]:
    try:
        with opener(file.path, "rb") as stream:
            content: bytes = stream.read()
        text = content.decode("utf-8-sig")
    except _BROKEN_ARCHIVE as error:
        return skipped.problem("broken", f"{file.path}: broken or truncated archive ({error})")
    except UnicodeDecodeError as error:
        return skipped.problem(
            "undecodable", f"{file.path}: byte {error.start} (0x{error.object[error.start]:02x}) is not UTF-8 text"
        )
    if "\0" in text:
        return skipped.problem("undecodable", f"{file.path}: NUL at character {text.index(chr(0))}, not a text file")
    yield Document(text, file.domain, file.name, file.name)


def _records(
    file: TextFile, opener: Callable[..., Any], skipped: Skipped, text_key: str, source_key: str
) -> Iterator[Document]:
    number = 0
    try:
        with opener(file.path, "rb") as stream:
            for number, line in enumerate(stream, start=1):
                if not line.strip():
                    continue
                where = f"{file.path}:{number}"
                try:
                    record = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
                except UnicodeDecodeError as error:
                    skipped.problem("undecodable", f"{where}: byte {error.start} of the line is not UTF-8 text")
                    continue
                except (json.JSONDecodeError, RecursionError) as error:
                    skipped.problem("not JSON", f"{where}: not a JSON record ({error})")
                    continue
                text = record.get(text_key) if isinstance(record, dict) else None
                if not isinstance(text, str):
                    skipped.problem("no text", f"{where}: {_missing_text(record, text_key)}")
                    continue
                original = record.get(source_key)
                name = f"{file.name}:{number}"
                yield Document(text, file.domain, name if original is None else str(original), name)
    except _BROKEN_ARCHIVE as error:
        skipped.problem("broken", f"{file.path}: broken or truncated archive after line {number} ({error})")


def _missing_text(record: object, text_key: str) -> str:
    if not isinstance(record, dict):
        return f"the record is {type(record).__name__}, not an object with the key {text_key!r}"
    if text_key in record:
        return f"the value of {text_key!r} is {type(record[text_key]).__name__}, not text"
    return f"no key {text_key!r} among {sorted(record)[:10]}; name the right one with --text_key"
