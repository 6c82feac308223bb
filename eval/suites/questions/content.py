"""Checks what text masks were chosen on, for questions of a benchmark.

Two questions are equal if their texts and their options are equal after normalisation: Unicode NFKC, lower case, single
spaces. Ids and the order of the options do not matter (`monet.eval.choices.texts`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from monet.eval.core.held_out import is_other_text, texts_of
from monet.eval.core.inputs import LabelledSequences

if TYPE_CHECKING:
    from monet.eval.core.intervention import Intervention

# Key in the description of the text that masks are chosen on: the splits of MMLU in that text.
MMLU_SPLITS = "mmlu_splits"


def as_text(question: str, options: Sequence[str]) -> str:
    """The text that is routed: a question and its options, one line each."""
    return "\n".join([question, *options])


def held_out(
    masks: Mapping[str, Intervention], asked: LabelledSequences, mmlu_splits: Iterable[str] = ()
) -> bool | None:
    """Whether all masks were chosen on text without the questions, according to the provenance of the masks.

    Args:
        masks: masks by label.
        asked: the questions, each made by `as_text`, as token ids.
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
