"""Plain torch routing: thresholded softmax and batch statistics (arXiv 2412.04139, section 3; BatchNorm as released).

A key is active where its normalised logit reaches min(row maximum, quantile). The normalised logit is monotone in the
logit, so the test is made on raw logits against one scalar a head and no normalised copy exists.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import NamedTuple

import torch
from torch import Tensor

# Rows whose moments are taken at a time on the CPU: their deviations stay in the cache.
_CHUNK_ELEMENTS = 1 << 19


class BatchStatistics(NamedTuple):
    """Moments of logits per head, in the form that merges: two sets combine exactly by `merge_statistics`."""

    count: Tensor  # () number of logits
    mean_H: Tensor  # (H,)
    m2_H: Tensor  # (H,) sum of squared deviations from the mean


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def normal_quantile(topk: int, num_keys: int) -> float:
    """Standard normal quantile that about `topk` of `num_keys` normal logits exceed; -inf where all are kept."""
    return -math.inf if topk >= num_keys else NormalDist().inv_cdf(1 - topk / num_keys)


def raw_threshold(mean_H: Tensor, var_H: Tensor, quantile: float, eps: float) -> Tensor:
    """Threshold on raw logits, (H,) float64: mean + quantile * sqrt(var + eps)."""
    return mean_H.double() + quantile * (var_H.double() + eps).sqrt()


def batch_statistics(z_BTHE: Tensor, token_mask_BT: Tensor | None = None) -> BatchStatistics:
    """Per-head moments over all logits of the unmasked tokens, accumulated without cancellation.

    Args:
        z_BTHE: router logits, any floating dtype.
        token_mask_BT: bool, True at tokens that count; None counts all.
    Returns:
        BatchStatistics in float64; mean and m2 are zero when no token counts.
    """
    E = z_BTHE.shape[-1]
    z_BTHE = z_BTHE.detach()
    row_mean_NH, row_var_NH = _row_moments(z_BTHE.flatten(0, 1))
    weight_N1 = torch.ones_like(row_mean_NH[:, :1]) if token_mask_BT is None else token_mask_BT.reshape(-1, 1).double()
    rows = weight_N1.sum()
    mean_H = (weight_N1 * row_mean_NH).sum(0) / rows.clamp(min=1)
    m2_H = E * (weight_N1 * (row_var_NH + (row_mean_NH - mean_H) ** 2)).sum(0)
    return BatchStatistics(rows * E, mean_H, m2_H)


def _row_moments(z_NHE: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of each row, float64; deviations from the row's own mean, so nothing cancels."""
    if z_NHE.is_cuda:
        row_var_NH, row_mean_NH = torch.var_mean(_at_least_float32(z_NHE), -1, correction=0)
        return row_mean_NH.double(), row_var_NH.double()
    # torch's var_mean over a last dimension is not vectorised on the CPU: passes in the cache are 10 times as fast.
    moments = [z_NHE.new_empty(2, 0, z_NHE.shape[1]).double()]
    for z_nHE in z_NHE.split(max(1, _CHUNK_ELEMENTS // (z_NHE.shape[1] * z_NHE.shape[2]))):
        z_nHE = _at_least_float32(z_nHE)
        mean_nH1 = z_nHE.mean(-1, keepdim=True)
        deviation_nHE = z_nHE - mean_nH1
        shift_nH = deviation_nHE.mean(-1).double()  # what rounding took from a mean far from zero
        square_nH = deviation_nHE.square_().mean(-1).double()
        moments.append(torch.stack([mean_nH1[..., 0].double() + shift_nH, square_nH - shift_nH.square()]))
    mean_NH, var_NH = torch.cat(moments, 1)
    return mean_NH, var_NH


def merge_statistics(first: BatchStatistics, second: BatchStatistics) -> BatchStatistics:
    """Moments of the union of two disjoint sets of logits (Chan et al., 1979)."""
    count = first.count + second.count
    share = second.count / count.clamp(min=1)
    delta_H = second.mean_H - first.mean_H
    mean_H = first.mean_H + delta_H * share
    m2_H = first.m2_H + second.m2_H + delta_H**2 * first.count * share
    return BatchStatistics(count, mean_H, m2_H)


def thresholded_softmax(z_BTHE: Tensor, threshold_H: Tensor) -> Tensor:
    """Softmax over the keys whose logit reaches the threshold; the row maximum always does.

    Args:
        z_BTHE: router logits, any floating dtype.
        threshold_H: threshold on raw logits per head, see `raw_threshold`.
    Returns:
        g_BTHE, float32 (float64 for float64 logits): exactly 0 at inactive keys, rows sum to 1.
    """
    z_BTHE = _at_least_float32(z_BTHE)
    bound_BTH1 = torch.minimum(z_BTHE.amax(-1, keepdim=True), threshold_H.to(z_BTHE.dtype)[:, None])
    return z_BTHE.masked_fill(z_BTHE < bound_BTH1, -math.inf).softmax(-1)
