"""The units that a command explains or scores: named ones, or the first ones by a column of the table of experts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from monet.errors import ConfigError
from monet.eval.index.index import Index
from monet.eval.index.units import Unit
from monet.options import Options

By = Literal["random", "count", "mean", "max", "label_share", "token_share"]
KindOfUnit = Literal["pair", "first", "second"]


@dataclass(frozen=True)
class Choice(Options):
    """Which experts are taken.

    Args:
        experts: names, separated by commas: 0:17 is expert id 17 (i*E + j) of routing group 0; 0:i3 and 0:j5 are
            halves.
        most: take this number of experts instead, by `by`.
        by: random draws them with the seed. The others take the largest values of this column of the index's table.
        kind: kind of unit for `most`: pair (experts), first (halves i) or second (halves j).
        min_count: for `most`: units with fewer firings are left out.
    """

    experts: str = ""
    most: int | None = None
    by: By = "random"
    kind: KindOfUnit = "pair"
    min_count: int = 50

    def of(self, index: Index, seed: int) -> list[Unit]:
        """The units, each once.

        Raises:
            ConfigError: both or neither of `experts` and `most` are given, a number is below 1, an expert does not
                exist, or no unit has `min_count` firings.
        """
        if bool(self.experts) == (self.most is not None):
            raise ConfigError("name experts (--experts 0:17,1:402), or take some (--most 200); give one of the two")
        if self.most is None:
            return list(dict.fromkeys(index.units.parse(self.experts)))
        if self.most < 1 or self.min_count < 1:
            raise ConfigError(f"most {self.most} and min_count {self.min_count} must be at least 1")
        columns = ["group", "unit"] if self.by == "random" else ["group", "unit", self.by]
        table = index.table(columns, [("kind", "==", self.kind), ("count", ">=", self.min_count)])
        if not len(table):
            raise ConfigError(f"no unit of kind {self.kind} fires {self.min_count} times; lower --min_count")
        group_U, unit_U = (table.column(name).to_numpy().astype(np.int64) for name in ("group", "unit"))
        place_U = np.lexsort((unit_U, group_U))
        if self.by == "random":
            place_U = np.random.default_rng(seed).permutation(place_U)
        else:
            value_U = table.column(self.by).to_numpy(zero_copy_only=False).astype(np.float64)
            place_U = place_U[np.argsort(-np.nan_to_num(value_U, nan=-np.inf)[place_U], kind="stable")]
        return [index.units.unit(int(group_U[n]), int(unit_U[n])) for n in place_U[: self.most]]
