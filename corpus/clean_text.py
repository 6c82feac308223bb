"""Extracts paragraphs of prose in one natural language from HTML documentation."""

from __future__ import annotations

import re
import unicodedata
from html.parser import HTMLParser

MIN_WORDS = 5
MIN_LETTER_SHARE = 0.8
MIN_CYRILLIC_SHARE = 0.7

_VOID = frozenset({"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "wbr"})
_BLOCK = frozenset(
    {
        "p",
        "div",
        "li",
        "dd",
        "dt",
        "h1",
        "h2",
        "h3",
        "h4",
        "h5",
        "h6",
        "ul",
        "ol",
        "dl",
        "td",
        "th",
        "tr",
        "table",
        "blockquote",
        "section",
        "body",
    }
)
_SKIPPED_TAGS = frozenset(
    {
        "script",
        "style",
        "nav",
        "header",
        "footer",
        "aside",
        "pre",
        "table",
        "head",
        "button",
        "form",
        "noscript",
        "title",
    }
)
_SKIPPED_CLASSES = frozenset(
    {
        "howtoget",
        "relatedtopics",
        "related",
        "code",
        "codeintable",
        "bascode",
        "pycode",
        "docnav",
        "footnotes",
        "footnote",
        "literallayout",
        "toc",
        "index",
        "screen",
        "programlisting",
        "example",
        "iconcell",
        "debug",
        "MAC",
        "index-label",
        "dropdowns",
        "abstract",
        "legalnotice",
    }
)
_SKIPPED_IDS = frozenset({"title", "banner", "DEBUG", "SearchFrame", "DonationFrame"})

_STOP_WORDS = {
    language: frozenset(words.split())
    for language, words in {
        "english": "the of and to in is for that with this are be or it as by on you not from can your if an at which",
        "french": "le la les de des du et un une est dans pour que qui vous sur avec par pas ce cette ou aux sont plus",
        "german": "der die das und ist in den von zu mit ein eine sie des dem für nicht auf wird werden oder kann im",
        "italian": "il la le di che e un una per è in del della con non si da dei nel i gli sono questo come più alla",
        "spanish": "el la los las de que y en un una para es del con no se por su al lo como más o este esta",
    }.items()
}


class _Blocks(HTMLParser):
    """Collects the text of each block element outside skipped elements."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.blocks: list[str] = []
        self._parts: list[str] = []
        self._stack: list[tuple[str, bool]] = []

    @property
    def _skipping(self) -> bool:
        return bool(self._stack) and self._stack[-1][1]

    def _flush(self) -> None:
        text = " ".join("".join(self._parts).split())
        self._parts.clear()
        if text:
            self.blocks.append(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _BLOCK or tag == "br":
            self._flush()
        if tag in _VOID:
            return
        values = {name: value or "" for name, value in attrs}
        skip = (
            tag in _SKIPPED_TAGS
            or not _SKIPPED_CLASSES.isdisjoint(values.get("class", "").split())
            or values.get("id") in _SKIPPED_IDS
        )
        self._stack.append((tag, skip or self._skipping))

    def handle_endtag(self, tag: str) -> None:
        if tag in _BLOCK:
            self._flush()
        open_tags = [name for name, _ in self._stack]
        if tag in open_tags:
            del self._stack[len(open_tags) - 1 - open_tags[::-1].index(tag) :]

    def handle_data(self, data: str) -> None:
        if not self._skipping:
            self._parts.append(data)


def html_blocks(page: str) -> list[str]:
    """Return the texts of a page's block elements in order, without tables, code, navigation and hidden variants."""
    parser = _Blocks()
    parser.feed(page)
    parser.close()
    parser._flush()
    return parser.blocks


def is_prose(paragraph: str, language: str) -> bool:
    """Return whether a paragraph is running text in `language` and in no other language of the corpus.

    Russian is recognised by its letters, the others by their most frequent words.
    """
    words = re.findall(r"[^\W\d_]+", paragraph.lower())
    letters = [char for char in paragraph if char.isalpha()]
    solid = len(re.sub(r"\s", "", paragraph))
    if len(words) < MIN_WORDS or len(letters) < MIN_LETTER_SHARE * solid:
        return False
    cyrillic = sum("\u0400" <= char <= "\u04ff" for char in letters) / len(letters)
    if language == "russian":
        return cyrillic >= MIN_CYRILLIC_SHARE
    counts = {name: sum(word in stops for word in words) for name, stops in _STOP_WORDS.items()}
    others = max(count for name, count in counts.items() if name != language)
    return cyrillic == 0 and counts[language] >= max(1, 0.12 * len(words)) and counts[language] > others


def clean_page(page: str, language: str) -> str:
    """Return the prose paragraphs of an HTML page, separated by blank lines; empty if there are none.

    Args:
        page: HTML text.
        language: natural language of the domain, e.g. "german".
    """
    paragraphs = []
    for block in html_blocks(page):
        text = unicodedata.normalize("NFC", block).replace("\u00ad", "").replace("\u200b", "").replace("\ufeff", "")
        text = re.sub(r"[\u00a0\u2009\u202f]", " ", text)
        if is_prose(text, language):
            paragraphs.append(text)
    return "\n\n".join(paragraphs) + "\n" if paragraphs else ""
