"""The contexts of many units as arrays: windows, tokens and labels, with a weight for each.

Dims: U units, K contexts of a unit. An empty place has the weight 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

from monet.eval.index import info as names
from monet.eval.index.index import Index
from monet.eval.index.units import Unit

_NONE = 2**32 - 1


@dataclass(frozen=True)
class ContextTable:
    """Contexts of units.

    Attributes:
        window_UK: int64, number of the window.
        token_UK: int64, id of the token.
        label_UK: int64, number of the window's label.
        weight_UK: float64, how much a context counts; 0 in empty places.
    """

    window_UK: NDArray[np.int64]
    token_UK: NDArray[np.int64]
    label_UK: NDArray[np.int64]
    weight_UK: NDArray[np.float64]

    def shuffled(self, seed: int) -> ContextTable:
        """The control: tokens and labels are dealt to the units at random, so that only their frequencies stay."""
        generator = np.random.default_rng([seed, 3])
        filled_UK = self.weight_UK > 0
        token_UK, label_UK = self.token_UK.copy(), self.label_UK.copy()
        token_UK[filled_UK] = generator.permutation(token_UK[filled_UK])
        label_UK[filled_UK] = generator.permutation(label_UK[filled_UK])
        return ContextTable(self.window_UK, token_UK, label_UK, self.weight_UK)


class WindowTable:
    """Token ids and labels of all windows of an index, for fast access.

    Args:
        index: the index.

    Attributes:
        number_W: int64, numbers of the windows, ascending.
        label_W: int64, their labels.
        ids: token ids of each window.
    """

    def __init__(self, index: Index) -> None:
        place = {label: number for number, label in enumerate(index.info.data.labels)}
        windows = [index.windows[int(number)] for number in index.windows.number_W]
        self.number_W = index.windows.number_W
        self.label_W = np.array([place[one.label] for one in windows], np.int64)
        self.ids = [np.array(one.ids, np.int64) for one in windows]

    def table(
        self, window_UK: NDArray[np.int64], position_UK: NDArray[np.int64], weight_UK: NDArray[np.float64]
    ) -> ContextTable:
        """The contexts at these places; those of weight 0 are empty."""
        row_UK = np.searchsorted(self.number_W, np.where(weight_UK > 0, window_UK, self.number_W[0]))
        token_UK = np.zeros(window_UK.shape, np.int64)
        for place in zip(*np.nonzero(weight_UK > 0), strict=True):
            token_UK[place] = self.ids[row_UK[place]][position_UK[place]]
        return ContextTable(window_UK, token_UK, self.label_W[row_UK], weight_UK)

    def frequencies(self, index: Index) -> NDArray[np.int64]:
        """How often each token id occurs, (V,) int64; tokens that the index does not count are left out."""
        found_V = np.bincount(np.concatenate(self.ids), minlength=index.info.model.vocabulary)
        found_V[index.info.settings.exclude_ids] = 0
        return found_V


def strongest(index: Index, windows: WindowTable, units: Sequence[Unit]) -> ContextTable:
    """The strongest contexts of units of an index, each with the weight 1."""
    with safe_open(index.folder / names.TOP, "numpy") as opened:
        window_UK, position_UK = (
            np.stack([part[unit.group, unit.number] for unit in units]).astype(np.int64)
            for part in (opened.get_slice(f"{name}_RUQ") for name in ("window", "position"))
        )
    return windows.table(window_UK, position_UK, (window_UK != _NONE).astype(np.float64))
