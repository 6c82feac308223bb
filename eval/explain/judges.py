"""Judges: who decides whether an explanation fits an excerpt. Here are the judges that need no server.

Each of them knows one kind of explanation: quoted tokens, or the name of a label. They measure how well such an
explanation predicts where a unit fires. They are no substitute for a reader.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from monet.errors import DataError
from monet.eval.explain.excerpts import Excerpt
from monet.eval.explain.explainers import LABEL
from monet.json_text import parse_json

_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')
_WORDS = re.compile(r"[^\W_]{3,}")


@dataclass(frozen=True)
class Question:
    """Which of these excerpts fit the explanation?

    Attributes:
        explanation: the text; "" for the empty control.
        excerpts: what to judge, each by itself.
        marked: the marked tokens are judged, not the whole excerpts.
    """

    explanation: str
    excerpts: list[Excerpt]
    marked: bool = False


class Judge(Protocol):
    """Answers questions. None is a missing or unreadable answer."""

    @property
    def key(self) -> dict[str, Any]:
        """Everything that an answer depends on, JSON-able, without secrets."""
        ...

    @property
    def at_once(self) -> int:
        """Number of units whose questions a call should take."""
        ...

    def accepted(self, questions: Sequence[Question]) -> list[list[bool | None]]:
        """For each question, whether each excerpt fits."""
        ...

    def odd(self, sets: Sequence[list[Excerpt]]) -> list[int | None]:
        """For each set of marked excerpts, the place of the one that does not belong to the others."""
        ...


class _Alone:
    """A judge that looks at one excerpt after another."""

    at_once = 256

    def accepted(self, questions: Sequence[Question]) -> list[list[bool | None]]:
        """See `Judge.accepted`."""
        return [[self.fits(one.explanation, item, one.marked) for item in one.excerpts] for one in questions]

    def fits(self, explanation: str, excerpt: Excerpt, marked: bool) -> bool:
        """Whether one excerpt fits."""
        raise NotImplementedError


class TokensJudge(_Alone):
    """Accepts an excerpt that has one of the tokens that the explanation quotes.

    If nothing is quoted, it takes the explanation's words of at least three letters, in any case. The odd excerpt of a
    set is the one whose marked tokens are rarest in the other excerpts.
    """

    key = {"judge": "tokens"}

    def fits(self, explanation: str, excerpt: Excerpt, marked: bool) -> bool:
        tokens = excerpt.marked_tokens if marked else excerpt.tokens
        quoted = {_unquoted(text) for text in _QUOTED.findall(explanation)} - {""}
        if quoted:
            return not quoted.isdisjoint(tokens)
        words = set(_WORDS.findall(explanation.lower()))
        return not words.isdisjoint(_WORDS.findall("".join(tokens).lower()))

    def odd(self, sets: Sequence[list[Excerpt]]) -> list[int | None]:
        return [_rarest([set(one.marked_tokens) for one in excerpts], excerpts) for excerpts in sets]


class LabelJudge(_Alone):
    """Accepts an excerpt whose label the explanation names. It knows the label, and does not read the text.

    The odd excerpt of a set is the one whose label is rarest in the set.
    """

    key = {"judge": "label"}

    def fits(self, explanation: str, excerpt: Excerpt, marked: bool) -> bool:
        if explanation.startswith(LABEL):  # one label may be a part of another one's name
            return explanation.removeprefix(LABEL) == excerpt.label
        return re.search(rf"(?<!\w){re.escape(excerpt.label)}(?!\w)", explanation) is not None

    def odd(self, sets: Sequence[list[Excerpt]]) -> list[int | None]:
        return [_rarest([{one.label} for one in excerpts], excerpts) for excerpts in sets]


def _rarest(contents: Sequence[set[str]], excerpts: Sequence[Excerpt]) -> int:
    """The set that shares the least with the others: the mean number of others that have each of its elements.

    Of equal ones, a hash of the excerpts chooses one, so that no place in the list is likelier than another.
    """
    counts = Counter(element for content in contents for element in content)

    def shared(content: set[str]) -> float:
        return sum(counts[element] - 1 for element in content) / max(len(content), 1)

    def chance(one: Excerpt) -> bytes:
        return hashlib.sha256(f"{one.window} {one.position}".encode()).digest()

    return min(range(len(contents)), key=lambda place: (shared(contents[place]), chance(excerpts[place])))


def _unquoted(text: str) -> str:
    try:
        return str(parse_json(text, "a quoted token"))
    except DataError:
        return text[1:-1]
