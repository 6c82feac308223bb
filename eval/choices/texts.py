"""Questions as texts and as token ids: to compare questions by their content, and with the text of masks."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from monet.eval.core.inputs import LabelledSequences

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ORIGIN = {
    True: "The masks were chosen on held-out text, not on the questions that are asked.",
    False: "The masks were chosen on questions that are asked; this makes the masks look better than they are.",
    None: "There is no record of the text that the masks were chosen on. If that text holds the questions, the masks "
    "look better than they are.",
}


def plain(text: str) -> str:
    """The text after Unicode NFKC, in lower case, with single spaces: equal for texts that say the same."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def content_of(question: str, options: Sequence[str]) -> str:
    """SHA-256 in hexadecimal of a question's normalised text and options."""
    return hashlib.sha256("\n".join([plain(question), *sorted(map(plain, options))]).encode()).hexdigest()


def digest_of(contents: Iterable[str]) -> str:
    """SHA-256 in hexadecimal of a set of contents."""
    return hashlib.sha256("\n".join(sorted(set(contents))).encode()).hexdigest()


def as_sequences(
    texts: Mapping[str, Sequence[str]],
    tokenizer: PreTrainedTokenizerBase,
    longest: int,
    notes: dict[str, Any] | None = None,
) -> tuple[LabelledSequences, dict[str, int]]:
    """Texts as token ids.

    Args:
        texts: texts by label.
        tokenizer: tokenizer of the model.
        longest: tokens per sequence at most; the rest of a longer text is cut off.
        notes: further notes on the origin of the texts; recorded in the description.

    Returns:
        The sequences, and two counts: texts that were `cut`, and texts of one token (`too_short`), which are left out.
    """
    sequences: list[list[int]] = []
    label_of: list[int] = []
    cut = short = 0
    for number, own in enumerate(texts.values()):
        found: list[list[int]] = tokenizer(list(own))["input_ids"] if own else []  # type: ignore[assignment]
        for tokens in found:
            cut += len(tokens) > longest
            if len(tokens) < 2:
                short += 1
                continue
            sequences.append(tokens[:longest])
            label_of.append(number)
    return LabelledSequences(list(texts), sequences, label_of, notes=notes), {"cut": cut, "too_short": short}
