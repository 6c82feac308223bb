"""Reads all documents of a preparation in one fixed order, from any place on."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from monet.data.documents import hub
from monet.data.documents.formats import FileFormat
from monet.data.documents.records import read_documents
from monet.data.documents.sources import Document, Skipped, TextFile
from monet.errors import DataError


@dataclass(frozen=True)
class Remote:
    """A dataset to stream; with `domain` None, a column gives the domain of each row."""

    uri: str
    domain: str | None
    commit: str | None


@dataclass(frozen=True)
class Keys:
    """How to read a file.

    Attributes:
        text, source, domain: keys of a record's text, original and domain.
        max_bytes: maximum size of a text in bytes.
        file_format: see `monet.data.documents.formats.kind_of`.
        separator: text between the documents of a plain text file; None reads the file as one document.
    """

    text: str
    source: str
    domain: str | None
    max_bytes: int
    file_format: FileFormat = "auto"
    separator: str | None = None


class Reader:
    """Documents of files and streamed datasets, one after another.

    Args:
        pieces: files and datasets to read, in this order.
        keys: how to read them.
        skipped: collects items that are left out; raises an error unless its rule is "skip".
        max_documents: maximum number of documents of each domain; None takes all.
        place: where to continue: a `place()` of a reader with the same arguments and text; None starts at the start.
    """

    def __init__(
        self,
        pieces: Sequence[TextFile | Remote],
        keys: Keys,
        skipped: Skipped,
        *,
        max_documents: int | None = None,
        place: dict[str, Any] | None = None,
    ) -> None:
        self.pieces, self.keys, self.skipped, self.max_documents = pieces, keys, skipped, max_documents
        self._piece = 0 if place is None else place["piece"]
        self._passed = 0 if place is None else place["documents"]
        self._rows_place = None if place is None else place["rows"]
        self._rows: hub.Rows | None = None
        self._taken = Counter({} if place is None else place["taken"])

    def place(self) -> dict[str, Any]:
        """Return the place of the next document, for JSON. Faults before that document are not counted yet."""
        rows = self._rows_place if self._rows is None else self._rows.place()
        return {"piece": self._piece, "documents": self._passed, "rows": rows, "taken": dict(self._taken)}

    def __iter__(self) -> Iterator[Document]:
        while self._piece < len(self.pieces):
            piece = self.pieces[self._piece]
            if piece.domain is None or not self._full(piece.domain):
                for document in self._file(piece) if isinstance(piece, TextFile) else self._stream(piece):
                    if not self._full(document.domain):
                        self._taken[document.domain] += 1
                        yield document
                    if piece.domain is not None and self._full(piece.domain):
                        break
            self._piece += 1
            self._passed, self._rows, self._rows_place = 0, None, None

    def _full(self, domain: str) -> bool:
        return self._taken[domain] == self.max_documents

    def _file(self, file: TextFile) -> Iterator[Document]:
        unheard = Skipped(self.skipped.on_error)
        documents = read_documents(
            file,
            unheard,
            text_key=self.keys.text,
            source_key=self.keys.source,
            max_bytes=sys.maxsize - 1 if file.fetched else self.keys.max_bytes,
            file_format="auto" if file.fetched else self.keys.file_format,
            separator=self.keys.separator,
        )
        for _ in range(self._passed):
            if next(documents, None) is None:
                raise DataError(f"{file.path}: fewer documents than before; the source changed, start with --overwrite")
        # items left out before this place were counted the first time
        unheard.counts, unheard.messages = self.skipped.counts, self.skipped.messages
        unheard.notes = self.skipped.notes
        for document in documents:
            self._passed += 1
            yield document

    def open(self, remote: Remote, place: dict[str, Any] | None = None) -> hub.Rows:
        """Open the rows of a dataset.

        Raises:
            DataError: it cannot be opened, or has no such column.
        """
        return hub.Rows(
            remote.uri,
            self.skipped,
            place,
            commit=remote.commit,
            domain=remote.domain,
            domain_key=self.keys.domain if remote.domain is None else None,
            text_key=self.keys.text,
            source_key=self.keys.source,
            max_bytes=self.keys.max_bytes,
        )

    def _stream(self, remote: Remote) -> Iterator[Document]:
        self._rows = self.open(remote, self._rows_place)
        return (document for document in self._rows if document is not None)
