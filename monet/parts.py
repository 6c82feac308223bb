"""Work that several processes share: each process does the i-th of n parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from typing_extensions import Self

from monet.errors import ConfigError


def check_shard(index: int, count: int) -> None:
    """Refuse a part number that does not exist among `count` parts.

    Raises:
        ConfigError: there is no such part; the message names both numbers.
    """
    if not 0 <= index < count:
        raise ConfigError(f"{index}/{count} is not a part: the index must be from 0 to {count - 1}")


def parse_shard(option: str, text: str) -> tuple[int, int]:
    """Read "i/n": the number of a part, starting at 0, and the number of parts.

    Raises:
        ConfigError: the text has another form, or there is no such part; the message names the option.
    """
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal()):
        raise ConfigError(f"{option} {text!r}: write i/n for part i of n parts, where i starts at 0, e.g. 0/2 and 1/2")
    check_shard(int(index), int(count))
    return int(index), int(count)


@dataclass(frozen=True)
class Part:
    """The part of one process, if several processes share the work.

    Args:
        index: number of this part, starting at 0.
        count: number of parts.

    Raises:
        ConfigError: there is no such part.
    """

    index: int
    count: int

    def __post_init__(self) -> None:
        check_shard(self.index, self.count)

    @classmethod
    def parse(cls, text: str | None) -> Self | None:
        """Read "i/n"; None stays None.

        Raises:
            ConfigError: the text has another form, or there is no such part.
        """
        return None if text is None else cls(*parse_shard("part", text))

    def slice_of(self, weights: Sequence[int]) -> slice:
        """The items of this part; each part gets consecutive items, with about the same total weight.

        Args:
            weights: weights of the items in their order, at least 0; they must be the same in every process.
        """
        total, before, ends = sum(weights) or 1, 0, [0] * self.count
        for number, weight in enumerate(weights, start=1):
            # an item belongs to the part that contains its middle
            owner = min((2 * before + weight) * self.count // (2 * total), self.count - 1)
            ends[owner] = number
            before += weight
        begins = [max(ends[:index], default=0) for index in range(self.count)]
        return slice(begins[self.index], max(begins[self.index], ends[self.index]))
