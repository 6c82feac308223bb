"""Texts -> ids by a tokenizer of the tokenizers library, without transformers; long texts in pieces."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from monet.errors import DataError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_PIECE = 1 << 18  # characters; the library takes some 130 bytes for each byte that it encodes
_PIECES_AT_A_TIME = 4
_SEARCHED = 1 << 14  # characters before a piece's end in which it may end
_CONTEXT = 256
_TRIES = 64
_EXCERPT = 60


class EncodeError(DataError):
    """The tokenizer cannot encode a text; `index` is the text's place in its batch."""

    def __init__(self, message: str, index: int) -> None:
        super().__init__(message)
        self.index = index


class TextEncoder:
    """Texts -> lists of ids, each closed by eos, on all cores.

    Args:
        backend: encodes; truncation and padding are switched off, and special tokens in a text are taken as text.
        prefix: ids put before each text.
        eos_id: id put behind each text.
    """

    def __init__(self, backend: Tokenizer, prefix: list[int], eos_id: int) -> None:
        self.backend, self.prefix, self.eos_id = backend, prefix, eos_id
        backend.encode_special_tokens = True
        backend.no_truncation()
        backend.no_padding()

    def __call__(self, texts: list[str]) -> list[list[int]]:
        return [ids.tolist() for ids in self.arrays(texts)]

    def arrays(self, texts: list[str]) -> list[np.ndarray]:
        """Ids of each text, (tokens,) uint32.

        Raises:
            EncodeError: the tokenizer cannot encode a text.
        """
        short = [index for index, text in enumerate(texts) if len(text) <= 2 * _PIECE]
        encoded = self._encode([texts[index] for index in short], short)
        found = {index: np.array([*self.prefix, *ids, self.eos_id], dtype="<u4")
                 for index, ids in zip(short, encoded, strict=True)}  # fmt: skip
        return [found[index] if index in found else self._encode_long(text, index) for index, text in enumerate(texts)]

    def plain(self, texts: list[str]) -> list[list[int]]:
        """Ids of short texts without prefix and eos; errors are the library's."""
        return [encoding.ids for encoding in self.backend.encode_batch_fast(texts, add_special_tokens=False)]

    def _encode(self, texts: list[str], places: list[int]) -> list[list[int]]:
        try:
            return self.plain(texts)
        except Exception as error:  # the library has no type of its own
            for text, place in zip(texts, places, strict=True):
                try:
                    self.plain([text])
                except Exception as reason:
                    raise EncodeError(
                        f"the tokenizer cannot encode the text that begins {text[:_EXCERPT]!r} ({reason}); repair the "
                        "tokenizer (often its unknown token is missing), or take one that encodes every text by bytes",
                        place,
                    ) from None
            raise DataError(f"the tokenizer cannot encode some texts ({error})") from None

    def _encode_long(self, text: str, place: int) -> np.ndarray:
        """Prefix, ids of a long text, the same as if it were encoded as a whole, and eos."""
        pieces, found = self._pieces(text), [np.array(self.prefix, dtype="<u4")]
        while some := list(islice(pieces, _PIECES_AT_A_TIME)):
            found += [np.array(ids, dtype="<u4") for ids in self._encode(some, [place] * len(some))]
        return np.concatenate([*found, np.array([self.eos_id], dtype="<u4")])

    def _pieces(self, text: str) -> Iterator[str]:
        """Pieces whose ids, one after another, are the ids of the text."""
        start = 0
        while len(text) - start > 2 * _PIECE:
            seam = next((seam for seam in _seams(text, start + _PIECE) if self._is_seam(text, *seam)), None)
            if seam is None:  # as some tokenizers of whole texts; the rest takes its memory
                break
            end, following = seam
            yield text[start:end]
            start = following
        yield text[start:]

    def _is_seam(self, text: str, end: int, following: int) -> bool:
        """Whether a text encoded up to `end` and from `following` on has the ids of the whole, as seen around there."""
        left, right = text[max(0, end - _CONTEXT) : end], text[end : end + _CONTEXT]
        try:
            whole, first, second = self.plain([left + right, left, text[following : end + _CONTEXT]])
        except Exception:  # named when the piece is encoded
            return False
        return whole == first + second


def _seams(text: str, place: int) -> Iterator[tuple[int, int]]:
    """Places before `place` where a piece may end and the next begin: at line breaks, spaces, anywhere.

    A tokenizer that puts a space before each text gives the next piece the space that is left out before it.
    """
    for mark in ("\n", " "):
        end = place
        for _ in range(_TRIES):
            end = text.rfind(mark, place - _SEARCHED, end)
            if end < 0:
                break
            yield (end + 1, end + 1) if mark == "\n" else (end, end)
            if mark == " ":
                yield end, end + 1
    for end in range(place, place - _TRIES, -1):
        yield end, end
