"""Work that several processes share: each does the i-th of n parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from typing_extensions import Self

from monet.errors import ConfigError


def check_shard(index: int, count: int) -> None:
    """Refuse a part that a whole divided into `count` does not have.

    Raises:
        ConfigError: names both.
    """
    if not 0 <= index < count:
        raise ConfigError(f"shard {index}/{count}: parts of a whole divided into {count} are 0 to {count - 1}")


def parse_shard(option: str, text: str) -> tuple[int, int]:
    """Read "i/n": a part's number, from 0 on, and how many parts there are.

    Raises:
        ConfigError: another form, or no such part; names the option.
    """
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal()):
        raise ConfigError(f"{option} {text!r}: write i/n, the i-th part of n, i from 0 on, e.g. 0/2 and 1/2")
    check_shard(int(index), int(count))
    return int(index), int(count)


@dataclass(frozen=True)
class Part:
    """One of several processes that share a work.

    Args:
        index: which, from 0 on.
        count: how many there are.

    Raises:
        ConfigError: no such part.
    """

    index: int
    count: int

    def __post_init__(self) -> None:
        check_shard(self.index, self.count)

    @classmethod
    def parse(cls, text: str | None) -> Self | None:
        """Read "i/n"; None stays None.

        Raises:
            ConfigError: another form, or no such part.
        """
        return None if text is None else cls(*parse_shard("part", text))

    def slice_of(self, weights: Sequence[int]) -> slice:
        """The items that belong to this part, when all parts take neighbours of about equal total weight.

        Args:
            weights: of the items in their order, at least 0; the same ones in every process.
        """
        total, before, ends = sum(weights) or 1, 0, [0] * self.count
        for number, weight in enumerate(weights, start=1):
            # an item belongs to the part in which its middle is
            owner = min((2 * before + weight) * self.count // (2 * total), self.count - 1)
            ends[owner] = number
            before += weight
        begins = [max(ends[:index], default=0) for index in range(self.count)]
        return slice(begins[self.index], max(begins[self.index], ends[self.index]))
