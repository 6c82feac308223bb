"""Assigns texts to splits: by original, so that no original is in two splits, or by position in the text."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal

from monet.errors import ConfigError, DataError

SPLITS = ("train", "validation", "identify", "evaluate")
DEFAULT_SHARES: dict[str, float] = {"train": 0.80, "validation": 0.04, "identify": 0.08, "evaluate": 0.08}
SplitBy = Literal["original", "position"]
_SCALE = 1 << 64
_TO_A_LINE = 2000  # how many characters a cut may move back to the start of a line


def check_shares(shares: Mapping[str, float]) -> dict[str, float]:
    """Return the shares in the order of SPLITS, without shares of 0.

    Raises:
        ConfigError: an unknown split, a negative share, no training split, or a sum other than 1.
    """
    if unknown := sorted(set(shares) - set(SPLITS)):
        raise ConfigError(f"splits: unknown name {unknown[0]!r}; the splits are {', '.join(SPLITS)}")
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise ConfigError(f"splits: share {share} of {name!r} must be between 0 and 1")
    total = sum(shares.values())
    if not math.isclose(total, 1.0, abs_tol=1e-6):
        raise ConfigError(f"splits: the shares {dict(shares)} add up to {total:g}; they must add up to 1")
    if not shares.get("train"):
        raise ConfigError("splits: the share of 'train' is 0; a model and a tokenizer need training text")
    return {name: float(shares[name]) for name in SPLITS if shares.get(name)}


class SplitPlan:
    """Deterministic split of originals by hash, or of each text by position.

    Args:
        shares: share of the originals in each split, or of each text's characters; they add up to 1.
        seed: seed for the assignment of originals to splits.
        moved: originals (by hash) that `fill` moved to another split than their hash selects.
        by: unit of the split, see `parts`.
    """

    def __init__(
        self,
        shares: Mapping[str, float],
        seed: int,
        moved: Mapping[int, str] | None = None,
        by: SplitBy = "original",
    ) -> None:
        self.shares = check_shares(shares)
        self.seed = seed
        self.by = by
        self.moved = dict(moved or {})
        self._ends: list[tuple[int, str]] = []
        total = 0.0
        for name, share in self.shares.items():
            total += share
            self._ends.append((round(min(total, 1.0) * _SCALE), name))
        self._ends[-1] = (_SCALE, self._ends[-1][1])

    def hash_of(self, source: str) -> int:
        """Return the position of an original in 0..2**64-1, uniformly distributed."""
        digest = hashlib.blake2b(f"{self.seed}\n{source}".encode("utf-8", "backslashreplace"), digest_size=8).digest()
        return int.from_bytes(digest, "big")

    def split_of_hash(self, place: int) -> str:
        if place in self.moved:
            return self.moved[place]
        return next(name for end, name in self._ends if place < end)

    def split_of(self, source: str) -> str:
        """Return the split of the document's original."""
        return self.split_of_hash(self.hash_of(source))

    def parts(self, source: str, text: str) -> Iterator[tuple[str, str]]:
        """Yield a text with its split; by position, yield the parts of the text in order, each with its split.

        A part starts at the start of a line if one is near. A split whose part has no visible character gets no part.
        """
        if self.by == "original":
            yield self.split_of(source), text
            return
        begin = 0
        for end, name in self._ends:
            stop = len(text) if end == _SCALE else _line_start(text, end * len(text) // _SCALE)
            if text[begin:stop].strip():
                yield name, text[begin:stop]
            begin = max(begin, stop)

    def fill(self, places: Mapping[str, Iterable[int]]) -> None:
        """Give every split of every domain at least one original, by moving the original with the nearest hash.

        Only a split that would be empty changes, so in a large corpus nothing moves.

        Args:
            places: hashes of the originals of each domain.
        Raises:
            DataError: a domain has fewer originals than there are splits.
        """
        for domain, listed in sorted(places.items()):
            originals = sorted(set(listed))
            if len(originals) < len(self.shares):
                raise DataError(
                    f"domain {domain!r} has {len(originals)} originals and there are {len(self.shares)} splits "
                    f"({', '.join(self.shares)}), each of which needs one. Add text from more originals, give a split "
                    "the share 0, or cut each text into the splits with --split_by position"
                )
            start = 0
            for end, name in self._ends:
                members = [place for place in originals if self.split_of_hash(place) == name]
                if not members:
                    self.moved[self._nearest(originals, (start + end) // 2)] = name
                start = end
        for domain, listed in sorted(places.items()):
            if missing := set(self.shares) - {self.split_of_hash(place) for place in listed}:
                raise DataError(
                    f"domain {domain!r} shares its few originals with other domains, so no document is left for its "
                    f"split {min(missing)!r}; add text from more originals, or try another --seed"
                )

    def _nearest(self, originals: list[int], middle: int) -> int:
        """Return the original nearest to `middle` in the fullest split."""
        by_split: dict[str, list[int]] = {}
        for place in originals:
            by_split.setdefault(self.split_of_hash(place), []).append(place)
        return min(max(by_split.values(), key=len), key=lambda place: abs(place - middle))


def _line_start(text: str, place: int) -> int:
    """Return the start of the line at `place` if it is near, else the start of the word, else `place`."""
    first = max(0, place - _TO_A_LINE)
    for mark in ("\n", " "):
        if (found := text.rfind(mark, first, place)) >= 0:
            return found + 1
    return place
