"""Hashes of the prompts on which a mask was chosen, to check later whether it is judged on other prompts.

`monet eval toxicity-scores` writes a hash of the prompt with each text. `monet stats --scores` keeps the set of hashes
in the statistics' provenance, and `monet select` keeps it in the mask's. A hash is the first 48 bits of SHA-256 over
the prompt's words. With 100,000 recorded prompts and one thousand other prompts, a false match happens once in three
million evaluations.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from monet.eval.core import text_overlap
from monet.eval.core.held_out import texts_of
from monet.eval.core.intervention import Intervention

KEY = "prompt_hashes"
_BYTES = 6
_HASH = re.compile(f"[0-9a-f]{{{2 * _BYTES}}}")


def prompt_hash(text: str) -> str:
    """Twelve hexadecimal digits that identify a prompt; white space does not count."""
    return hashlib.sha256(" ".join(text.split()).encode("utf-8", "surrogatepass")).hexdigest()[: 2 * _BYTES]


def is_hash(value: Any) -> bool:
    """Whether a value has the form of a `prompt_hash`."""
    return isinstance(value, str) and _HASH.fullmatch(value) is not None


def packed(hashes: Iterable[str]) -> str:
    """A set of hashes as a text for provenance, eight characters for each hash."""
    return base64.b64encode(b"".join(map(bytes.fromhex, sorted(set(hashes))))).decode()


def unpacked(content: Any) -> frozenset[str] | None:
    """The set of hashes in a text from `packed`; None if it is not such a text."""
    try:
        found = base64.b64decode(content, validate=True)
    except (TypeError, ValueError, binascii.Error):
        return None
    if len(found) % _BYTES:
        return None
    return frozenset(found[start : start + _BYTES].hex() for start in range(0, len(found), _BYTES))


def judged_before(notes: Iterable[Mapping[str, Any]], prompts: Iterable[str]) -> int | None:
    """Number of prompts on which masks were chosen, among the given prompts.

    Args:
        notes: provenance of the masks.
        prompts: prompts on which the masks are judged.

    Returns:
        The number; None if no given prompt is recorded and the record of some mask is missing.
    """
    parts = [part for one in notes for part in texts_of(one)]
    recorded = [None if part is None else unpacked(part.get(KEY)) for part in parts]
    known = frozenset[str]().union(*(one for one in recorded if one is not None))
    seen = sum(prompt_hash(prompt) in known for prompt in prompts)
    return None if not seen and None in recorded else seen


def without_hashes(notes: Any) -> Any:
    """Provenance for people: each set of hashes is replaced by its size."""
    if isinstance(notes, Mapping):
        return {
            key: without_hashes(value) if (hashes := _hashes(key, value)) is None else len(hashes)
            for key, value in notes.items()
        }
    return [without_hashes(one) for one in notes] if isinstance(notes, (list, tuple)) else notes


def mask_notes(masks: Mapping[str, Intervention]) -> dict[str, Any]:
    """Provenance of each mask for a result, with the number of hashes in place of the hashes."""
    return {label: without_hashes(mask.provenance) for label, mask in masks.items()}


def _hashes(key: str, value: Any) -> frozenset[Any] | None:
    """The hashes in an entry of provenance; None if it has none."""
    if key == KEY and isinstance(value, str):
        return unpacked(value) or frozenset()
    found = text_overlap.Signature.read({key: value}) if key == text_overlap.KEY else None
    return None if found is None else found.hashes
