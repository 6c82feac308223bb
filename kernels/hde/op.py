"""Horizontal experts after their first linear: activation, mixing, output projection and output bias."""

from __future__ import annotations

from torch import Tensor

from monet.kernels.checks import check_routing, check_same_device, check_shape
from monet.kernels.dispatch import enter_torch, resolve, without_autocast
from monet.kernels.hde.reference import mix, mix_backward
from monet.kernels.masked import Keep, check_keep
from monet.kernels.mix_project import mix_project
from monet.kernels.mix_project_parts import Step, Term
from monet.kernels.mixing import Activation, torch_mixing
from monet.kernels.shared import SharedGates, facts_of


def horizontal_experts(
    p_TEM: Tensor,
    g1_THE: Tensor,
    g2_THE: Tensor,
    v_DP: Tensor,
    b_ED: Tensor,
    activation: Activation,
    keep: Keep | None = None,
    shared: SharedGates | None = None,
) -> Tensor:
    """out = sum_ij w[i, j] (V_j act(p_i) + b_j) with w[i, j] = keep[i, j] sum_h g1[h, i] g2[h, j].

    Args:
        p_TEM: pre-activations U_i x + u_i of T tokens (a whole batch, flattened); floating.
        g1_THE, g2_THE: routing probabilities, whose rows sum to one for each head; floating.
        v_DP: output weight as stored by nn.Linear, P = E*M with the expert as the slow index.
        b_ED: output bias for each second key.
        activation: elementwise function of the pre-activations.
        keep: mask, or None to keep all experts; kept weights are not renormalised. Under a mask the Triton kernels give
            inactive keys no gradient: the routing would multiply it by their probability, which is zero.
        shared: what the layers of the routing group know in common about g1 and g2; saves work and memory on a GPU.
    Returns:
        out_TD in the dtype of `p_TEM`. Backward keeps only the arguments, or the logits of the gates instead of the
        gates.
    Raises:
        ValueError: a shape, dtype or device does not match; the message names both.
    Source: arXiv 2412.04139, eq. 10-12.
    """
    _check(p_TEM, g1_THE, g2_THE, keep)
    _, E, M = p_TEM.shape
    check_shape("v_DP", v_DP, (None, E * M))
    check_shape("b_ED", b_ED, (E, v_DP.shape[0]))
    check_same_device("hidden units", p_TEM, v_DP=v_DP, b_ED=b_ED)
    columns = slice(0, v_DP.shape[0])
    terms = (Term(columns, out_in=True), Term(columns, out_in=False))
    step = Step("horizontal_mixing", resolve("horizontal_mixing", p_TEM), terms, activation, keep)
    return mix_project(step, (p_TEM, g1_THE, g2_THE), (v_DP, b_ED), shared)


def horizontal_mixing(
    p_TEM: Tensor,
    g1_THE: Tensor,
    g2_THE: Tensor,
    activation: Activation,
    keep: Keep | None = None,
    shared: SharedGates | None = None,
) -> tuple[Tensor, Tensor]:
    """The arrays that `horizontal_experts` multiplies by its output weights, for weights that only a module can apply.

    out = v(y_TEM flattened to (T, P)) + c_TE @ b_ED. Differentiable; autograd keeps the results.

    Args:
        p_TEM, g1_THE, g2_THE, activation, keep, shared: as in `horizontal_experts`.
    Returns:
        y_TEM and c_TE of `monet.kernels.hde.reference.mix`, in the dtype of `p_TEM`.
    Raises:
        ValueError: a shape, dtype or device does not match.
    """
    _check(p_TEM, g1_THE, g2_THE, keep)
    with without_autocast(p_TEM.device):
        mixing = resolve("horizontal_mixing", p_TEM)
        facts = facts_of(shared, g1_THE, g2_THE)
        y_TEM, c_TE = mixing.forward((p_TEM,), g1_THE, g2_THE, activation, keep, facts)
    return y_TEM, c_TE


def _check(p_TEM: Tensor, g1_THE: Tensor, g2_THE: Tensor, keep: Keep | None) -> None:
    check_routing(g1_THE, g2_THE, p_TEM)
    if keep is not None:
        check_keep(keep, p_TEM.shape[0], p_TEM.shape[1], p_TEM)


enter_torch("horizontal_mixing", torch_mixing(mix, mix_backward))
