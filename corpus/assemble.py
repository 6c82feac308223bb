"""Selects the documents of a domain from cleaned files: unique paragraphs, bounded sizes, wanted shares of packages."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain

MIN_DOCUMENT_BYTES = 700
MAX_DOCUMENT_BYTES = 8_000
UNIQUE_FROM_CHARS = 40
SHINGLE_TOKENS = 8
MAX_SEEN_SHARE = 0.5

_PARAGRAPH_BREAK = re.compile(r"(\n(?:[ \t]*\n)+)")
_TOKEN = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True)
class Candidate:
    """A cleaned file that may become a document.

    Attributes:
        source: "package:path", unique in the domain.
        text: cleaned text.
        copyright_lines: copyright notices that cleaning removed from the text.
    """

    source: str
    text: str
    copyright_lines: tuple[str, ...] = ()


def normal_form(paragraph: str) -> str:
    """Return a paragraph with normalised white space; paragraphs with the same text have equal results."""
    return " ".join(paragraph.split())


def paragraphs(text: str) -> list[str]:
    """Return the blocks of a document between blank lines."""
    return [block for block in _PARAGRAPH_BREAK.split(text)[::2] if block.strip()]


def _shingles(paragraph: str) -> set[tuple[str, ...]]:
    tokens = _TOKEN.findall(paragraph)
    return {tuple(tokens[at : at + SHINGLE_TOKENS]) for at in range(len(tokens) - SHINGLE_TOKENS + 1)}


@dataclass
class Deduplicator:
    """Remembers every accepted paragraph and removes repetitions from later documents.

    A paragraph repeats another if only white space differs, or if more than half of its runs of eight tokens were seen
    before: edited copies leak between training and evaluation texts as much as exact ones.

    Attributes:
        max_lost_share: a document that would lose a larger share of its characters is refused.
    """

    max_lost_share: float
    _exact: set[str] = field(default_factory=set)
    _runs: set[tuple[str, ...]] = field(default_factory=set)

    def _is_repetition(self, paragraph: str, runs: set[tuple[str, ...]]) -> bool:
        if len(normal_form(paragraph)) < UNIQUE_FROM_CHARS:
            return False
        return normal_form(paragraph) in self._exact or (
            bool(runs) and len(runs & self._runs) > MAX_SEEN_SHARE * len(runs)
        )

    def filter(self, text: str) -> str | None:
        """Return the text without repeated paragraphs, or None if too much of it is repetition.

        Only `remember` records the paragraphs of the result, so a document may still be refused.
        """
        parts = _PARAGRAPH_BREAK.split(text)
        kept: list[str] = []
        own: set[str] = set()
        lost = 0
        for at in range(0, len(parts), 2):
            block = parts[at]
            normal = normal_form(block)
            repeated = self._is_repetition(block, _shingles(block)) or (
                len(normal) >= UNIQUE_FROM_CHARS and normal in own
            )
            if repeated:
                lost += len(block)
                continue
            own.add(normal)
            kept.extend(parts[at : at + 2])
        if lost > self.max_lost_share * len(text):
            return None
        return "".join(kept).strip("\n") + "\n"

    def remember(self, text: str) -> None:
        """Record the paragraphs of an accepted document."""
        for block in paragraphs(text):
            self._exact.add(normal_form(block))
            self._runs |= _shingles(block)


def _cut(text: str, source: str) -> str:
    """Return at most MAX_DOCUMENT_BYTES of whole paragraphs; the source's name decides where they start.

    Each file gives one stretch, so one record contains all text of an original in the domain.
    """
    parts = _PARAGRAPH_BREAK.split(text)
    sizes = [len("".join(parts[at : at + 2]).encode()) for at in range(0, len(parts), 2)]
    spare = sum(sizes) - MAX_DOCUMENT_BYTES
    if spare <= 0:
        return text
    offset = int(hashlib.sha256(source.encode()).hexdigest(), 16) % spare
    first = 0
    while offset >= sizes[first]:
        offset -= sizes[first]
        first += 1
    last, total = first, 0
    while last < len(sizes) and total + sizes[last] <= MAX_DOCUMENT_BYTES:
        total += sizes[last]
        last += 1
    return "".join(parts[2 * first : 2 * last]).strip("\n") + "\n" if last > first else ""


def _all_stretches(text: str) -> list[str]:
    """Split the text into stretches of whole paragraphs, each as long as MAX_DOCUMENT_BYTES allows."""
    parts = _PARAGRAPH_BREAK.split(text)
    stretches, size = [""], 0
    for at in range(0, len(parts), 2):
        piece = "".join(parts[at : at + 2])
        if size and size + len(piece.encode()) > MAX_DOCUMENT_BYTES:
            stretches.append("")
            size = 0
        stretches[-1] += piece
        size += len(piece.encode())
    return [stretch.strip("\n") + "\n" for stretch in stretches]


def _stretches(candidate: Candidate, whole: bool) -> Iterator[Candidate]:
    texts = _all_stretches(candidate.text) if whole else [_cut(candidate.text, candidate.source)]
    return (Candidate(candidate.source, text, candidate.copyright_lines) for text in texts)


def shuffled(sources: Iterable[str]) -> list[str]:
    """Sort file names by hash: the order is the same on every machine, and related files are far apart."""
    return sorted(sources, key=lambda source: hashlib.sha256(source.encode()).hexdigest())


def assemble(
    pools: dict[str, tuple[float, Iterable[Candidate]]],
    budget_bytes: int,
    max_lost_share: float,
    whole: bool = False,
) -> list[Candidate]:
    """Choose the documents of one domain.

    Args:
        pools: package -> (wanted share of the bytes, its cleaned files in the order to use them). Unneeded files
            are not read.
        budget_bytes: UTF-8 bytes of text to collect; the last document may exceed it.
        max_lost_share: largest share of a document that may repeat earlier documents; the repetition is removed. Prose
            remains readable with gaps, code does not.
        whole: use every stretch of a file, as documents of one source, instead of one stretch.

    Returns:
        Documents sorted by source, each of MIN_DOCUMENT_BYTES to MAX_DOCUMENT_BYTES, without repeated paragraphs.
        Fewer bytes than the budget if the pools are exhausted.
    """
    seen = Deduplicator(max_lost_share)
    queues = {
        package: chain.from_iterable(_stretches(each, whole) for each in candidates)
        for package, (_, candidates) in pools.items()
    }
    taken = dict.fromkeys(pools, 0)
    chosen: list[Candidate] = []
    while queues and sum(taken.values()) < budget_bytes:
        package = min(queues, key=lambda name: taken[name] / pools[name][0])
        candidate = next(queues[package], None)
        if candidate is None:
            del queues[package]
            continue
        text = seen.filter(candidate.text)
        size = len(text.encode()) if text else 0
        if text is None or not MIN_DOCUMENT_BYTES <= size <= MAX_DOCUMENT_BYTES:
            continue
        seen.remember(text)
        taken[package] += size
        chosen.append(Candidate(candidate.source, text, candidate.copyright_lines))
    return sorted(chosen, key=lambda each: each.source)
