"""Horizontal decomposition in plain torch: expert (i, j) is x -> V_j act(U_i x + u_i) + b_j.

Source: arXiv 2412.04139, eq. 10-12.
"""

from __future__ import annotations

import torch
from torch import Tensor

from monet.kernels.masked import Keep, iterate_pairs, place, take


def mix(a_TEM: Tensor, g1_THE: Tensor, g2_THE: Tensor, keep: Keep | None = None) -> tuple[Tensor, Tensor]:
    """Contract hidden units over the first key and spread them over the second.

    y[j] = sum_i w[i, j] a[i] and c[j] = sum_i w[i, j] with w[i, j] = keep[i, j] sum_h g1[h, i] g2[h, j].
    Without a mask c[j] = sum_h g2[h, j], since each g1 row sums to one.

    Args:
        a_TEM: hidden units after the activation, index i; T tokens of the whole batch.
        g1_THE, g2_THE: routing probabilities in the dtype of `a_TEM`.
        keep: mask, or None; kept weights are not renormalised.
    Returns:
        y_TEM (index j) and c_TE, the weight for each second key's output bias.
    """
    if keep is None:
        return torch.bmm(g2_THE.transpose(1, 2), torch.bmm(g1_THE, a_TEM)), g2_THE.sum(1)
    E = a_TEM.shape[1]
    ys, cs = [torch.zeros_like(a_TEM[:0])], [torch.zeros_like(a_TEM[:0, :, 0])]
    for rows, w_tUU, idx1_tU, idx2_tU in iterate_pairs(g1_THE, g2_THE, keep):
        ys.append(place(torch.bmm(w_tUU.transpose(1, 2), take(a_TEM[rows], idx1_tU)), idx2_tU, E))
        cs.append(place(w_tUU.sum(1)[..., None], idx2_tU, E)[..., 0])
    return torch.cat(ys), torch.cat(cs)


def mix_backward(
    a_TEM: Tensor, g1_THE: Tensor, g2_THE: Tensor, dy_TEM: Tensor, dc_TE: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of a_TEM, g1_THE and g2_THE, given the gradients of the results of `mix` without a mask."""
    s_THM, ds_THM = torch.bmm(g1_THE, a_TEM), torch.bmm(g2_THE, dy_TEM)
    dg1_THE = torch.bmm(ds_THM, a_TEM.transpose(1, 2))
    dg2_THE = torch.baddbmm(dc_TE[:, None], s_THM, dy_TEM.transpose(1, 2))
    return torch.bmm(g1_THE.transpose(1, 2), ds_THM), dg1_THE, dg2_THE
