"""Expert layers over active keys in plain torch: only gathered rows are copied.

Supports any floating dtype and any device. `decode.cpp` does the same on the CPU without the copies.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def count_active(g_THE: Tensor) -> int:
    """Number of (token, key) pairs for which any head is active."""
    return int((g_THE != 0).any(1).sum())


def is_transposed(w_DP: Tensor, rows_PD: Tensor, seed: int) -> bool:
    """Whether `rows_PD` is the transpose of `w_DP` at entries picked by `seed`, spread over all the columns."""
    D, P = w_DP.shape
    p = (torch.linspace(0, P - 1, min(P, 512)).long() + seed) % P
    d = (p * 40503 + seed * 2654435761) % D
    p, d = p.to(w_DP.device), d.to(w_DP.device)
    return bool(torch.equal(w_DP[d, p], rows_PD[p, d]))


def active_linear(x_TD: Tensor, g_THE: Tensor, w_PD: Tensor, bias_P: Tensor) -> Tensor:
    """Pre-activations of the keys that are active in `g_THE`; zero for all others.

    Args:
        x_TD: states of T tokens.
        g_THE: routing probabilities of the side that indexes the weight.
        w_PD, bias_P: first linear, P = E*M with the key as the slow index.
    Returns:
        p_TEM in the dtype of the weight.
    """
    T, _, E = g_THE.shape
    active_TE = (g_THE != 0).any(1)
    keys = active_TE.any(0).nonzero()[:, 0]
    w_UMD = w_PD.unflatten(0, (E, -1)).index_select(0, keys)
    p_TUM = (x_TD.to(w_PD.dtype) @ w_UMD.flatten(0, 1).t()).unflatten(1, w_UMD.shape[:2])
    p_TUM = p_TUM + bias_P.unflatten(0, (E, -1)).index_select(0, keys)
    p_TUM = p_TUM.masked_fill(~active_TE.index_select(1, keys)[..., None], 0)
    return w_PD.new_zeros(T, E, p_TUM.shape[2]).index_copy(1, keys, p_TUM)


def active_mix(
    a_TEM: Tensor, g1_THE: Tensor, g2_THE: Tensor, keep_SEE: Tensor | None = None, index_T: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """y[j] = sum_i w[i, j] a[i] and c[j] = sum_i w[i, j] with w[i, j] = keep[i, j] sum_h g1[h, i] g2[h, j].

    Args:
        a_TEM: hidden units after the activation, index i.
        g1_THE, g2_THE: routing probabilities.
        keep_SEE: masks, bool or floating; None gives c[j] = sum_h g2[h, j], since each g1 row sums to one.
        index_T: int64, the mask of each token, -1 for no mask; None gives all tokens mask 0.
    Returns:
        y_TEM and c_TE, zero at inactive keys, in the dtype of `a_TEM`.
    """
    E, dtype = a_TEM.shape[1], a_TEM.dtype
    keys1, keys2 = ((g_THE != 0).any(0).any(0).nonzero()[:, 0] for g_THE in (g1_THE, g2_THE))
    g1_THU, g2_THU = g1_THE.to(dtype).index_select(2, keys1), g2_THE.to(dtype).index_select(2, keys2)
    a_TUM = a_TEM.index_select(1, keys1)
    y_TUM, c_TU = torch.bmm(g2_THU.transpose(1, 2), torch.bmm(g1_THU, a_TUM)), g2_THU.sum(1)
    if keep_SEE is not None:
        keep_SUU = keep_SEE.index_select(1, keys1).index_select(2, keys2).to(dtype)
        w_TUU = torch.bmm(g1_THU.transpose(1, 2), g2_THU) * (keep_SUU if index_T is None else keep_SUU[index_T])
        masked = torch.bmm(w_TUU.transpose(1, 2), a_TUM), w_TUU.sum(1)
        exempt_T = torch.zeros(len(c_TU), dtype=torch.bool, device=c_TU.device) if index_T is None else index_T < 0
        y_TUM, c_TU = (
            torch.where(exempt_T.view(-1, *[1] * (new.dim() - 1)), plain, new)
            for plain, new in zip((y_TUM, c_TU), masked, strict=True)
        )
    empty_TEM, empty_TE = torch.zeros_like(a_TEM), a_TEM.new_zeros(a_TEM.shape[0], E)
    return empty_TEM.index_copy(1, keys2, y_TUM), empty_TE.index_copy(1, keys2, c_TU)


def active_sum(values_TEM: Sequence[Tensor], weights_PD: Sequence[Tensor], starts: Sequence[int], width: int) -> Tensor:
    """Sum of the products `value.flatten(1) @ weight`; reads only the rows whose values are not all zero.

    Args:
        values_TEM: arrays (T, E, M).
        weights_PD: one weight (E*M, D) for each array.
        starts: the first output column of each product.
        width: number of output columns.
    Returns:
        out_TD in the dtype of the weights.
    """
    out_TD = weights_PD[0].new_zeros(values_TEM[0].shape[0], width)
    for value_TEM, w_PD, start in zip(values_TEM, weights_PD, starts, strict=True):
        value_TP = value_TEM.flatten(1).to(w_PD.dtype)
        rows = (value_TP != 0).any(0).nonzero()[:, 0]
        product_TD = value_TP.index_select(1, rows) @ w_PD.index_select(0, rows)
        out_TD[:, start : start + w_PD.shape[1]] += product_TD
    return out_TD
