"""Check whether masks are judged on text that was not used to choose them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from monet.errors import ConfigError, DataError
from monet.eval.core.inputs import LabelledData
from monet.eval.core.text_overlap import KEY, Signature, common_sequences, same_source, shares_text

Protocol = Literal["held_out", "same"]
EVALUATION_SPLIT = "evaluate"


def held_out(notes: Iterable[Mapping[str, Any]], data: LabelledData) -> bool | None:
    """Whether all masks were chosen on other text than `data`, by their provenance; None if some notes do not say."""
    return is_other_text([part for one in notes for part in texts_of(one)], data)


def is_other_text(parts: Sequence[Mapping[str, Any] | None], data: LabelledData) -> bool | None:
    """Whether no part has text in common with `data`; None if this is unknown for some part.

    Prepared text is compared by its content and split, other text by its sequences; see `monet.eval.core.text_overlap`.
    The answer is unknown for text in memory whose description lacks its sequences (from an earlier version, say).
    """
    described = dict(data.description)
    known = [part for part in parts if part is not None]
    sources = [same_source(part, described) for part in known]
    if True in sources:
        return False
    in_memory = "content" not in described
    if any((source is None or in_memory) and KEY in part for source, part in zip(sources, known, strict=True)):
        described |= Signature.of(data).notes()
    shared = [shares_text(part, described) for part in known]
    # two shards of text in memory may hold the same sequence twice
    if True in shared or (in_memory and any(common_sequences(part, described) for part in known)):
        return False
    return None if None in shared or len(known) < len(parts) else True


def texts_of(notes: Mapping[str, Any]) -> list[dict[str, Any] | None]:
    """The texts on which a mask was chosen, by its provenance; None stands for an unknown text."""
    if "of" in notes:  # the mask was made from other masks
        sources = notes["of"] if isinstance(notes["of"], list) else [notes["of"]]
        return [part for source in sources for part in texts_of(source)]
    return list(notes.get("statistics", {}).get("parts", [])) or [None]


def evaluation_split(protocol: Protocol, split: str | None, parts: Sequence[Mapping[str, Any] | None]) -> str:
    """The split to evaluate on.

    Args:
        protocol: "held_out" takes `split`; "same" takes the split on which the masks were chosen.
        split: the requested split, or None for "evaluate".
        parts: texts on which the masks were chosen, see `texts_of`.

    Raises:
        ConfigError: "same" with a given split, or with masks that were chosen on no split or on several splits.
    """
    if protocol == "held_out":
        return EVALUATION_SPLIT if split is None else split
    if split is not None:
        raise ConfigError(f"protocol same uses the split on which the masks were chosen; leave out split {split!r}")
    splits = {None if part is None else part.get("split") for part in parts}
    found = next(iter(splits), None)
    if len(splits) != 1 or found is None:
        raise ConfigError(
            f"protocol same needs masks chosen on one split, but these were chosen on {sorted(map(str, splits))}; "
            "name the split and leave out the protocol"
        )
    return found


def check_protocol(protocol: Protocol, parts: Sequence[Mapping[str, Any] | None], data: LabelledData) -> None:
    """Refuse "same" if the masks were chosen on other text.

    Raises:
        DataError: the masks were chosen on other text; the message names the split.
    """
    if protocol == "same" and is_other_text(parts, data) is not False:
        raise DataError(
            f"protocol same: the masks were chosen on other text than split {data.description.get('split')!r} of this "
            "folder; give the folder that `monet stats` read"
        )
