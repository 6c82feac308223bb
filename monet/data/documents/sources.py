"""Finds the text files of a source by domain, and defines a document; `records` reads the files."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from monet.data import limits
from monet.errors import DataError
from monet.files import sha256_file

OnError = Literal["refuse", "skip"]

_MAX_NAMED_SKIPS = 20


@dataclass(frozen=True)
class Document:
    """One text with its domain.

    `source` names the original that the text was cut from: documents of one original are never in two splits.
    `name` says where the text was read, for messages.
    `has_source`: the text names its original. Otherwise `source` is only the place of this document, and the document
    counts as its own original.
    """

    text: str
    domain: str
    source: str
    name: str
    has_source: bool = True

    @property
    def known_source(self) -> str | None:
        """The original that the text names; None if it names none."""
        return self.source if self.has_source else None


@dataclass(frozen=True)
class TextFile:
    """A file of one domain.

    `name` is its path inside the source; it does not depend on where the source is stored.
    `fetched`: the file was written here from a dataset, so its texts are short enough; a line is longer than its text.
    """

    path: Path
    domain: str
    name: str
    fetched: bool = False


@dataclass
class Skipped:
    """Items that were left out, and the rule that decides whether leaving out is allowed.

    `notes` counts unusual items that were read, such as text files that contain marks between documents.
    """

    on_error: OnError = "refuse"
    counts: Counter[str] = field(default_factory=Counter)
    messages: list[str] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)

    def state(self) -> dict[str, Any]:
        """Return everything except the rule; can be written as JSON."""
        return {
            "counts": dict(sorted(self.counts.items())),
            "messages": [*self.messages],
            "notes": dict(sorted(self.notes.items())),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Replace all counts by those of an earlier `state`."""
        self.counts, self.messages = Counter(state["counts"]), [*state["messages"]]
        self.notes = Counter(state.get("notes", {}))

    def add(self, state: dict[str, Any]) -> None:
        """Add the `state` of another reader."""
        self.counts.update(state["counts"])
        self.messages = [*self.messages, *state["messages"]][:_MAX_NAMED_SKIPS]
        self.notes.update(state.get("notes", {}))

    def problem(self, kind: str, message: str) -> None:
        """Raise an error; with on_error "skip", count it under `kind` and keep the first messages."""
        if self.on_error == "refuse":
            raise DataError(f"{message}; repair or remove it, or leave such items out with --on_error skip")
        self.counts[kind] += 1
        if len(self.messages) < _MAX_NAMED_SKIPS:
            self.messages.append(message)


def check_domain(domain: object, where: str) -> str:
    """Return the domain's name if it can be a folder's name.

    Raises:
        DataError: the name is not text, is empty or hidden, or contains a separator.
    """
    if not isinstance(domain, str) or not domain.strip():
        raise DataError(f"{where}: domain {domain!r} is not a name; give every document a non-empty domain")
    printable = domain.isprintable() and not domain.startswith(".") and "/" not in domain and "\\" not in domain
    if not printable or len(domain.encode()) > 200:
        raise DataError(f"{where}: domain {domain!r} cannot be a folder's name; rename it (no '/', no leading '.')")
    return domain


def find_files(source: str | Path, domain: str | None = None) -> tuple[dict[str, list[TextFile]], list[str]]:
    """Find the files of a source by domain, in sorted order.

    A file is one domain; so is a folder if `domain` names it. Otherwise each sub-folder is a domain, and all files
    below it belong to it, including those of linked folders. Hidden files and folders are skipped.

    Args:
        source: path of a file or folder.
        domain: name for everything found; None takes the sub-folder's name, or for a single file its stem.
    Returns:
        files of each domain (a domain can have none), and the names of loose files next to the domain folders.
    Raises:
        DataError: the path does not exist, there is no domain, or a link is broken.
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
    found = list(_walk(folder, () if folder == root else (_identity_of(root),)))
    # file names are bytes, not always valid text; the name escapes invalid bytes
    named = {os.fsencode(path.relative_to(root)).decode("utf-8", "backslashreplace"): path for path in found}
    return [TextFile(path, domain, name) for name, path in sorted(named.items())]


def _walk(folder: Path, above: tuple[tuple[int, int], ...]) -> Iterator[Path]:
    """Yield visible files below a folder, including linked folders; a link to a folder above itself is skipped."""
    here = _identity_of(folder)
    if here in above:
        return
    for path in folder.iterdir():
        if path.name.startswith("."):
            continue
        if path.is_dir():
            yield from _walk(path, (*above, here))
        elif path.is_file():
            yield path
        elif path.is_symlink():
            raise DataError(f"{path}: a link to a file or folder that does not exist; repair or remove it")


def _identity_of(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def identities_of(files: dict[str, list[TextFile]]) -> dict[str, list[tuple[str, str]]]:
    """Return the SHA-256 and the name of every file, by domain.

    For a file above 256 MiB only the size and samples count, because hashing a large corpus at each start takes hours.
    """
    return {domain: [(_identity(file.path), file.name) for file in listed] for domain, listed in files.items()}


def inventory(identities: Mapping[str, Sequence[Sequence[str]]]) -> dict[str, dict[str, Any]]:
    """Return the number of files of each domain, and one SHA-256 over their names and contents.

    Args:
        identities: the result of `identities_of`.
    """
    found: dict[str, dict[str, Any]] = {}
    for domain, listed in sorted(identities.items()):
        lines = "".join(f"{identity} {name}\n" for identity, name in listed)
        found[domain] = {"files": len(listed), "sha256": hashlib.sha256(lines.encode()).hexdigest()}
    return found


def _identity(path: Path) -> str:
    size = path.stat().st_size
    if size <= limits.HASHED_WHOLE_BYTES:
        return sha256_file(path)
    digest = hashlib.sha256(f"{size}\n".encode())
    with open(path, "rb") as file:
        for number in range(limits.HASHED_SAMPLES):
            file.seek((size - limits.HASHED_SAMPLE_BYTES) * number // (limits.HASHED_SAMPLES - 1))
            digest.update(file.read(limits.HASHED_SAMPLE_BYTES))
    return digest.hexdigest()
