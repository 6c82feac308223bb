"""The units of an index: the experts of a routing group, and their halves.

A routing group has U = E*E + 2E units. Unit i*E + j is expert (i, j), a pair of keys. Unit E*E + i is the half i: the
first key by itself, with any second key. Unit E*E + E + j is the half j. The weight of a half at a token is
`sum_h g1[h, i]` or `sum_h g2[h, j]`. It equals the sum of the weights of all experts with this key.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from monet.errors import ConfigError

Kind = Literal["pair", "first", "second"]
KINDS: tuple[Kind, ...] = ("pair", "first", "second")
_NAME = re.compile(r"(\d+):([ij]?)(\d+)")


@dataclass(frozen=True)
class Unit:
    """One unit of a routing group.

    Attributes:
        group: routing group.
        number: row of the unit in the arrays of its group, below U.
        kind: pair for an expert, first for a half i, second for a half j.
        i, j: keys; None for the key that a half does not have.
    """

    group: int
    number: int
    kind: Kind
    i: int | None
    j: int | None

    @property
    def name(self) -> str:
        """The unit as `--experts` takes it: 0:17 is expert id 17 of group 0; 0:i3 and 0:j5 are halves."""
        return (
            f"{self.group}:{self.number if self.kind == 'pair' else f'i{self.i}' if self.j is None else f'j{self.j}'}"
        )


@dataclass(frozen=True)
class Units:
    """All units of a model.

    Args:
        groups: R.
        keys: E.
    """

    groups: int
    keys: int

    @property
    def pairs(self) -> int:
        """N = E*E, experts of a routing group."""
        return self.keys**2

    @property
    def per_group(self) -> int:
        """U = E*E + 2E."""
        return self.keys**2 + 2 * self.keys

    @property
    def experts(self) -> int:
        """R*E*E, experts of the model without halves."""
        return self.groups * self.pairs

    def unit(self, group: int, number: int) -> Unit:
        """The unit of a row.

        Raises:
            ConfigError: there is no such group or row.
        """
        if not (0 <= group < self.groups and 0 <= number < self.per_group):
            raise ConfigError(
                f"unit {number} of routing group {group}: the model has groups 0 to {self.groups - 1}, expert ids 0 to "
                f"{self.pairs - 1}, and keys 0 to {self.keys - 1}"
            )
        if number < self.pairs:
            return Unit(group, number, "pair", number // self.keys, number % self.keys)
        half = number - self.pairs
        first = half < self.keys
        return Unit(group, number, *(("first", half, None) if first else ("second", None, half - self.keys)))

    def pair(self, group: int, i: int, j: int) -> Unit:
        """Expert (i, j).

        Raises:
            ConfigError: the model has no such group or key.
        """
        self._check_key(group, i)
        self._check_key(group, j)
        return self.unit(group, i * self.keys + j)

    def half(self, group: int, i: int | None = None, j: int | None = None) -> Unit:
        """The half of one key; give either i or j.

        Raises:
            ConfigError: both or neither key are given, or the model has no such group or key.
        """
        if (i is None) == (j is None):
            raise ConfigError(f"a half has one key; give i or j, not i={i} and j={j}")
        key = i if i is not None else j
        assert key is not None
        self._check_key(group, key)
        return self.unit(group, self.pairs + key + (self.keys if i is None else 0))

    def parse(self, text: str) -> list[Unit]:
        """Read names of units, separated by commas: `0:17,1:402,0:i3`.

        Raises:
            ConfigError: a name has another form, or there is no such unit.
        """
        found = []
        for name in text.split(","):
            if (match := _NAME.fullmatch(name.strip())) is None:
                raise ConfigError(
                    f"experts {name.strip()!r}: write GROUP:ID with the id i*E + j, such as 0:17, or a half as 0:i3 or "
                    "0:j5; separate several by commas"
                )
            group, key, number = int(match[1]), match[2], int(match[3])
            if not key and number >= self.pairs:
                number = self.per_group  # refused below: ids are those of experts
            found.append(self.half(group, **{key: number}) if key else self.unit(group, number))
        return found

    def _check_key(self, group: int, key: int) -> None:
        if not 0 <= key < self.keys:
            raise ConfigError(f"key {key} of routing group {group}: keys are from 0 to {self.keys - 1}")
