"""Find sequences that two texts have in common, by a bounded number of hashes in each text's description.

A hash is 64 bits of BLAKE2b over the token ids of one sequence. A text with up to `LIMIT` sequences keeps all hashes. A
larger text keeps the smallest hashes. The smallest hashes are the same sample in every text, so a common sequence is
found if its hash is small enough for both samples. A sequence that is cut at another place has another hash and is not
found.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import gcd
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from monet.eval.core.inputs import Batch, LabelledData

KEY = "signature"
LIMIT = 8192
# Two samples with fewer hashes to compare show nothing. If none of this many is in common, at most one percent of the
# sequences is, with 95 % confidence.
ENOUGH_HASHES = 300
_LARGEST = 2**64 - 1

# The keys of a description that identify its text: prepared text, a scored file, sequences in memory.
_SOURCES = (("content", "split"), ("file_sha256",), ("sha256",))
_OF_A_PASS = {KEY, "shard", "data_fingerprint", "only", "excluded", "permutations", "stored_mask"}


@dataclass(frozen=True)
class Signature:
    """Hashes of the sequences of a text.

    Args:
        hashes: the smallest hashes, each below 2^64.
        bound: all hashes of the text up to this number are in `hashes`; 2^64 - 1 if `hashes` is complete.
    """

    hashes: frozenset[int] = frozenset()
    bound: int = _LARGEST

    @classmethod
    def of(cls, data: LabelledData) -> Signature:
        """Signature of all sequences of a text; reads them once."""
        found = Collected()
        for batch in data.batches(64):
            found.add(batch)
        return found.signature()

    @classmethod
    def read(cls, description: Mapping[str, Any]) -> Signature | None:
        """The signature in a description; None if it has none."""
        try:
            content = description[KEY]
            hashes = np.frombuffer(base64.b64decode(content["hashes"], validate=True), dtype="<u8")
            return cls(frozenset(hashes.tolist()), int(content["bound"], 16))
        except (KeyError, TypeError, ValueError, binascii.Error):
            return None

    def notes(self) -> dict[str, dict[str, str]]:
        """Entry for a description, JSON-able."""
        content = np.array(sorted(self.hashes), dtype="<u8").tobytes()
        return {KEY: {"hashes": base64.b64encode(content).decode(), "bound": f"{self.bound:x}"}}

    def up_to(self, bound: int) -> Signature:
        """The signature without the hashes above a number."""
        return Signature(frozenset(one for one in self.hashes if one <= bound), min(self.bound, bound))

    def differs_from(self, other: Signature) -> bool:
        """Whether texts without a common hash have no common sequence: all hashes are known, or enough of them."""
        both = min(self.bound, other.bound)
        return both == _LARGEST or min(len(one.up_to(both).hashes) for one in (self, other)) >= ENOUGH_HASHES


class Collected:
    """Hashes of the added batches."""

    def __init__(self) -> None:
        self._found = Signature()

    @classmethod
    def of(cls, description: Mapping[str, Any]) -> Collected:
        """Continue from the signature in a description.

        Raises:
            ValueError: the description has no signature.
        """
        collected = cls()
        collected.join(description)
        return collected

    def join(self, description: Mapping[str, Any]) -> None:
        """Add the sequences of another text, by the signature in its description.

        Raises:
            ValueError: the description has no signature.
        """
        other = Signature.read(description)
        if other is None:
            raise ValueError("a description without hashes of its sequences")
        bound = min(self._found.bound, other.bound)
        both = Signature(self._found.hashes | other.hashes, bound).up_to(bound)
        self._found = _smallest(both, 2 * LIMIT)

    def add(self, batch: Batch) -> None:
        """Add the sequences of a batch: their inputs, and the last target if it is not an input."""
        hashes = set(self._found.hashes)
        mask_BT = None if batch.attention_mask_BT is None else batch.attention_mask_BT.bool()
        for row, (ids_T, targets_T) in enumerate(zip(batch.input_ids_BT, batch.targets_BT, strict=True)):
            if mask_BT is not None:
                ids_T, targets_T = ids_T[mask_BT[row]], targets_T[mask_BT[row]]
            ids = ids_T.tolist()
            hashes.add(_hash(ids))
            if ids and (last := int(targets_T[-1])) >= 0:
                hashes.add(_hash([*ids, last]))
        self._found = _smallest(Signature(frozenset(hashes), self._found.bound), 2 * LIMIT)

    def signature(self) -> Signature:
        """Signature of everything added so far."""
        return _smallest(self._found, LIMIT)


def _hash(ids: Sequence[int]) -> int:
    content = np.array(ids, dtype="<i8").tobytes()
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def _smallest(found: Signature, count: int) -> Signature:
    if len(found.hashes) <= count:
        return found.up_to(found.bound)
    return found.up_to(sorted(found.hashes)[count - 1])


def thinned(parts: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Descriptions with signatures that hold at most `LIMIT` hashes together."""
    signatures = [Signature.read(part) for part in parts]
    hashes = sorted(one for signature in signatures if signature is not None for one in signature.hashes)
    bound = hashes[LIMIT - 1] if len(hashes) > LIMIT else _LARGEST
    return [
        {**part, **({} if signature is None else signature.up_to(bound).notes())}
        for part, signature in zip(parts, signatures, strict=True)
    ]


def common_sequences(part: Mapping[str, Any], other: Mapping[str, Any]) -> int:
    """Number of sequences that two descriptions are known to have in common."""
    mine, theirs = Signature.read(part), Signature.read(other)
    return 0 if mine is None or theirs is None else len(mine.hashes & theirs.hashes)


def shares_text(part: Mapping[str, Any], other: Mapping[str, Any]) -> bool | None:
    """Whether the texts of two descriptions have something in common; None if the descriptions do not say.

    Parts of one source are compared by their part numbers, other texts by their sequences.
    """
    if (answer := same_source(part, other)) is not None:
        return answer
    mine, theirs = Signature.read(part), Signature.read(other)
    if mine is None or theirs is None:
        return None
    if mine.hashes & theirs.hashes:
        return True
    return False if mine.differs_from(theirs) else None


def same_source(part: Mapping[str, Any], other: Mapping[str, Any]) -> bool | None:
    """Whether two descriptions are of the same part of one source; None if they are of two sources."""
    if "content" in part and part["content"] == other.get("content") and part.get("split") != other.get("split"):
        return False
    source = next((keys for keys in _SOURCES if keys[0] in part), tuple(part.keys() - _OF_A_PASS))
    if not source or any(part.get(key) != other.get(key) for key in source):
        return None
    domains, others = (set(one.get("only", one.get("domains", ()))) for one in (part, other))
    if domains and others and not domains & others:
        return False
    mine, theirs = part.get("shard"), other.get("shard")
    alike = all(
        (part.get(key) or None) == (other.get(key) or None) for key in (part.keys() | other.keys()) - _OF_A_PASS
    )
    # Shard i of n and shard j of m have a run in common if i and j have the same remainder.
    divided = mine is not None and theirs is not None and (mine[0] - theirs[0]) % gcd(mine[1], theirs[1]) != 0
    return not (alike and divided)
