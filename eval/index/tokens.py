"""Texts of token ids for people. The texts of a window's tokens, joined, are the window's text.

A character that is not ASCII may be cut into several tokens. Then the last of them has the character as its text, and
the others have none.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monet.errors import CheckpointError
from monet.model.model_tokenizer import load_tokenizer

_UNKNOWN = "\ufffd"
# A character of UTF-8 has at most four bytes, so at most four tokens wait for its end.
_LONGEST = 4


class TokenTexts:
    """Texts of ids by a tokenizer; without a tokenizer an id n has the text "[n]".

    Args:
        tokenizer: a tokenizer of transformers, or None.

    Attributes:
        tokenizer: the same.
    """

    def __init__(self, tokenizer: Any = None) -> None:
        self.tokenizer = tokenizer
        self.text = functools.lru_cache(maxsize=1 << 16)(self.text_of)

    @classmethod
    def load(cls, folder: Path) -> TokenTexts:
        """With the tokenizer of a folder, if it has one."""
        try:
            return cls(load_tokenizer(folder) if folder.is_dir() else None)
        except CheckpointError:
            return cls()

    def save(self, folder: Path) -> None:
        """Store the tokenizer in a new folder; does nothing without one."""
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, with the special tokens that the tokenizer adds.

        Raises:
            CheckpointError: there is no tokenizer.
        """
        if self.tokenizer is None:
            raise CheckpointError("no tokenizer is known, so text cannot become token ids; give token ids instead")
        return list(self.tokenizer(text, return_attention_mask=False)["input_ids"])

    def texts(self, ids: Sequence[int]) -> list[str]:
        """The text of each token; joined, they are the text of all of them."""
        found: list[str] = []
        waiting: list[int] = []
        for token in ids:
            waiting.append(token)
            text = self._decode(waiting) if len(waiting) > 1 else self.text(token)
            if text.endswith(_UNKNOWN) and len(waiting) < _LONGEST:
                found.append("")
                continue
            found.append(text)
            waiting = []
        if waiting:
            found[-1] = self._decode(waiting)
        return found

    def piece(self, ids: Sequence[int], piece: slice) -> list[str]:
        """The text of each token of a piece of a text. Some tokens around it are read: several may be one character."""
        start = max(0, piece.start - _LONGEST)
        texts = self.texts(ids[start : piece.stop + _LONGEST])
        return texts[piece.start - start :][: min(piece.stop, len(ids)) - piece.start]

    def text_of(self, token: int) -> str:
        """The text of one token; `text` remembers it."""
        return self._decode([token])

    @functools.cached_property
    def _before(self) -> tuple[list[int], str]:
        """A token that is decoded before others, and its text: sentencepiece omits the space of the first token."""
        ids = list(self.tokenizer("a", add_special_tokens=False)["input_ids"])[-1:]
        return ids, self._decoded(ids)

    def _decode(self, ids: list[int]) -> str:
        if self.tokenizer is None:
            return "".join(f"[{token}]" for token in ids)
        before, text = self._before
        return self._decoded([*before, *ids]).removeprefix(text)

    def _decoded(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
