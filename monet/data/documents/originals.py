"""Checks that `source_key` names a document's original; in many corpora that column names a data set instead."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from monet.data.documents.sources import Document
from monet.errors import DataError

_COUNTED = 32  # originals of a domain that are counted individually
_NAME_LETTERS = 200
_MANY_DOCUMENTS, _MANY_OF_AN_ORIGINAL = 100, 20


class Originals:
    """Counts the documents of the first originals in each domain during reading.

    Args:
        source_key: key or column that names the originals.
        state: a result of `state()`; None starts from zero.
    """

    def __init__(self, source_key: str, state: dict[str, Any] | None = None) -> None:
        self._source_key = source_key
        known = {} if state is None else state
        self._documents: Counter[str] = Counter({domain: kept["documents"] for domain, kept in known.items()})
        self._counts: dict[str, Counter[str]] = {domain: Counter(kept["counts"]) for domain, kept in known.items()}

    def add(self, document: Document) -> None:
        self._documents[document.domain] += 1
        counts = self._counts.setdefault(document.domain, Counter())
        # one more than _COUNTED shows that there are more
        name = document.source[:_NAME_LETTERS].encode("utf-8", "backslashreplace").decode("utf-8")
        if len(counts) <= _COUNTED or name in counts:
            counts[name] += 1

    def state(self) -> dict[str, Any]:
        """Return all counts; can be written as JSON."""
        return {
            domain: {"documents": count, "counts": dict(self._counts[domain])}
            for domain, count in sorted(self._documents.items())
        }

    def merge(self, state: dict[str, Any]) -> None:
        """Add the `state()` of another part of the text.

        If the other part did not count an original because it had already met too many others, its count stays too low.
        """
        for domain, kept in state.items():
            self._documents[domain] += kept["documents"]
            counts = self._counts.setdefault(domain, Counter())
            for name, count in kept["counts"].items():
                if len(counts) <= _COUNTED or name in counts:
                    counts[name] += count

    def refuse_few(self, shares: Mapping[str, float]) -> None:
        """Refuse a domain whose documents come from fewer originals than there are splits.

        Raises:
            DataError: names the column and its values.
        """
        for domain, documents in sorted(self._documents.items()):
            if len(self._counts[domain]) < len(shares) <= documents:
                raise DataError(
                    f"{self._sentence(domain)}; documents of one original stay in one split, and there are "
                    f"{len(shares)} splits ({', '.join(shares)}): {self._remedy()}, or give a split the share 0"
                )

    def notes(self) -> list[str]:
        """Return a sentence for each domain whose many documents come from few originals."""
        notes = []
        for domain, documents in sorted(self._documents.items()):
            counts = self._counts[domain]
            is_one = len(counts) == 1 and documents > 1
            is_few = len(counts) <= _COUNTED and documents >= _MANY_OF_AN_ORIGINAL * len(counts)
            is_half = counts.most_common(1)[0][1] * 2 >= documents
            if is_one or (documents >= _MANY_DOCUMENTS and (is_few or is_half)):
                notes.append(f"{self._sentence(domain)}; each original goes to one split as a whole: {self._remedy()}")
        return notes

    def _sentence(self, domain: str) -> str:
        documents, counts = self._documents[domain], self._counts[domain]
        name, most = counts.most_common(1)[0]
        if len(counts) == 1:
            return f"domain {domain!r}: all {documents:,} documents have {self._source_key} {name!r}"
        distinct = f"more than {_COUNTED}" if len(counts) > _COUNTED else str(len(counts))
        return (
            f"domain {domain!r}: {documents:,} documents have {distinct} values of {self._source_key}, {most:,} times "
            f"{name!r}"
        )

    def _remedy(self) -> str:
        return (
            f"if {self._source_key} does not name the original of a document, name another key with --source_key (with "
            "a key that no record has, each record is its own original)"
        )
