"""Vertical decomposition in plain torch: expert (i, j) has hidden halves a1_i and a2_j and output halves of i and j.

Source: arXiv 2412.04139, eq. 13-29.
"""

from __future__ import annotations

import torch
from torch import Tensor

from monet.kernels.masked import Keep, iterate_pairs, place, take


def mix(
    a1_TEM: Tensor, a2_TEM: Tensor, g1_THE: Tensor, g2_THE: Tensor, keep: Keep | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Mix the two hidden halves with w[i, j] = keep[i, j] sum_h g1[h, i] g2[h, j].

    Without a mask r[i] = sum_h g1[h, i] and c[j] = sum_h g2[h, j], since routing rows sum to one.

    Args:
        a1_TEM, a2_TEM: hidden halves after the activation, indices i and j; here M is half of an expert's width.
        g1_THE, g2_THE: routing probabilities in the dtype of the hidden halves; T tokens of the whole batch.
        keep: mask, or None; kept weights are not renormalised.
    Returns:
        The mixed halves y11_TEM = a1[i] r[i], y12_TEM = sum_j w[i, j] a2[j], y21_TEM = sum_i w[i, j] a1[i] and
        y22_TEM = a2[j] c[j].
        The weights of the two output biases, r_TE = sum_j w[i, j] and c_TE = sum_i w[i, j].
    """
    if keep is None:
        y12_TEM = torch.bmm(g1_THE.transpose(1, 2), torch.bmm(g2_THE, a2_TEM))
        y21_TEM = torch.bmm(g2_THE.transpose(1, 2), torch.bmm(g1_THE, a1_TEM))
        r_TE, c_TE = g1_THE.sum(1), g2_THE.sum(1)
    else:
        y12_TEM, y21_TEM, r_TE, c_TE = _masked_sums(a1_TEM, a2_TEM, g1_THE, g2_THE, keep)
    return a1_TEM * r_TE[..., None], y12_TEM, y21_TEM, a2_TEM * c_TE[..., None], r_TE, c_TE


def mix_backward(
    a1_TEM: Tensor,
    a2_TEM: Tensor,
    g1_THE: Tensor,
    g2_THE: Tensor,
    d11_TEM: Tensor,
    d12_TEM: Tensor,
    d21_TEM: Tensor,
    d22_TEM: Tensor,
    dr_TE: Tensor,
    dc_TE: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of a1_TEM, a2_TEM, g1_THE and g2_THE, given the gradients of the results of `mix` without a mask."""
    da1_TEM, dg1_THE = _axis_backward(
        a1_TEM, g1_THE, g2_THE, torch.bmm(g2_THE, a2_TEM), d11_TEM, d12_TEM, d21_TEM, dr_TE
    )
    da2_TEM, dg2_THE = _axis_backward(
        a2_TEM, g2_THE, g1_THE, torch.bmm(g1_THE, a1_TEM), d22_TEM, d21_TEM, d12_TEM, dc_TE
    )
    return da1_TEM, da2_TEM, dg1_THE, dg2_THE


def _axis_backward(
    a_TEM: Tensor,
    g_THE: Tensor,
    other_g_THE: Tensor,
    other_s_THM: Tensor,
    down_TEM: Tensor,
    dreceived_TEM: Tensor,
    dsent_TEM: Tensor,
    dsum_TE: Tensor,
) -> tuple[Tensor, Tensor]:
    """One axis: its hidden half stays (a times the summed g) and is sent to the other axis, whose half it receives."""
    ds_THM = torch.bmm(other_g_THE, dsent_TEM)
    dsum_TE = dsum_TE + torch.linalg.vecdot(down_TEM, a_TEM)
    dg_THE = torch.baddbmm(dsum_TE[:, None], ds_THM, a_TEM.transpose(1, 2))
    dg_THE.baddbmm_(other_s_THM, dreceived_TEM.transpose(1, 2))
    da_TEM = torch.baddbmm(down_TEM * g_THE.sum(1)[..., None], g_THE.transpose(1, 2), ds_THM)
    return da_TEM, dg_THE


def _masked_sums(
    a1_TEM: Tensor, a2_TEM: Tensor, g1_THE: Tensor, g2_THE: Tensor, keep: Keep
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    E = a1_TEM.shape[1]
    y12s, y21s = [torch.zeros_like(a1_TEM[:0])], [torch.zeros_like(a2_TEM[:0])]
    rs, cs = [torch.zeros_like(a1_TEM[:0, :, 0])], [torch.zeros_like(a2_TEM[:0, :, 0])]
    for rows, w_tUU, idx1_tU, idx2_tU in iterate_pairs(g1_THE, g2_THE, keep):
        y12s.append(place(torch.bmm(w_tUU, take(a2_TEM[rows], idx2_tU)), idx1_tU, E))
        y21s.append(place(torch.bmm(w_tUU.transpose(1, 2), take(a1_TEM[rows], idx1_tU)), idx2_tU, E))
        rs.append(place(w_tUU.sum(2)[..., None], idx1_tU, E)[..., 0])
        cs.append(place(w_tUU.sum(1)[..., None], idx2_tU, E)[..., 0])
    return torch.cat(y12s), torch.cat(y21s), torch.cat(rs), torch.cat(cs)
