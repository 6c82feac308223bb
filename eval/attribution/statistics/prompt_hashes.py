"""Which prompts a mask was chosen on, so that it can be told later whether it is judged on other ones.

`monet eval toxicity-scores` writes a hash of the prompt beside each text. `monet stats --scores` keeps the set of
hashes in the statistics' provenance, and `monet select` keeps it in the mask's. A hash is the first 48 bits of SHA-256
over the prompt's words: with 100,000 prompts, one of a thousand other prompts is mistaken for them once in three
million evaluations.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from monet.eval.core import signature
from monet.eval.core.held_out import texts_of

KEY = "prompt_hashes"
_BYTES = 6
_HASH = re.compile(f"[0-9a-f]{{{2 * _BYTES}}}")


def prompt_hash(text: str) -> str:
    """Twelve hexadecimal digits that say which prompt it is; white space does not count."""
    return hashlib.sha256(" ".join(text.split()).encode("utf-8", "surrogatepass")).hexdigest()[: 2 * _BYTES]


def is_hash(value: Any) -> bool:
    """Whether a value is what `prompt_hash` gives."""
    return isinstance(value, str) and _HASH.fullmatch(value) is not None


def packed(hashes: Iterable[str]) -> str:
    """A set of hashes as text of eight characters each, for provenance."""
    return base64.b64encode(b"".join(map(bytes.fromhex, sorted(set(hashes))))).decode()


def unpacked(content: Any) -> frozenset[str] | None:
    """The set that `packed` made a text of; None if it is no such text."""
    try:
        found = base64.b64decode(content, validate=True)
    except (TypeError, ValueError, binascii.Error):
        return None
    if len(found) % _BYTES:
        return None
    return frozenset(found[start : start + _BYTES].hex() for start in range(0, len(found), _BYTES))


def judged_before(notes: Iterable[Mapping[str, Any]], prompts: Iterable[str]) -> int | None:
    """How many of some prompts masks were chosen on.

    Args:
        notes: provenance of the masks.
        prompts: that the masks are judged on.

    Returns:
        Their number; None if there is none among the recorded ones, and some mask's are not recorded.
    """
    parts = [part for one in notes for part in texts_of(one)]
    recorded = [None if part is None else unpacked(part.get(KEY)) for part in parts]
    known = frozenset[str]().union(*(one for one in recorded if one is not None))
    seen = sum(prompt_hash(prompt) in known for prompt in prompts)
    return None if not seen and None in recorded else seen


def without_hashes(notes: Any) -> Any:
    """Notes on how something was made, with the number of hashes in the place of each set of them, for people."""
    if isinstance(notes, Mapping):
        return {
            key: without_hashes(value) if (hashes := _hashes(key, value)) is None else len(hashes)
            for key, value in notes.items()
        }
    return [without_hashes(one) for one in notes] if isinstance(notes, (list, tuple)) else notes


def _hashes(key: str, value: Any) -> frozenset[Any] | None:
    """The hashes that an entry of provenance holds; None if it holds none."""
    if key == KEY and isinstance(value, str):
        return unpacked(value) or frozenset()
    found = signature.Signature.read({key: value}) if key == signature.KEY else None
    return None if found is None else found.hashes
