"""Encodes texts as ids with the tokenizers library, without transformers; long texts are encoded in pieces."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from monet.data import limits
from monet.errors import DataError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_PIECES_AT_A_TIME = 4
_CONTEXT = 256
_TRIES = 64
_EXCERPT = 60


class EncodeError(DataError):
    """The tokenizer cannot encode a text; `index` is the position of the text in its batch."""

    def __init__(self, message: str, index: int) -> None:
        super().__init__(message)
        self.index = index


class TextEncoder:
    """Encodes texts as lists of ids that end with eos, on all cores.

    Args:
        backend: the tokenizer; truncation and padding are switched off, and special tokens in a text count as text.
        prefix: ids put before each text.
        eos_id: id put after each text.
    """

    def __init__(self, backend: Tokenizer, prefix: list[int], eos_id: int) -> None:
        self.backend, self.prefix, self.eos_id = backend, prefix, eos_id
        backend.encode_special_tokens = True
        backend.no_truncation()
        backend.no_padding()

    def __call__(self, texts: list[str]) -> list[list[int]]:
        return [ids.tolist() for ids in self.arrays(texts)]

    def arrays(self, texts: list[str]) -> list[np.ndarray]:
        """Return the ids of each text, (tokens,) uint32.

        Raises:
            EncodeError: the tokenizer cannot encode a text.
        """
        short = [index for index, text in enumerate(texts) if len(text) <= 2 * limits.PIECE_CHARACTERS]
        encoded = self._encode([texts[index] for index in short], short)
        found = {index: np.array([*self.prefix, *ids, self.eos_id], dtype="<u4")
                 for index, ids in zip(short, encoded, strict=True)}  # fmt: skip
        return [found[index] if index in found else self._encode_long(text, index) for index, text in enumerate(texts)]

    def plain(self, texts: list[str]) -> list[list[int]]:
        """Return the ids of short texts without prefix and eos; raises the library's errors."""
        return [encoding.ids for encoding in self.backend.encode_batch_fast(texts, add_special_tokens=False)]

    def _encode(self, texts: list[str], places: list[int]) -> list[list[int]]:
        try:
            return self.plain(texts)
        except Exception as error:  # the library defines no error type
            for text, place in zip(texts, places, strict=True):
                try:
                    self.plain([text])
                except Exception as reason:
                    raise EncodeError(
                        f"the tokenizer cannot encode the text that begins {text[:_EXCERPT]!r} ({reason}); repair the "
                        "tokenizer (often its unknown token is missing), or use one that encodes every text by bytes",
                        place,
                    ) from None
            raise DataError(f"the tokenizer cannot encode some texts ({error})") from None

    def _encode_long(self, text: str, place: int) -> np.ndarray:
        """Return the prefix, the ids of a long text, and eos; the ids equal those of encoding the text as a whole."""
        pieces, found = self._pieces(text), [np.array(self.prefix, dtype="<u4")]
        while some := list(islice(pieces, _PIECES_AT_A_TIME)):
            found += [np.array(ids, dtype="<u4") for ids in self._encode(some, [place] * len(some))]
        return np.concatenate([*found, np.array([self.eos_id], dtype="<u4")])

    def _pieces(self, text: str) -> Iterator[str]:
        """Split a text into pieces whose ids, concatenated, are the ids of the text."""
        start = 0
        while len(text) - start > 2 * limits.PIECE_CHARACTERS:
            seam = next(
                (seam for seam in _seams(text, start + limits.PIECE_CHARACTERS) if self._is_seam(text, *seam)), None
            )
            if seam is None:  # some tokenizers need the whole text; encode the rest at once, at its cost in memory
                break
            end, following = seam
            yield text[start:end]
            start = following
        yield text[start:]

    def _is_seam(self, text: str, end: int, following: int) -> bool:
        """Check around a seam that encoding up to `end` and from `following` on gives the ids of the whole text."""
        left, right = text[max(0, end - _CONTEXT) : end], text[end : end + _CONTEXT]
        try:
            whole, first, second = self.plain([left + right, left, text[following : end + _CONTEXT]])
        except Exception:  # encoding the piece reports the error
            return False
        return whole == first + second


def _seams(text: str, place: int) -> Iterator[tuple[int, int]]:
    """Candidates before `place` for the end of one piece and the start of the next: line breaks, spaces, anywhere.

    Some tokenizers put a space before each text. For these, one candidate leaves out the space before the next piece.
    """
    for mark in ("\n", " "):
        end = place
        for _ in range(_TRIES):
            end = text.rfind(mark, place - limits.SEARCHED_CHARACTERS, end)
            if end < 0:
                break
            yield (end + 1, end + 1) if mark == "\n" else (end, end)
            if mark == " ":
                yield end, end + 1
    for end in range(place, place - _TRIES, -1):
        yield end, end
