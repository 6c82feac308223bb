"""The tokens at which each unit fires: exact from counts, or estimated from samples with an error.

Exact counts need U x V numbers for each group, so only small models have them. Otherwise the two samples of each
interval of weight stand for all firings in the interval, whose number is known. Dims: F tokens kept for each unit.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from monet.eval.index.arrays import Arrays
from monet.eval.index.tables import BINS, INTERVALS, SAMPLES
from monet.eval.index.text import FlatIds

FIRING_TOKENS = 8
_EMPTY = np.uint32(2**32 - 1)
_CELLS = 1 << 24


def exact(token_UV: NDArray[np.int32]) -> Arrays:
    """The most frequent firing tokens of each unit; of equally frequent ones, those with the lowest ids.

    Args:
        token_UV: number of tokens with each id at which the unit is active.

    Returns:
        token_UF int32, -1 if a unit fires on fewer tokens; firings_UF float64, their counts; error_U float32, zeros;
        distinct_U int32, different tokens; entropy_U float32, entropy of the firing tokens in bits.
    """
    U, V = token_UV.shape
    kept = min(FIRING_TOKENS, V)
    token_UF, firings_UF = np.full((U, FIRING_TOKENS), -1, np.int32), np.zeros((U, FIRING_TOKENS))
    distinct_U, entropy_U = np.zeros(U, np.int32), np.zeros(U, np.float32)
    step = max(1, _CELLS // V)
    for start in range(0, U, step):
        rows = slice(start, start + step)
        count = token_UV[rows].astype(np.int64)
        key = count * V + (V - 1 - np.arange(V))  # larger counts first, then lower ids
        best = -np.sort(-np.partition(key, V - kept, axis=1)[:, V - kept :], axis=1)
        number = best // V
        token_UF[rows, :kept] = np.where(number > 0, V - 1 - best % V, -1)
        firings_UF[rows, :kept] = number
        distinct_U[rows] = (count > 0).sum(1)
        total = np.maximum(count.sum(1, keepdims=True), 1)
        share = count / total
        entropy_U[rows] = -(share * np.log2(np.where(share > 0, share, 1.0))).sum(1)
    return {
        "token_UF": token_UF,
        "firings_UF": firings_UF,
        "error_U": np.zeros(U, np.float32),
        "distinct_U": distinct_U,
        "entropy_U": entropy_U,
    }


def sampled(samples: Arrays, histogram_UY: NDArray[np.uint32], text: FlatIds) -> Arrays:
    """Estimates of the most frequent firing tokens, from the samples of each interval.

    Args:
        samples: see `samples_of`.
        histogram_UY: number of firings in each bin.
        text: the windows.

    Returns:
        As `exact`; firings_UF are estimates, and error_U is the largest standard error that an estimated share of
        firings can have. distinct_U is -1 and entropy_U is NaN, since samples do not show them.
    """
    U = len(histogram_UY)
    window_UAZ, position_UAZ = samples["window_UAZ"], samples["position_UAZ"]
    filled_UAZ = window_UAZ != _EMPTY
    firings_UA = histogram_UY.astype(np.int64).reshape(U, INTERVALS, BINS // INTERVALS).sum(2)
    drawn_UA = filled_UAZ.sum(2)
    share_UA = firings_UA / np.maximum(firings_UA.sum(1, keepdims=True), 1)
    some_UA = np.maximum(drawn_UA, 1)
    unseen_UA = (firings_UA - drawn_UA) / np.maximum(firings_UA - 1, 1)  # samples are drawn without replacement
    error_U = np.sqrt((share_UA**2 * 0.25 / some_UA * unseen_UA).sum(1))
    filled_US = filled_UAZ.reshape(U, -1)
    weight_US = np.repeat(firings_UA / some_UA, SAMPLES, axis=1) * filled_US
    token_US = np.full(filled_US.shape, -1, np.int64)
    token_US[filled_US] = text.at(
        window_UAZ.reshape(U, -1)[filled_US].astype(np.int64), position_UAZ.reshape(U, -1)[filled_US].astype(np.int64)
    )
    token_UF, firings_UF = np.full((U, FIRING_TOKENS), -1, np.int32), np.zeros((U, FIRING_TOKENS))
    step = max(1, _CELLS // (INTERVALS * SAMPLES) ** 2)
    for start in range(0, U, step):
        rows = slice(start, start + step)
        token_XS, weight_XS = token_US[rows], weight_US[rows]
        same_XSS = (token_XS[:, :, None] == token_XS[:, None, :]) & (token_XS >= 0)[:, :, None]
        sum_XS = (same_XSS * weight_XS[:, None, :]).sum(2)
        first_XS = same_XSS.argmax(2) == np.arange(INTERVALS * SAMPLES)
        sum_XS = np.where(first_XS & (token_XS >= 0), sum_XS, 0.0)
        order_XF = np.lexsort((token_XS, -sum_XS), axis=1)[:, :FIRING_TOKENS]
        best_XF = np.take_along_axis(sum_XS, order_XF, 1)
        token_UF[rows] = np.where(best_XF > 0, np.take_along_axis(token_XS, order_XF, 1), -1)
        firings_UF[rows] = best_XF
    return {
        "token_UF": token_UF,
        "firings_UF": firings_UF,
        "error_U": error_U.astype(np.float32),
        "distinct_U": np.full(U, -1, np.int32),
        "entropy_U": np.full(U, np.nan, np.float32),
    }
