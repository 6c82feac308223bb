"""Tokens that statistics leave out: boundary tokens mark where a text begins and ends, and carry no knowledge."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from monet.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Exclude = Literal["special", "none"]
_SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")


@dataclass(frozen=True)
class Exclusion:
    """Which tokens are not counted. Pads are never counted.

    Args:
        ids: token ids.
        first: number of tokens at the beginning of every sequence, and of every document under document masks.

    Raises:
        ConfigError: a number is negative.
    """

    ids: tuple[int, ...] = ()
    first: int = 0

    def __post_init__(self) -> None:
        if self.first < 0 or any(token < 0 for token in self.ids):
            raise ConfigError(f"exclude_first {self.first} and token ids {list(self.ids)} must be at least 0")

    @classmethod
    def chosen(
        cls,
        model: Any,
        tokenizer: PreTrainedTokenizerBase | None,
        exclude: Exclude = "special",
        first: int = 0,
        tokens: Iterable[int] = (),
    ) -> Exclusion:
        """The exclusion for a command's options.

        Args:
            model: its configuration names the special tokens if there is no tokenizer.
            tokenizer: names the beginning, end and pad of a text.
            exclude: "special" excludes these tokens, "none" excludes none of them.
            first: number of tokens to exclude at the beginning of every sequence.
            tokens: further ids to exclude.
        """
        source = model.config if tokenizer is None else tokenizer
        named = [getattr(source, name, None) for name in _SPECIAL] if exclude == "special" else []
        special = [one for value in named for one in (value if isinstance(value, list) else [value])]
        return cls(tuple(sorted({*tokens, *(one for one in special if one is not None and one >= 0)})), first)

    def counted(self, input_ids_BT: Tensor, position_BT: Tensor) -> Tensor:
        """(B, T) bool: which tokens count.

        Args:
            input_ids_BT: token ids.
            position_BT: int64, position of each token in its sequence, or in its document under document masks, from
                0; the values at pads are ignored.
        """
        return (position_BT >= self.first) & ~torch.isin(input_ids_BT, torch.tensor(self.ids, dtype=torch.int64))

    def notes(self, left_out: int | None = None) -> dict[str, Any]:
        """Entry for provenance; `left_out` is the number of excluded tokens, if it was counted."""
        counted = {} if left_out is None else {"tokens": left_out}
        return {"ids": list(self.ids), "first": self.first, **counted}
