"""The interface of a mixing, and its implementation in plain torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from monet.kernels import limits
from monet.kernels.masked import Keep, token_chunks
from monet.kernels.shared import UNKNOWN, Facts

Activation = Callable[[Tensor], Tensor]


class Mixing(NamedTuple):
    """Activation and mixing of one decomposition, forward and backward.

    forward(hidden, g1_THE, g2_THE, activation, keep, facts) -> mixed: takes pre-activations, each (T, E, M), and float
        routing probabilities; returns arrays (T, E, M) and (T, E) in the dtype of the pre-activations. Differentiable.
    backward(hidden, g1_THE, g2_THE, activation, keep, dmixed, dinputs, facts): writes the gradients of the
        pre-activations, g1 and g2 into `dinputs`, which has their shapes and dtypes.

    `facts` is what is known about g1 and g2; it saves work and may be omitted.
    """

    forward: Callable[..., tuple[Tensor, ...]]
    backward: Callable[..., None]


def torch_mixing(mix: Callable[..., tuple[Tensor, ...]], mix_backward: Callable[..., tuple[Tensor, ...]]) -> Mixing:
    """The mixing built from a decomposition's formulas.

    Args:
        mix: (*activated, g1_THE, g2_THE, keep) -> mixed, all in one dtype.
        mix_backward: (*activated, g1_THE, g2_THE, *dmixed) -> gradients of mix's inputs when no expert is masked.
    """

    def forward(
        hidden: tuple[Tensor, ...],
        g1_THE: Tensor,
        g2_THE: Tensor,
        activation: Activation,
        keep: Keep | None,
        facts: Facts = UNKNOWN,
    ) -> tuple[Tensor, ...]:
        dtype = hidden[0].dtype
        return _mix(mix, [activation(h) for h in hidden], g1_THE.to(dtype), g2_THE.to(dtype), keep)

    def backward(
        hidden: tuple[Tensor, ...],
        g1_THE: Tensor,
        g2_THE: Tensor,
        activation: Activation,
        keep: Keep | None,
        dmixed: list[Tensor],
        dinputs: list[Tensor],
        facts: Facts = UNKNOWN,
    ) -> None:
        T, E, M = hidden[0].shape
        dtype = hidden[0].dtype
        chunks = [slice(0, T)]
        if keep is not None:
            chunks = token_chunks(T, E * E)
        elif not hidden[0].is_cuda:
            chunks = token_chunks(T, E * M, limits.CACHE_ELEMENTS)
        for rows in chunks:
            leaves = [h[rows].detach().requires_grad_() for h in hidden]
            gates = [g_THE[rows].detach().to(dtype) for g_THE in (g1_THE, g2_THE)]
            upstream = [d[rows] for d in dmixed]
            with torch.enable_grad():
                activated = [activation(leaf) for leaf in leaves]
            if keep is None:
                *dactivated, dg1, dg2 = mix_backward(*(a.detach() for a in activated), *gates, *upstream)
                parts = (*torch.autograd.grad(activated, leaves, dactivated), dg1, dg2)
            else:
                g1_tHE, g2_tHE = (gate.requires_grad_() for gate in gates)
                with torch.enable_grad():
                    mixed = _mix(mix, activated, g1_tHE, g2_tHE, keep.at(rows))
                parts = torch.autograd.grad(mixed, [*leaves, *gates], upstream)
            for whole, part in zip(dinputs, parts, strict=True):
                whole[rows] = part

    return Mixing(forward, backward)


def _mix(
    mix: Callable[..., tuple[Tensor, ...]], activated: list[Tensor], g1_THE: Tensor, g2_THE: Tensor, keep: Keep | None
) -> tuple[Tensor, ...]:
    """Mix under a mask; the tokens that it exempts get results bitwise identical to an unmasked run."""
    if keep is None or keep.index_T is None or bool((keep.index_T >= 0).all()):
        return mix(*activated, g1_THE, g2_THE, keep)
    plain = mix(*activated, g1_THE, g2_THE, None)
    rows = (keep.index_T >= 0).nonzero()[:, 0]
    if rows.numel() == 0:
        return plain
    keep = Keep(keep.weights_SEE, keep.index_T[rows])
    masked = mix(*(a[rows] for a in activated), g1_THE[rows], g2_THE[rows], keep)
    return tuple(x.index_copy(0, rows, y) for x, y in zip(plain, masked, strict=True))
