"""How many units of one model have a counterpart in another one, for example of another training seed.

The similarity of two units is the share of common windows among their strongest contexts (Jaccard). Dims: U, X units,
K contexts of a unit, W windows.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from monet.eval.explain.strongest import WindowTable

_ROWS = 256


def best_overlap(window_UK: NDArray[np.int64], other_XK: NDArray[np.int64]) -> NDArray[np.float64]:
    """For each unit the largest similarity to any unit of the other model, (U,) float64.

    Args:
        window_UK: windows of the units' contexts; -1 in empty places.
        other_XK: the same of the other model.
    """
    from scipy.sparse import csr_matrix

    width = int(max(window_UK.max(initial=0), other_XK.max(initial=0))) + 1

    def matrix(window: NDArray[np.int64]) -> csr_matrix:
        row, column = np.nonzero(window >= 0)
        return csr_matrix((np.ones(len(row)), (row, window[row, column])), shape=(len(window), width))

    own, other = matrix(window_UK), matrix(other_XK).T.tocsr()
    size_U, size_X = (window_UK >= 0).sum(1), (other_XK >= 0).sum(1)
    found_U = np.zeros(len(window_UK))
    for start in range(0, len(window_UK), _ROWS):
        common = (own[start : start + _ROWS] @ other).tocoo()
        union = size_U[start + common.row] + size_X[common.col] - common.data
        np.maximum.at(found_U, start + common.row, common.data / union)
    return found_U


def exchanged(window_XK: NDArray[np.int64], windows: WindowTable, seed: int) -> NDArray[np.int64]:
    """The control: each window is exchanged for a random one of its label, so that only labels can overlap."""
    generator = np.random.default_rng([seed, 4])
    new_W = windows.number_W.copy()
    for label in np.unique(windows.label_W):
        rows = np.flatnonzero(windows.label_W == label)
        new_W[rows] = windows.number_W[generator.permutation(rows)]
    row_XK = np.searchsorted(windows.number_W, np.maximum(window_XK, windows.number_W[0]))
    return np.where(window_XK >= 0, new_W[row_XK], -1)
