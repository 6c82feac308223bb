"""What questions say, whatever their ids and spelling: which of them are equal, and what masks were chosen on.

Two questions are equal if their texts and their options are, after Unicode normalisation (NFKC), in lower case, with
single spaces; the order of the options does not matter.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from monet.eval.core.held_out import is_other_text, texts_of
from monet.eval.core.inputs import LabelledSequences

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from monet.eval.core.intervention import Intervention

# In the description of text that masks are chosen on: the splits of MMLU that it holds.
MMLU_SPLITS = "mmlu_splits"


def content_of(question: str, options: Sequence[str]) -> str:
    """SHA-256 in hexadecimal of a question's normalised text and options."""
    return hashlib.sha256("\n".join([_plain(question), *sorted(map(_plain, options))]).encode()).hexdigest()


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def digest_of(contents: Iterable[str]) -> str:
    """SHA-256 in hexadecimal of a set of contents."""
    return hashlib.sha256("\n".join(sorted(set(contents))).encode()).hexdigest()


def as_text(question: str, options: Sequence[str]) -> str:
    """A question and its options, a line each: what is routed."""
    return "\n".join([question, *options])


def as_sequences(
    texts: Mapping[str, Sequence[str]],
    tokenizer: PreTrainedTokenizerBase,
    longest: int,
    mmlu_splits: Sequence[str] | None = None,
) -> tuple[LabelledSequences, dict[str, int]]:
    """Texts as token ids.

    Args:
        texts: by label, each made by `as_text`.
        tokenizer: of the model.
        longest: tokens a sequence; the rest of a longer text is cut off.
        mmlu_splits: where the texts come from; goes into the description.

    Returns:
        The sequences, and how many texts were `cut` and how many were `too_short` (of one token) and left out.
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
    notes = None if mmlu_splits is None else {MMLU_SPLITS: list(mmlu_splits)}
    return LabelledSequences(list(texts), sequences, label_of, notes=notes), {"cut": cut, "too_short": short}


def held_out(
    masks: Mapping[str, Intervention], asked: LabelledSequences, mmlu_splits: Iterable[str] = ()
) -> bool | None:
    """Whether all masks were chosen on other text than the questions, by their provenance.

    Args:
        masks: by label.
        asked: the questions, by `as_sequences`.
        mmlu_splits: the splits of MMLU among them.

    Returns:
        None if a mask does not say what it was chosen on, or there is no mask.
    """
    if not masks:
        return None
    parts = [part for mask in masks.values() for part in texts_of(mask.provenance)]
    if any(part is not None and set(mmlu_splits) & set(part.get(MMLU_SPLITS, ())) for part in parts):
        return False
    return is_other_text(parts, asked)
