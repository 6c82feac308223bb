"""Plain torch routing: thresholded softmax and batch statistics (arXiv 2412.04139, section 3; BatchNorm as released).

A key is active if its normalised logit reaches min(row maximum, quantile). The normalised logit is monotone in the
logit, so the test compares raw logits with one scalar per head, and no normalised copy exists.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from monet.kernels import limits

# The quantity that the uniformity loss spreads over the keys of a head.
Spread = Literal["routing", "softmax", "firing"]


class BatchStatistics(NamedTuple):
    """Moments of logits per head in a mergeable form: `merge_statistics` combines two sets exactly."""

    count: Tensor  # () number of logits
    mean_H: Tensor  # (H,)
    m2_H: Tensor  # (H,) sum of squared deviations from the mean


class RoutingSums(NamedTuple):
    """Routing probabilities, with the means over tokens from which losses and metrics are computed.

    g_TP: probabilities, P = H*E.
    mean_HE: mean probability of each key.
    mean_max_H: mean over tokens of each head's largest probability.
    fired_HE: int64, number of tokens at which each key was active.
    share_HE: mean of what "softmax" or "firing" spreads, not normalised; None for "routing".
    """

    g_TP: Tensor
    mean_HE: Tensor
    mean_max_H: Tensor
    fired_HE: Tensor
    share_HE: Tensor | None


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def normal_quantile(topk: int, num_keys: int) -> float:
    """Standard normal quantile that about `topk` of `num_keys` normal logits exceed; -inf if all keys are kept."""
    return -math.inf if topk >= num_keys else NormalDist().inv_cdf(1 - topk / num_keys)


def raw_threshold(mean_H: Tensor, var_H: Tensor, quantile: float, eps: float) -> Tensor:
    """Threshold on raw logits, (H,) float64: mean + quantile * sqrt(var + eps)."""
    return mean_H.double() + quantile * (var_H.double() + eps).sqrt()


def batch_statistics(z_BTHE: Tensor, token_mask_BT: Tensor | None = None) -> BatchStatistics:
    """Per-head moments over all logits of the unmasked tokens, accumulated without cancellation.

    Args:
        z_BTHE: router logits, any floating dtype.
        token_mask_BT: bool, True at tokens that count; if None, all tokens count.
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
    """Mean and variance of each row, float64. Deviations are taken from the row's mean, which avoids cancellation."""
    if z_NHE.is_cuda:
        row_var_NH, row_mean_NH = torch.var_mean(_at_least_float32(z_NHE), -1, correction=0)
        return row_mean_NH.double(), row_var_NH.double()
    # On the CPU torch does not vectorise var_mean over the last dimension; passes in the cache are 10 times faster.
    moments = [z_NHE.new_empty(2, 0, z_NHE.shape[1]).double()]
    for z_nHE in z_NHE.split(max(1, limits.LOGIT_ELEMENTS // (z_NHE.shape[1] * z_NHE.shape[2]))):
        z_nHE = _at_least_float32(z_nHE)
        mean_nH1 = z_nHE.mean(-1, keepdim=True)
        deviation_nHE = z_nHE - mean_nH1
        shift_nH = deviation_nHE.mean(-1).double()  # the rounding error of a mean far from zero
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
    """Softmax over the keys whose logit reaches the threshold; the row maximum is always included.

    Args:
        z_BTHE: router logits, any floating dtype.
        threshold_H: threshold on raw logits per head, see `raw_threshold`.
    Returns:
        g_BTHE, float32 (float64 for float64 logits): exactly 0 at inactive keys, rows sum to 1.
    """
    z_BTHE = _at_least_float32(z_BTHE)
    bound_BTH1 = torch.minimum(z_BTHE.amax(-1, keepdim=True), threshold_H.to(z_BTHE.dtype)[:, None])
    return z_BTHE.masked_fill(z_BTHE < bound_BTH1, -math.inf).softmax(-1)


def route_with_losses(
    z_TP: Tensor,
    threshold_H: Tensor,
    weight_T: Tensor | None = None,
    width_H: Tensor | None = None,
    spread: Spread = "routing",
    softmax: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> RoutingSums:
    """Thresholded softmax and its means over tokens; see `monet.kernels.routing.op.route_with_losses`.

    Args:
        softmax: computes g_TP from z_TP and threshold_H; None uses `thresholded_softmax`. It may overwrite the logits
            if `spread` is "routing".
    """
    T, H = z_TP.shape[0], threshold_H.numel()
    every_1T = torch.full((1, T), 1 / max(T, 1), device=z_TP.device) if weight_T is None else weight_T[None]
    share_HE = None
    if spread != "routing":
        z_THE = _at_least_float32(z_TP).unflatten(1, (H, -1))
        share_THE = z_THE.softmax(-1) if spread == "softmax" else _smooth_step(z_THE, threshold_H, width_H)
        share_HE = (every_1T.to(share_THE.dtype) @ share_THE.flatten(1)).view(H, -1)
    if softmax is None:
        g_TP = thresholded_softmax(z_TP.unflatten(1, (H, -1)), threshold_H).flatten(1)
    else:
        g_TP = softmax(z_TP, threshold_H)
    every_1T = every_1T.to(g_TP.dtype)
    g_THE = g_TP.unflatten(1, (H, -1))
    mean_HE = (every_1T @ g_TP).view(H, -1)
    mean_max_H = (every_1T @ g_THE.amax(-1))[0]
    fired_THE = g_THE.detach() > 0
    if weight_T is not None:
        fired_THE &= (weight_T > 0)[:, None, None]
    return RoutingSums(g_TP, mean_HE, mean_max_H, fired_THE.sum(0), share_HE)


def _smooth_step(z_THE: Tensor, threshold_H: Tensor, width_H: Tensor | None) -> Tensor:
    """Near 1 above the threshold and 0 below; unlike the routing, it gives every key a gradient."""
    assert width_H is not None, "the op refuses a step without a width"
    threshold_H1, width_H1 = (per_head.to(z_THE.dtype)[:, None] for per_head in (threshold_H, width_H))
    return torch.sigmoid((z_THE - threshold_H1) / width_H1)
