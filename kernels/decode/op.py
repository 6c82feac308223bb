"""Expert layers that read only the weights of active keys, for inference.

On a GPU they run in Triton (`triton_op.py`). The ops below exist in plain torch for every device; `build.py` adds the
C++ kernels for float32 and bfloat16 on the CPU. No op has a gradient. The ops are registered with torch.library, so
torch.compile can use them unchanged.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from monet.kernels.checks import check_float, check_same_device, check_shape
from monet.kernels.decode import reference
from monet.kernels.decode.build import has_cpp
from monet.kernels.dispatch import enter_torch, resolve
from monet.kernels.masked import Keep, check_keep, token_chunks

_CPP_DTYPES = (torch.float32, torch.bfloat16)

_library = torch.library.Library("monet", "FRAGMENT")
_library.define("count_active(Tensor g) -> int")
_library.define("is_transposed(Tensor w, Tensor rows, int seed) -> bool")
_library.define("active_linear(Tensor x, Tensor g, Tensor w, Tensor bias) -> Tensor")
_library.define("active_mix(Tensor a, Tensor g1, Tensor g2, Tensor? keep, Tensor? index) -> (Tensor, Tensor)")
_library.define("active_sum(Tensor[] values, Tensor[] weights, int[] starts, SymInt width) -> Tensor")
for _op in (
    reference.count_active,
    reference.is_transposed,
    reference.active_linear,
    reference.active_mix,
    reference.active_sum,
):
    _library.impl(_op.__name__, _op, "CompositeExplicitAutograd")


@torch.library.register_fake("monet::active_linear", lib=_library)
def _(x: Tensor, g: Tensor, w: Tensor, bias: Tensor) -> Tensor:
    return w.new_empty(x.shape[0], g.shape[2], w.shape[0] // g.shape[2])


@torch.library.register_fake("monet::active_mix", lib=_library)
def _(a: Tensor, g1: Tensor, g2: Tensor, keep: Tensor | None, index: Tensor | None) -> tuple[Tensor, Tensor]:
    return a.new_empty(a.shape), a.new_empty(a.shape[:2])


@torch.library.register_fake("monet::active_sum", lib=_library)
def _(values: list[Tensor], weights: list[Tensor], starts: list[int], width: int) -> Tensor:
    return weights[0].new_empty(values[0].shape[0], width)


def active_horizontal(
    x_TD: Tensor,
    g1_THE: Tensor,
    g2_THE: Tensor,
    u_PD: Tensor,
    u_P: Tensor,
    v_PD: Tensor,
    b_ED: Tensor,
    activation: Callable[[Tensor], Tensor],
    keep: Keep | None = None,
) -> Tensor:
    """`horizontal_experts` computed from the states: sum_ij w[i, j] (V_j act(U_i x + u_i) + b_j) over active keys.

    Args:
        x_TD: states of T tokens, in the dtype of the weights.
        g1_THE, g2_THE: routing probabilities; weights of keys that are 0 in every head are not read.
        u_PD, u_P: first weight and bias, P = E*M with the expert as the slow index.
        v_DP: output weight transposed: a copy with contiguous rows, which is faster, or the view `v_DP.t()`.
        b_ED: output bias for each second key.
        activation: elementwise function of the pre-activations.
        keep: mask, or None to keep all experts; kept weights are not renormalised.
    Returns:
        out_TD in the dtype of the weights, without a gradient.
    Raises:
        ValueError: a shape, dtype or device does not match; the message names both.
    """
    E, M = _check(x_TD, g1_THE, g2_THE, u_PD, u_P, keep)
    check_shape("v_PD", v_PD, (E * M, None))
    check_shape("b_ED", b_ED, (E, v_PD.shape[1]))
    check_same_device("states", x_TD, v_PD=v_PD, b_ED=b_ED)
    layer = _Layer((u_PD, u_P), (v_PD,), (b_ED,), activation)
    return _in_chunks(layer, x_TD, g1_THE, g2_THE, keep, E * M)


def active_vertical(
    x_TD: Tensor,
    g1_THE: Tensor,
    g2_THE: Tensor,
    first: tuple[Tensor, Tensor, Tensor, Tensor],
    projections: tuple[Tensor, Tensor, Tensor, Tensor],
    biases: tuple[Tensor, Tensor],
    activation: Callable[[Tensor], Tensor],
    keep: Keep | None = None,
) -> Tensor:
    """`vertical_experts` computed from the states, over active keys.

    Args:
        x_TD, g1_THE, g2_THE, activation, keep: see `active_horizontal`.
        first: weights and biases of the first linears: u1 (E*M, D), its bias (E*M,), u2 and its bias.
        projections: v11, v12, v21, v22 transposed, (E*M, D/2), as copies or views.
        biases: b1, b2, (E, D/2).
    Returns:
        out_TD, left half then right half, in the dtype of the weights, without a gradient.
    Raises:
        ValueError: a shape, dtype or device does not match; the message names both.
    """
    u1_PD, u1_P, u2_PD, u2_P = first
    E, M = _check(x_TD, g1_THE, g2_THE, u1_PD, u1_P, keep)
    check_shape("u2", u2_PD, tuple(u1_PD.shape))
    check_shape("bias of u2", u2_P, (E * M,))
    half = projections[0].shape[1]
    for name, weight in zip(("v11", "v12", "v21", "v22"), projections, strict=True):
        check_shape(name, weight, (E * M, half))
        check_same_device("states", x_TD, **{name: weight})
    for name, bias in zip(("b1", "b2"), biases, strict=True):
        check_shape(name, bias, (E, half))
        check_same_device("states", x_TD, **{name: bias})
    layer = _Layer(first, projections, biases, activation)
    return _in_chunks(layer, x_TD, g1_THE, g2_THE, keep, 2 * E * M)


def count_active(g_THE: Tensor) -> int:
    """Number of (token, key) pairs of one side for which any head is active."""
    return ops_for().count_active(g_THE)


def is_transposed(w_DP: Tensor, rows_PD: Tensor, seed: int) -> bool:
    """Whether `rows_PD` is still the transpose of `w_DP` at a few hundred entries that `seed` picks."""
    return ops_for(w_DP).is_transposed(w_DP, rows_PD, seed)


def _check(
    x_TD: Tensor, g1_THE: Tensor, g2_THE: Tensor, u_PD: Tensor, u_P: Tensor, keep: Keep | None
) -> tuple[int, int]:
    check_float("x_TD", x_TD)
    check_shape("x_TD", x_TD, (None, None))
    T, D = x_TD.shape
    check_shape("g1_THE", g1_THE, (T, None, None))
    check_shape("g2_THE", g2_THE, tuple(g1_THE.shape))
    E = g1_THE.shape[2]
    if u_PD.dim() != 2 or u_PD.shape[1] != D or u_PD.shape[0] % E:
        raise ValueError(f"the first weight has shape {tuple(u_PD.shape)}; expected (a multiple of {E} keys, {D})")
    if x_TD.dtype != u_PD.dtype:
        raise ValueError(f"states are {x_TD.dtype}, but the first weight is {u_PD.dtype}; cast one to match the other")
    check_shape("the first bias", u_P, (u_PD.shape[0],))
    check_same_device("states", x_TD, g1_THE=g1_THE, g2_THE=g2_THE, u_PD=u_PD, u_P=u_P)
    if keep is not None:
        check_keep(keep, T, E, x_TD)
    return E, u_PD.shape[0] // E


class _Layer(NamedTuple):
    """Weights and biases of the first linears (alternating), transposed output weights, output biases, activation."""

    first: tuple[Tensor, ...]
    projections: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]
    activation: Callable[[Tensor], Tensor]


def _in_chunks(
    layer: _Layer, x_TD: Tensor, g1_THE: Tensor, g2_THE: Tensor, keep: Keep | None, hidden_per_token: int
) -> Tensor:
    """Compute a layer a few tokens at a time, to limit the memory for hidden units."""
    run = resolve("active_experts", x_TD)
    chunks = [slice(None)] if torch.compiler.is_compiling() else token_chunks(x_TD.shape[0], hidden_per_token)
    if len(chunks) == 1:
        return run(x_TD, g1_THE, g2_THE, *layer, keep)
    parts = [run(x_TD[rows], g1_THE[rows], g2_THE[rows], *layer, keep and keep.at(rows)) for rows in chunks]
    return torch.cat(parts)


def _torch_experts(
    x_TD: Tensor,
    g1_THE: Tensor,
    g2_THE: Tensor,
    first: tuple[Tensor, ...],
    projections: tuple[Tensor, ...],
    biases: tuple[Tensor, ...],
    activation: Callable[[Tensor], Tensor],
    keep: Keep | None,
) -> Tensor:
    """A layer built from the ops of this module; it is vertical if there are two first linears."""
    ops = ops_for(*first, *projections, *biases)
    a1_TEM = activation(ops.active_linear(x_TD, g1_THE, *first[:2]))
    y21_TEM, c_TE = _mix(ops, a1_TEM, g1_THE, g2_THE, keep)
    c_TE1 = c_TE[..., None]
    if len(biases) == 1:
        return ops.active_sum([y21_TEM, c_TE1], [*projections, *biases], [0, 0], biases[0].shape[1])
    a2_TEM = activation(ops.active_linear(x_TD, g2_THE, *first[2:]))
    turned = keep and Keep(keep.weights_SEE.transpose(1, 2), keep.index_T)
    y12_TEM, r_TE = _mix(ops, a2_TEM, g2_THE, g1_THE, turned)
    r_TE1 = r_TE[..., None]
    values = [a1_TEM * r_TE1, y12_TEM, r_TE1, y21_TEM, a2_TEM * c_TE1, c_TE1]
    (v11, v12, v21, v22), (b1, b2), half = projections, biases, biases[0].shape[1]
    return ops.active_sum(values, [v11, v12, b1, v21, v22, b2], [0, 0, 0, half, half, half], 2 * half)


enter_torch("active_experts", _torch_experts)


def ops_for(*weights: Tensor) -> Any:
    """The registered ops: C++ where it exists and supports these weights, else plain torch."""
    if any(weight.is_cpu and weight.dtype not in _CPP_DTYPES for weight in weights):
        return reference
    if not torch.compiler.is_compiling():
        has_cpp()
    return torch.ops.monet


def _mix(ops: Any, a_TEM: Tensor, g1_THE: Tensor, g2_THE: Tensor, keep: Keep | None) -> tuple[Tensor, Tensor]:
    weights_SEE, index_T = keep or (None, None)
    return ops.active_mix(a_TEM, g1_THE, g2_THE, weights_SEE, index_T)
