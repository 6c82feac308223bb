"""Readers of packages that hold running English: a tagged corpus, speeches, licences, mathematics, commentaries.

Each reader takes a file and yields the name and the text of its parts, paragraphs separated by blank lines. A file with
one part names it "".
"""

from __future__ import annotations

import html
import re
import struct
import zlib
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path

from corpus.clean_text import is_prose

LONG_PARAGRAPH_CHARS = 1_500

_SENTENCE_END = re.compile(r"(?<=[.!?][\"'”’)])\s+|(?<=[.!?])\s+(?=[\"'“‘(A-Z])")
_BLOCK_ENTRY = struct.Struct("<III")
_FORMULA = re.compile(r"`\s*([^`]*?)\s*`")
_ATTRIBUTION = re.compile(r"\((?:Contributed|Revised|Proof|New usage|This|Prove|Suggested)[^()]*\)")
_HEADING = re.compile(r"^\s*(#{4,}|#\*#\*[#*]*|=-=-[=-]*|-\.-\.[-.]*)\s*$\n(.*?)\n\s*\1", re.MULTILINE | re.DOTALL)


def _short_paragraphs(text: str) -> Iterator[str]:
    """Divide a long paragraph at ends of sentences."""
    part = ""
    for sentence in _SENTENCE_END.split(text):
        if part and len(part) + len(sentence) > LONG_PARAGRAPH_CHARS:
            yield part
            part = ""
        part = f"{part} {sentence}".lstrip()
    if part:
        yield part


def _prose(blocks: Iterable[str]) -> str:
    """Join the blocks that are English prose, each in one line, with blank lines."""
    lines = (" ".join(block.split()) for block in blocks)
    kept = [part for line in lines for part in _short_paragraphs(line) if is_prose(part, "english")]
    return "\n\n".join(kept) + "\n" if kept else ""


def plain_text(path: Path) -> Iterator[tuple[str, str]]:
    """A text file whose paragraphs are its lines or are separated by blank lines."""
    text = path.read_text(encoding="utf-8")
    yield "", _prose(text.split("\n\n") if "\n\n" in text else text.splitlines())


def licence(path: Path) -> Iterator[tuple[str, str]]:
    """A licence of ScanCode's collection, without the description of the licence at its start."""
    text = re.sub(r"\A---\n.*?\n---\n", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    yield "", _prose(re.split(r"\n\s*\n", text))


def tagged_words(path: Path) -> Iterator[tuple[str, str]]:
    """A file of the Brown corpus: words with tags, The/at jury/nn, with spaces around punctuation, a sentence a line.

    The file does not show where a paragraph ends.
    """
    sentences = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        text = " ".join(word.rsplit("/", 1)[0] for word in line.split())
        text = re.sub(r"`` ?", '"', re.sub(r" ?''", '"', text))
        text = re.sub(r" ([.,;:?!)\]])", r"\1", re.sub(r"([(\[]) ", r"\1", text))
        sentences.append(re.sub(r"([.,?!;:])(?: ?\1)+", r"\1", text))
    yield "", _prose([" ".join(sentences)])


def _without_markup(text: str) -> list[str]:
    text = re.sub(r"<note\b[^>]*(?<!/)>.*?</note>", "", text, flags=re.DOTALL)
    text = re.sub(r"<(?:div|lg|l|lb|title|/title|chapter|verse)\b[^>]*>", "\n", text)
    return html.unescape(re.sub(r"<[^>]+>", "", text)).replace("\0", "").splitlines()


def sword_blocks(path: Path) -> Iterator[tuple[str, str]]:
    """A compressed module of the SWORD project: the index file .bzs (a part is a book) or .czs (a chapter).

    The index holds offset, compressed size and size of each part of the data file next to it, 32 bits each.
    """
    data = path.with_suffix(path.suffix[:-1] + "z").read_bytes()
    for number, (offset, size, _) in enumerate(_BLOCK_ENTRY.iter_unpack(path.read_bytes())):
        if size:
            text = zlib.decompress(data[offset : offset + size]).decode("utf-8", errors="replace")
            yield f"{number:03}", _prose(_without_markup(text))


def metamath_comments(path: Path) -> Iterator[tuple[str, str]]:
    """The comments of a Metamath database, which explain its theorems; a part is a section."""
    text = path.read_text(encoding="utf-8")
    ends = [*(match.start() for match in _HEADING.finditer(text)), len(text)]
    for number, (start, end) in enumerate(pairwise(ends)):
        comments = re.findall(r"\$\((.*?)\$\)", _HEADING.sub("", text[start:end]), flags=re.DOTALL)
        yield f"section-{number:04}", _prose(_explanations(comments))


def _explanations(comments: list[str]) -> Iterator[str]:
    for comment in comments:
        for block in re.split(r"\n\s*\n", _ATTRIBUTION.sub("", " ".join(comment.split("  ")))):
            text = re.sub(r"~\s*(\S+)", r"\1", _FORMULA.sub(r"\1", block))
            text = re.sub(r" ([.,;:)])", r"\1", re.sub(r"\b_(\w[^_]*)_", r"\1", " ".join(text.split())))
            if len(text) >= 80 and text.count("$") == 0:
                yield text
