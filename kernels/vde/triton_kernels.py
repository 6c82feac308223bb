"""Vertical mixing on a GPU: one program per token, all heads together.

Each half stays (times its key's summed probability) and is sent to the other axis through s1_HM = sum_i g1[h, i] a1[i]
and s2_HM = sum_j g2[h, j] a2[j]. A program passes over the keys twice: once for the sums, once for the results. With M
hidden units a half it moves b * (6 E M + 2 H E + 2 E) bytes forward. Products use the dtype of the pre-activations and
accumulate in float32. Masked forms visit only pairs of active keys.
"""

from __future__ import annotations

import triton
import triton.language as tl

from monet.kernels.triton_parts import activate, slope


@triton.jit
def mix_kernel(
    p1_ptr, p2_ptr, g1_ptr, g2_ptr, mask_ptr, y11_ptr, y12_ptr, y21_ptr, y22_ptr, r_ptr, c_ptr,
    E: tl.constexpr, M: tl.constexpr, H: tl.constexpr,
    BLOCK_E: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_H: tl.constexpr,
    ACT: tl.constexpr, DOT: tl.constexpr, EXEMPT: tl.constexpr,
):  # fmt: skip
    """Reads p1_TEM, p2_TEM, g1_THE, g2_THE; writes the four mixed halves (T, E, M) and r_TE, c_TE."""
    t = tl.program_id(0).to(tl.int64)
    if EXEMPT:  # noqa: SIM102
        if tl.load(mask_ptr + t) >= 0:
            return
    h, m = tl.arange(0, BLOCK_H), tl.arange(0, BLOCK_M)
    in_h, in_m = h < H, m < M
    s1_HM = tl.zeros((BLOCK_H, BLOCK_M), tl.float32)
    s2_HM = tl.zeros((BLOCK_H, BLOCK_M), tl.float32)
    for start in range(0, E, BLOCK_E):
        e = start + tl.arange(0, BLOCK_E)
        at_em, at_he = (e < E)[:, None] & in_m[None, :], in_h[:, None] & (e < E)[None, :]
        em, he = t * E * M + e[:, None] * M + m[None, :], t * H * E + h[:, None] * E + e[None, :]
        a1 = activate(tl.load(p1_ptr + em, mask=at_em, other=0.0), ACT).to(DOT)
        a2 = activate(tl.load(p2_ptr + em, mask=at_em, other=0.0), ACT).to(DOT)
        s1_HM = tl.dot(tl.load(g1_ptr + he, mask=at_he, other=0.0).to(DOT), a1, s1_HM, input_precision="ieee")
        s2_HM = tl.dot(tl.load(g2_ptr + he, mask=at_he, other=0.0).to(DOT), a2, s2_HM, input_precision="ieee")
    s1_HM, s2_HM = s1_HM.to(DOT), s2_HM.to(DOT)
    for start in range(0, E, BLOCK_E):
        e = start + tl.arange(0, BLOCK_E)
        at_em, at_he = (e < E)[:, None] & in_m[None, :], in_h[:, None] & (e < E)[None, :]
        em, he = t * E * M + e[:, None] * M + m[None, :], t * H * E + h[:, None] * E + e[None, :]
        g1 = tl.load(g1_ptr + he, mask=at_he, other=0.0)
        g2 = tl.load(g2_ptr + he, mask=at_he, other=0.0)
        r, c = tl.sum(g1.to(tl.float32), 0), tl.sum(g2.to(tl.float32), 0)
        a1 = activate(tl.load(p1_ptr + em, mask=at_em, other=0.0), ACT)
        a2 = activate(tl.load(p2_ptr + em, mask=at_em, other=0.0), ACT)
        y12 = tl.dot(tl.trans(g1).to(DOT), s2_HM, input_precision="ieee")
        y21 = tl.dot(tl.trans(g2).to(DOT), s1_HM, input_precision="ieee")
        tl.store(y11_ptr + em, (a1 * r[:, None]).to(y11_ptr.dtype.element_ty), mask=at_em)
        tl.store(y12_ptr + em, y12.to(y12_ptr.dtype.element_ty), mask=at_em)
        tl.store(y21_ptr + em, y21.to(y21_ptr.dtype.element_ty), mask=at_em)
        tl.store(y22_ptr + em, (a2 * c[:, None]).to(y22_ptr.dtype.element_ty), mask=at_em)
        tl.store(r_ptr + t * E + e, r.to(r_ptr.dtype.element_ty), mask=e < E)
        tl.store(c_ptr + t * E + e, c.to(c_ptr.dtype.element_ty), mask=e < E)


@triton.jit
def mix_backward_kernel(
    p1_ptr, p2_ptr, g1_ptr, g2_ptr, mask_ptr, d11_ptr, d12_ptr, d21_ptr, d22_ptr, dr_ptr, dc_ptr,
    dp1_ptr, dp2_ptr, dg1_ptr, dg2_ptr,
    E: tl.constexpr, M: tl.constexpr, H: tl.constexpr,
    BLOCK_E: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_H: tl.constexpr,
    ACT: tl.constexpr, DOT: tl.constexpr, EXEMPT: tl.constexpr,
):  # fmt: skip
    """Reads the inputs of `mix_kernel` and the gradients of its results; writes dp1, dp2, dg1 and dg2."""
    t = tl.program_id(0).to(tl.int64)
    if EXEMPT:  # noqa: SIM102
        if tl.load(mask_ptr + t) >= 0:
            return
    h, m = tl.arange(0, BLOCK_H), tl.arange(0, BLOCK_M)
    in_h, in_m = h < H, m < M
    s1_HM = tl.zeros((BLOCK_H, BLOCK_M), tl.float32)
    s2_HM = tl.zeros((BLOCK_H, BLOCK_M), tl.float32)
    ds1_HM = tl.zeros((BLOCK_H, BLOCK_M), tl.float32)
    ds2_HM = tl.zeros((BLOCK_H, BLOCK_M), tl.float32)
    for start in range(0, E, BLOCK_E):
        e = start + tl.arange(0, BLOCK_E)
        at_em, at_he = (e < E)[:, None] & in_m[None, :], in_h[:, None] & (e < E)[None, :]
        em, he = t * E * M + e[:, None] * M + m[None, :], t * H * E + h[:, None] * E + e[None, :]
        g1 = tl.load(g1_ptr + he, mask=at_he, other=0.0).to(DOT)
        g2 = tl.load(g2_ptr + he, mask=at_he, other=0.0).to(DOT)
        a1 = activate(tl.load(p1_ptr + em, mask=at_em, other=0.0), ACT).to(DOT)
        s1_HM = tl.dot(g1, a1, s1_HM, input_precision="ieee")
        ds2_HM = tl.dot(g1, tl.load(d12_ptr + em, mask=at_em, other=0.0).to(DOT), ds2_HM, input_precision="ieee")
        a2 = activate(tl.load(p2_ptr + em, mask=at_em, other=0.0), ACT).to(DOT)
        s2_HM = tl.dot(g2, a2, s2_HM, input_precision="ieee")
        ds1_HM = tl.dot(g2, tl.load(d21_ptr + em, mask=at_em, other=0.0).to(DOT), ds1_HM, input_precision="ieee")
    s1_HM, s2_HM, ds1_HM, ds2_HM = s1_HM.to(DOT), s2_HM.to(DOT), ds1_HM.to(DOT), ds2_HM.to(DOT)
    for start in range(0, E, BLOCK_E):
        e = start + tl.arange(0, BLOCK_E)
        in_e = e < E
        at_em, at_he = in_e[:, None] & in_m[None, :], in_h[:, None] & in_e[None, :]
        em, he = t * E * M + e[:, None] * M + m[None, :], t * H * E + h[:, None] * E + e[None, :]
        _axis(p1_ptr, g1_ptr, d11_ptr, d12_ptr, dr_ptr + t * E, dp1_ptr, dg1_ptr, s2_HM, ds1_HM,
              e, in_e, em, he, at_em, at_he, ACT, DOT)  # fmt: skip
        _axis(p2_ptr, g2_ptr, d22_ptr, d21_ptr, dc_ptr + t * E, dp2_ptr, dg2_ptr, s1_HM, ds2_HM,
              e, in_e, em, he, at_em, at_he, ACT, DOT)  # fmt: skip


@triton.jit
def _axis(
    p_ptr, g_ptr, down_ptr, dreceived_ptr, dsum_ptr, dp_ptr, dg_ptr, other_s_HM, ds_HM,
    e, in_e, em, he, at_em, at_he, ACT: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """Gradients of a block of one axis' pre-activations and probabilities."""
    p = tl.load(p_ptr + em, mask=at_em, other=0.0)
    g = tl.load(g_ptr + he, mask=at_he, other=0.0)
    down = tl.load(down_ptr + em, mask=at_em, other=0.0).to(tl.float32)
    a = activate(p, ACT)
    da = tl.dot(tl.trans(g).to(DOT), ds_HM, input_precision="ieee") + down * tl.sum(g.to(tl.float32), 0)[:, None]
    tl.store(dp_ptr + em, (da * slope(p, ACT)).to(dp_ptr.dtype.element_ty), mask=at_em)
    dsum = tl.load(dsum_ptr + e, mask=in_e, other=0.0).to(tl.float32) + tl.sum(down * a, 1)
    dg = tl.dot(ds_HM, tl.trans(a).to(DOT), input_precision="ieee") + dsum[None, :]
    dreceived = tl.load(dreceived_ptr + em, mask=at_em, other=0.0)
    dg = tl.dot(other_s_HM, tl.trans(dreceived).to(DOT), dg, input_precision="ieee")
    tl.store(dg_ptr + he, dg.to(dg_ptr.dtype.element_ty), mask=at_he)
