"""Vertical experts after their first linears: activation, mixing, output projections and output biases."""

from __future__ import annotations

from torch import Tensor

from monet.kernels.checks import check_routing, check_same_device, check_shape
from monet.kernels.dispatch import enter_torch, resolve, without_autocast
from monet.kernels.masked import Keep, check_keep
from monet.kernels.mix_project import mix_project
from monet.kernels.mix_project_parts import Step, Term
from monet.kernels.mixing import Activation, torch_mixing
from monet.kernels.shared import SharedGates, facts_of
from monet.kernels.vde.reference import mix, mix_backward


def vertical_experts(
    p1_TEM: Tensor,
    p2_TEM: Tensor,
    g1_THE: Tensor,
    g2_THE: Tensor,
    projections: tuple[Tensor, Tensor, Tensor, Tensor],
    biases: tuple[Tensor, Tensor],
    activation: Activation,
    keep: Keep | None = None,
    shared: SharedGates | None = None,
) -> Tensor:
    """Output of all experts (i, j), weighted by w[i, j] = keep[i, j] sum_h g1[h, i] g2[h, j].

    left  = sum_i V11_i a1[i] r[i] + sum_i V12_i (sum_j w[i, j] a2[j]) + sum_i b1_i r[i],  r[i] = sum_j w[i, j].
    right = sum_j V21_j (sum_i w[i, j] a1[i]) + sum_j V22_j a2[j] c[j] + sum_j b2_j c[j],  c[j] = sum_i w[i, j].

    Args:
        p1_TEM, p2_TEM: pre-activations of the hidden halves (indices i and j) of T tokens (a whole batch, flattened);
            here M is half of an expert's width; floating.
        g1_THE, g2_THE: routing probabilities, whose rows sum to one for each head; floating.
        projections: v11, v12, v21, v22 as stored by nn.Linear, (D/2, E*M) with the expert as the slow index.
        biases: b1, b2, (E, D/2), for the left half (index i) and the right half (index j).
        activation: elementwise function of the pre-activations.
        keep: mask, or None to keep all experts; kept weights are not renormalised. Under a mask the Triton kernels give
            inactive keys no gradient: the routing would multiply it by their probability, which is zero.
        shared: what the layers of the routing group know in common about g1 and g2; saves work and memory on a GPU.
    Returns:
        out_TD, left half then right half, in the dtype of `p1_TEM`. Backward keeps only the arguments, or the logits of
        the gates instead of the gates.
    Raises:
        ValueError: a shape, dtype or device does not match; the message names both.
    Source: arXiv 2412.04139, eq. 13-29.
    """
    _check(p1_TEM, p2_TEM, g1_THE, g2_THE, keep)
    _, E, M = p1_TEM.shape
    half = projections[0].shape[0]
    for name, weight in zip(("v11", "v12", "v21", "v22"), projections, strict=True):
        check_shape(name, weight, (half, E * M))
        check_same_device("hidden units", p1_TEM, **{name: weight})
    for name, bias in zip(("b1", "b2"), biases, strict=True):
        check_shape(name, bias, (E, half))
        check_same_device("hidden units", p1_TEM, **{name: bias})
    left, right = slice(0, half), slice(half, 2 * half)
    linears = tuple(Term(columns, out_in=True) for columns in (left, left, right, right))
    terms = (*linears, Term(left, out_in=False), Term(right, out_in=False))
    step = Step("vertical_mixing", resolve("vertical_mixing", p1_TEM), terms, activation, keep)
    return mix_project(step, (p1_TEM, p2_TEM, g1_THE, g2_THE), (*projections, *biases), shared)


def vertical_mixing(
    p1_TEM: Tensor,
    p2_TEM: Tensor,
    g1_THE: Tensor,
    g2_THE: Tensor,
    activation: Activation,
    keep: Keep | None = None,
    shared: SharedGates | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The arrays that `vertical_experts` multiplies by its output weights, for weights that only a module can apply.

    left = v11(y11) + v12(y12) + r @ b1 and right = v21(y21) + v22(y22) + c @ b2, with each y flattened to (T, P).
    Differentiable; autograd keeps the results.

    Args:
        p1_TEM, p2_TEM, g1_THE, g2_THE, activation, keep, shared: as in `vertical_experts`.
    Returns:
        y11_TEM, y12_TEM, y21_TEM, y22_TEM, r_TE and c_TE of `monet.kernels.vde.reference.mix`, in p1_TEM's dtype.
    Raises:
        ValueError: a shape, dtype or device does not match.
    """
    _check(p1_TEM, p2_TEM, g1_THE, g2_THE, keep)
    with without_autocast(p1_TEM.device):
        mixing = resolve("vertical_mixing", p1_TEM)
        y11_TEM, y12_TEM, y21_TEM, y22_TEM, r_TE, c_TE = mixing.forward(
            (p1_TEM, p2_TEM), g1_THE, g2_THE, activation, keep, facts_of(shared, g1_THE, g2_THE)
        )
    return y11_TEM, y12_TEM, y21_TEM, y22_TEM, r_TE, c_TE


def _check(p1_TEM: Tensor, p2_TEM: Tensor, g1_THE: Tensor, g2_THE: Tensor, keep: Keep | None) -> None:
    check_routing(g1_THE, g2_THE, p1_TEM)
    check_shape("p2_TEM", p2_TEM, tuple(p1_TEM.shape))
    if keep is not None:
        check_keep(keep, p1_TEM.shape[0], p1_TEM.shape[1], p1_TEM)


enter_torch("vertical_mixing", torch_mixing(mix, mix_backward))
