"""Weights of expert pairs under a mask, without a tensor of all T * E * E pairs.

The unmasked mixings drop factors because each routing row sums to one. Under a mask that sum is not one, so here every
use of a pair (output biases too) has the explicit weight w[i, j] = keep[i, j] * sum_h g1[h, i] * g2[h, j]. Without
gradients only active keys are paired. With gradients all keys are paired, a few tokens at a time, so that the
derivative at inactive keys is exact as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from monet.kernels import limits
from monet.kernels.checks import check_same_device, check_shape


class Keep(NamedTuple):
    """Keep-weights of one routing group.

    weights_SEE: bool or floating in [0, 1]; S masks, 1 keeps expert (i, j), 0 removes it.
    index_T: int64, the mask of each token, -1 for no mask; None gives all tokens mask 0.
    """

    weights_SEE: Tensor
    index_T: Tensor | None = None

    def at(self, rows: slice) -> Keep:
        """The same masks, for a slice of the tokens."""
        return self if self.index_T is None else Keep(self.weights_SEE, self.index_T[rows])


class Pairs(NamedTuple):
    """Weights of a chunk of t tokens over U1 first and U2 second keys; `idx` is None if U is all of E."""

    rows: slice
    w_tUU: Tensor
    idx1_tU: Tensor | None
    idx2_tU: Tensor | None


def check_keep(keep: Keep, T: int, E: int, hidden: Tensor) -> None:
    """Raise ValueError unless the mask matches T tokens and E keys a side."""
    check_shape("keep.weights_SEE", keep.weights_SEE, (None, E, E))
    check_same_device("hidden units", hidden, keep=keep.weights_SEE)
    if keep.index_T is not None:
        check_shape("keep.index_T", keep.index_T, (T,))
        check_same_device("hidden units", hidden, index_T=keep.index_T)
    elif keep.weights_SEE.shape[0] != 1:
        S = keep.weights_SEE.shape[0]
        raise ValueError(f"keep.weights_SEE holds {S} masks; set keep.index_T to the number of each token's mask")


def _is_active(g_THE: Tensor) -> Tensor:
    return (g_THE != 0).any(1)


def _active(g_THE: Tensor, num_active: int) -> Tensor:
    return _is_active(g_THE).to(torch.uint8).topk(num_active, sorted=False).indices


def _gather(g_tHE: Tensor, idx_tU: Tensor) -> Tensor:
    return g_tHE.gather(2, idx_tU[:, None, :].expand(-1, g_tHE.shape[1], -1))


def iterate_pairs(g1_THE: Tensor, g2_THE: Tensor, keep: Keep) -> Iterator[Pairs]:
    """Yield the kept pair weights for successive chunks of tokens.

    Args:
        g1_THE, g2_THE: routing probabilities in the dtype to compute in.
        keep: the mask; its weights are cast to that dtype.
    """
    T, _, E = g1_THE.shape
    if T == 0:
        return
    exact_at_zeros = torch.is_grad_enabled() and (g1_THE.requires_grad or g2_THE.requires_grad)
    U1 = E if exact_at_zeros else int(_is_active(g1_THE).sum(-1).max())
    U2 = E if exact_at_zeros else int(_is_active(g2_THE).sum(-1).max())
    for rows in token_chunks(T, U1 * U2):
        g1_tHE, g2_tHE = g1_THE[rows], g2_THE[rows]
        idx1_tU = _active(g1_tHE, U1) if U1 < E else None
        idx2_tU = _active(g2_tHE, U2) if U2 < E else None
        v1_tHU = g1_tHE if idx1_tU is None else _gather(g1_tHE, idx1_tU)
        v2_tHU = g2_tHE if idx2_tU is None else _gather(g2_tHE, idx2_tU)
        w_tUU = torch.bmm(v1_tHU.transpose(1, 2), v2_tHU)
        yield Pairs(rows, w_tUU * _keep_weights(keep.at(rows), idx1_tU, idx2_tU).to(w_tUU.dtype), idx1_tU, idx2_tU)


def token_chunks(T: int, elements_per_token: int, elements: int | None = None) -> list[slice]:
    """Slices of the tokens; a tensor with `elements_per_token` for each token of a slice has at most `elements`.

    None stands for `limits.PAIR_ELEMENTS`.
    """
    elements = limits.PAIR_ELEMENTS if elements is None else elements
    step = max(1, elements // max(1, elements_per_token))
    return [slice(start, min(start + step, T)) for start in range(0, max(T, 1), step)]


def _keep_weights(keep: Keep, idx1_tU: Tensor | None, idx2_tU: Tensor | None) -> Tensor:
    if idx1_tU is None and idx2_tU is None:
        return keep.weights_SEE if keep.index_T is None else keep.weights_SEE[keep.index_T]
    every_E = torch.arange(keep.weights_SEE.shape[-1], device=keep.weights_SEE.device)
    idx1 = every_E[None, :, None] if idx1_tU is None else idx1_tU[:, :, None]
    idx2 = every_E[None, None, :] if idx2_tU is None else idx2_tU[:, None, :]
    mask_t11 = 0 if keep.index_T is None else keep.index_T[:, None, None]
    return keep.weights_SEE[mask_t11, idx1, idx2]


def take(hidden_tEM: Tensor, idx_tU: Tensor | None) -> Tensor:
    """Rows of the hidden units at the active keys, (t, U, M)."""
    return (
        hidden_tEM if idx_tU is None else hidden_tEM.gather(1, idx_tU[:, :, None].expand(-1, -1, hidden_tEM.shape[2]))
    )


def place(values_tUX: Tensor, idx_tU: Tensor | None, E: int) -> Tensor:
    """Inverse of `take`: values at the active keys, zero elsewhere, (t, E, X)."""
    if idx_tU is None:
        return values_tUX
    t, _, X = values_tUX.shape
    return values_tUX.new_zeros(t, E, X).scatter(1, idx_tU[:, :, None].expand(-1, -1, X), values_tUX)
