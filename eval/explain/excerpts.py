"""Pieces of text around a token, from one document each, and the division of documents into explaining and scoring.

A window can hold several documents, but an index names only the one in which it begins. So an excerpt must lie before
the first token that ends a text. Its document is then known, and the two sides never share one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Literal

from monet.eval.index.index import Context, Index
from monet.eval.index.text import Window
from monet.eval.index.units import Unit

Side = Literal["explain", "score"]


@dataclass(frozen=True)
class Excerpt:
    """A piece of a window.

    Attributes:
        window, position: the window, and the position of the context's token there.
        start: position of the first token.
        document, label: those of the window.
        ids: token ids.
        tokens: their texts.
        weight: the unit's weight at the context's token; 0 for an excerpt in which it is not active.
        interval: number of the weight's interval; -1 for an excerpt in which it is not active.
        marks: places in `tokens` that are marked for a reader.
    """

    window: int
    position: int
    start: int
    document: str
    label: str
    ids: tuple[int, ...]
    tokens: tuple[str, ...]
    weight: float = 0.0
    interval: int = -1
    marks: tuple[int, ...] = ()

    @property
    def source(self) -> tuple[str, str]:
        """The label and the document, which together name a document."""
        return self.label, self.document

    @property
    def center(self) -> int:
        """Place of the context's token in `tokens`."""
        return self.position - self.start

    @property
    def token(self) -> str:
        """Text of the context's token; a cut character is shown whole."""
        return next((text for text in self.tokens[self.center :] if text), "")

    @property
    def text(self) -> str:
        """The text."""
        return "".join(self.tokens)

    @property
    def marked_text(self) -> str:
        """The text with `<<` and `>>` around the marked tokens."""
        marks = set(self.marks)
        return "".join(f"<<{text}>>" if place in marks and text else text for place, text in enumerate(self.tokens))

    @property
    def marked_tokens(self) -> list[str]:
        """Texts of the marked tokens."""
        return [self.tokens[place] for place in self.marks if self.tokens[place]]

    def marked(self, marks: Iterable[int]) -> Excerpt:
        """The same excerpt with other marks; places outside it are left out."""
        return replace(self, marks=tuple(sorted({place for place in marks if 0 <= place < len(self.tokens)})))


def side_of(label: str, document: str, seed: int) -> Side:
    """The side of a label's document: half of all documents explain, the others score."""
    return "explain" if hashlib.sha256(f"{seed} {label}/{document}".encode()).digest()[0] % 2 else "score"


class Excerpts:
    """Makes excerpts of an index.

    Args:
        index: the index.
        around: tokens before and after the context's token.
        seed: seed of the division of documents.
    """

    def __init__(self, index: Index, around: int = 8, seed: int = 0) -> None:
        self.index, self.around, self.seed = index, around, seed
        tokenizer = index.texts.tokenizer
        begins, ends, pads = (getattr(tokenizer, f"{name}_token_id", None) for name in ("bos", "eos", "pad"))
        self._begins = None if begins == ends else begins
        # Without a tokenizer, the excluded tokens are those that begin and end a text. With one, a user may have
        # excluded tokens inside texts too.
        known = {begins, ends, pads} - {None}
        self._ends = known or set(index.info.settings.exclude_ids)

    def at(self, window: Window, position: int) -> Excerpt | None:
        """The excerpt around a token; None if the token's document is not known, or the token ends a text."""
        begin, end = self.document_of(window)
        if not begin <= position < end:
            return None
        start, stop = max(begin, position - self.around), min(end, position + self.around + 1)
        texts = self.index.texts.piece(window.ids, slice(start, stop))
        return Excerpt(
            window.number, position, start, window.document, window.label, tuple(window.ids[start:stop]), tuple(texts)
        )

    def document_of(self, window: Window) -> tuple[int, int]:
        """Begin and end of the window's own document in it, without the tokens that begin and end a text."""
        ids, places = window.ids, window.position_ids
        begin = int(bool(ids) and ids[0] == self._begins)
        for place in range(begin, len(ids)):
            if ids[place] in self._ends or (places is not None and place and places[place] <= places[place - 1]):
                return begin, place
        return begin, len(ids)

    def of(self, unit: Unit, side: Side) -> list[Excerpt]:
        """The contexts and samples of a unit on one side, one for each window: strongest contexts first, then samples.

        Args:
            unit: the unit.
            side: explain or score.
        """
        found: dict[int, Excerpt] = {}
        for context in [*self.index.contexts(unit), *self.index.samples(unit)]:
            if context.window in found:
                continue
            window = self.index.windows[context.window]
            if side_of(window.label, window.document, self.seed) != side:
                continue
            if (one := self.at(window, context.position)) is not None:
                found[context.window] = replace(one, weight=context.weight, interval=self._interval(context))
        return list(found.values())

    def _interval(self, context: Context) -> int:
        edges = self.index.interval_edges
        return next((n for n in range(len(edges) - 2, 0, -1) if context.weight >= edges[n]), 0)


def by_turns(excerpts: Iterable[Excerpt], count: int) -> list[Excerpt]:
    """Up to `count` excerpts, one of each interval in turn, from the strongest interval to the weakest."""
    waiting: dict[int, list[Excerpt]] = {}
    for one in excerpts:
        waiting.setdefault(one.interval, []).append(one)
    return list(islice(_turns([waiting[key] for key in sorted(waiting, reverse=True)]), count))


def _turns(lists: list[list[Excerpt]]) -> Iterator[Excerpt]:
    for place in range(max(map(len, lists), default=0)):
        for one in lists:
            if place < len(one):
                yield one[place]
