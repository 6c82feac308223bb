"""Compares questions by their text and options, and checks what text masks were chosen on.

Two questions are equal if their texts and their options are equal after normalisation: Unicode NFKC, lower case, single
spaces. Ids and the order of the options do not matter.
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

# Key in the description of the text that masks are chosen on: the splits of MMLU in that text.
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
    """The text that is routed: a question and its options, one line each."""
    return "\n".join([question, *options])


def as_sequences(
    texts: Mapping[str, Sequence[str]],
    tokenizer: PreTrainedTokenizerBase,
    longest: int,
    mmlu_splits: Sequence[str] | None = None,
) -> tuple[LabelledSequences, dict[str, int]]:
    """Texts as token ids.

    Args:
        texts: texts by label, each made by `as_text`.
        tokenizer: tokenizer of the model.
        longest: tokens per sequence at most; the rest of a longer text is cut off.
        mmlu_splits: MMLU splits that the texts come from; recorded in the description.

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
    notes = None if mmlu_splits is None else {MMLU_SPLITS: list(mmlu_splits)}
    return LabelledSequences(list(texts), sequences, label_of, notes=notes), {"cut": cut, "too_short": short}


def held_out(
    masks: Mapping[str, Intervention], asked: LabelledSequences, mmlu_splits: Iterable[str] = ()
) -> bool | None:
    """Whether all masks were chosen on text without the questions, according to the provenance of the masks.

    Args:
        masks: masks by label.
        asked: the questions, made by `as_sequences`.
        mmlu_splits: MMLU splits that the questions come from.

    Returns:
        None if the provenance of a mask does not name the text it was chosen on, or if there is no mask.
    """
    if not masks:
        return None
    parts = [part for mask in masks.values() for part in texts_of(mask.provenance)]
    if any(part is not None and set(mmlu_splits) & set(part.get(MMLU_SPLITS, ())) for part in parts):
        return False
    return is_other_text(parts, asked)
