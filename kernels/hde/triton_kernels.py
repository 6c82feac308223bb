"""Horizontal mixing on a GPU: one program per token, all heads together.

A token's two sides meet only in s_HM = sum_i g1[h, i] a[i]. A program therefore passes over the first keys once, then
over the second keys once, and writes only the results. Products use the dtype of the pre-activations and accumulate in
float32. With E keys, M hidden units, H heads and b bytes a number, a program moves b * (2 E M + 2 H E + E) bytes
forward and about twice that backward.

Masked forms visit only pairs of active keys, listed by `monet.kernels.active_keys`. With them the unmasked kernels run
with EXEMPT for the unmasked tokens, whose results are therefore bitwise identical to an unmasked run.
"""

from __future__ import annotations

import triton
import triton.language as tl

from monet.kernels.triton_parts import activate, slope


@triton.jit
def mix_kernel(
    p_ptr, g1_ptr, g2_ptr, mask_ptr, y_ptr, c_ptr,
    E: tl.constexpr, M: tl.constexpr, H: tl.constexpr,
    BLOCK_E: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_H: tl.constexpr,
    ACT: tl.constexpr, DOT: tl.constexpr, EXEMPT: tl.constexpr,
):  # fmt: skip
    """Reads p_TEM, g1_THE, g2_THE; writes y_TEM and c_TE."""
    t = tl.program_id(0).to(tl.int64)
    if EXEMPT:  # noqa: SIM102
        if tl.load(mask_ptr + t) >= 0:
            return
    h, m = tl.arange(0, BLOCK_H), tl.arange(0, BLOCK_M)
    in_h, in_m = h < H, m < M
    p_ptr += t * E * M
    y_ptr += t * E * M
    g1_ptr += t * H * E
    g2_ptr += t * H * E
    s_HM = tl.zeros((BLOCK_H, BLOCK_M), tl.float32)
    for start in range(0, E, BLOCK_E):
        e = start + tl.arange(0, BLOCK_E)
        at_em = (e < E)[:, None] & in_m[None, :]
        at_he = in_h[:, None] & (e < E)[None, :]
        a = activate(tl.load(p_ptr + e[:, None] * M + m[None, :], mask=at_em, other=0.0), ACT)
        g1 = tl.load(g1_ptr + h[:, None] * E + e[None, :], mask=at_he, other=0.0)
        s_HM = tl.dot(g1.to(DOT), a.to(DOT), s_HM, input_precision="ieee")
    for start in range(0, E, BLOCK_E):
        e = start + tl.arange(0, BLOCK_E)
        at_em = (e < E)[:, None] & in_m[None, :]
        at_he = in_h[:, None] & (e < E)[None, :]
        g2 = tl.load(g2_ptr + h[:, None] * E + e[None, :], mask=at_he, other=0.0)
        y = tl.dot(tl.trans(g2).to(DOT), s_HM.to(DOT), input_precision="ieee")
        tl.store(y_ptr + e[:, None] * M + m[None, :], y.to(y_ptr.dtype.element_ty), mask=at_em)
        c = tl.sum(g2.to(tl.float32), 0)
        tl.store(c_ptr + t * E + e, c.to(c_ptr.dtype.element_ty), mask=e < E)


@triton.jit
def mix_backward_kernel(
    p_ptr, g1_ptr, g2_ptr, mask_ptr, dy_ptr, dc_ptr, dp_ptr, dg1_ptr, dg2_ptr,
    E: tl.constexpr, M: tl.constexpr, H: tl.constexpr,
    BLOCK_E: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_H: tl.constexpr,
    ACT: tl.constexpr, DOT: tl.constexpr, EXEMPT: tl.constexpr,
):  # fmt: skip
    """Reads p_TEM, g1_THE, g2_THE, dy_TEM, dc_TE; writes dp_TEM, dg1_THE, dg2_THE."""
    t = tl.program_id(0).to(tl.int64)
    if EXEMPT:  # noqa: SIM102
        if tl.load(mask_ptr + t) >= 0:
            return
    h, m = tl.arange(0, BLOCK_H), tl.arange(0, BLOCK_M)
    in_h, in_m = h < H, m < M
    s_HM = tl.zeros((BLOCK_H, BLOCK_M), tl.float32)
    ds_HM = tl.zeros((BLOCK_H, BLOCK_M), tl.float32)
    for start in range(0, E, BLOCK_E):
        e = start + tl.arange(0, BLOCK_E)
        at_em = (e < E)[:, None] & in_m[None, :]
        at_he = in_h[:, None] & (e < E)[None, :]
        em = t * E * M + e[:, None] * M + m[None, :]
        he = t * H * E + h[:, None] * E + e[None, :]
        a = activate(tl.load(p_ptr + em, mask=at_em, other=0.0), ACT)
        s_HM = tl.dot(tl.load(g1_ptr + he, mask=at_he, other=0.0).to(DOT), a.to(DOT), s_HM, input_precision="ieee")
        dy = tl.load(dy_ptr + em, mask=at_em, other=0.0)
        ds_HM = tl.dot(tl.load(g2_ptr + he, mask=at_he, other=0.0).to(DOT), dy.to(DOT), ds_HM, input_precision="ieee")
    s_HM, ds_HM = s_HM.to(DOT), ds_HM.to(DOT)
    for start in range(0, E, BLOCK_E):
        e = start + tl.arange(0, BLOCK_E)
        at_em = (e < E)[:, None] & in_m[None, :]
        at_he = in_h[:, None] & (e < E)[None, :]
        em = t * E * M + e[:, None] * M + m[None, :]
        he = t * H * E + h[:, None] * E + e[None, :]
        dy = tl.load(dy_ptr + em, mask=at_em, other=0.0)
        dc = tl.load(dc_ptr + t * E + e, mask=e < E, other=0.0).to(tl.float32)
        dg2 = tl.dot(s_HM, tl.trans(dy).to(DOT), input_precision="ieee") + dc[None, :]
        tl.store(dg2_ptr + he, dg2.to(dg2_ptr.dtype.element_ty), mask=at_he)
        p = tl.load(p_ptr + em, mask=at_em, other=0.0)
        dg1 = tl.dot(ds_HM, tl.trans(activate(p, ACT)).to(DOT), input_precision="ieee")
        tl.store(dg1_ptr + he, dg1.to(dg1_ptr.dtype.element_ty), mask=at_he)
        g1 = tl.load(g1_ptr + he, mask=at_he, other=0.0)
        dp = tl.dot(tl.trans(g1).to(DOT), ds_HM, input_precision="ieee") * slope(p, ACT)
        tl.store(dp_ptr + em, dp.to(dp_ptr.dtype.element_ty), mask=at_em)


@triton.jit
def masked_mix_kernel(
    p_ptr, g1_ptr, g2_ptr, idx1_ptr, idx2_ptr, count1_ptr, count2_ptr, keep_ptr, mask_ptr, y_ptr, c_ptr,
    E: tl.constexpr, M: tl.constexpr, H: tl.constexpr,
    BLOCK_U: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_H: tl.constexpr,
    ACT: tl.constexpr, DOT: tl.constexpr, PER_TOKEN: tl.constexpr,
):  # fmt: skip
    """Reads the rows of active keys and their keep-weights; writes y_TEM and c_TE for active second keys.

    keep_SEE holds the masks, mask_T the mask number of each token. A token without a mask (negative number) is skipped;
    the unmasked kernel computes it. The rest of y and c must be zero.
    """
    t = tl.program_id(0).to(tl.int64)
    h, m, u = tl.arange(0, BLOCK_H), tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_U)
    in_h, in_m = h < H, m < M
    count1, count2 = tl.load(count1_ptr + t), tl.load(count2_ptr + t)
    if PER_TOKEN:
        s = tl.load(mask_ptr + t).to(tl.int64)
        keep_ptr += tl.maximum(s, 0) * E * E
        count1, count2 = tl.where(s < 0, 0, count1), tl.where(s < 0, 0, count2)
    for start2 in range(0, count2, BLOCK_U):
        in2 = start2 + u < count2
        j = tl.load(idx2_ptr + t * E + start2 + u, mask=in2, other=0).to(tl.int32)
        g2 = tl.load(g2_ptr + t * H * E + h[:, None] * E + j[None, :], mask=in_h[:, None] & in2[None, :], other=0.0)
        y = tl.zeros((BLOCK_U, BLOCK_M), tl.float32)
        c = tl.zeros((BLOCK_U,), tl.float32)
        for start1 in range(0, count1, BLOCK_U):
            in1 = start1 + u < count1
            i = tl.load(idx1_ptr + t * E + start1 + u, mask=in1, other=0).to(tl.int32)
            g1 = tl.load(g1_ptr + t * H * E + h[:, None] * E + i[None, :], mask=in_h[:, None] & in1[None, :], other=0.0)
            w = tl.dot(tl.trans(g2).to(DOT), g1.to(DOT), input_precision="ieee")  # second key, first key
            k = tl.load(keep_ptr + i[None, :] * E + j[:, None], mask=in1[None, :] & in2[:, None], other=0.0)
            w = w * k.to(tl.float32)
            at_um = in1[:, None] & in_m[None, :]
            a = activate(tl.load(p_ptr + t * E * M + i[:, None] * M + m[None, :], mask=at_um, other=0.0), ACT)
            y = tl.dot(w.to(DOT), a.to(DOT), y, input_precision="ieee")
            c += tl.sum(w, 1)
        at_um = in2[:, None] & in_m[None, :]
        tl.store(y_ptr + t * E * M + j[:, None] * M + m[None, :], y.to(y_ptr.dtype.element_ty), mask=at_um)
        tl.store(c_ptr + t * E + j, c.to(c_ptr.dtype.element_ty), mask=in2)


@triton.jit
def masked_mix_backward_kernel(
    p_ptr, g1_ptr, g2_ptr, idx1_ptr, idx2_ptr, count1_ptr, count2_ptr, keep_ptr, mask_ptr, dy_ptr, dc_ptr,
    dp_ptr, dg1_ptr, dg2_ptr,
    E: tl.constexpr, M: tl.constexpr, H: tl.constexpr,
    BLOCK_U: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_H: tl.constexpr,
    ACT: tl.constexpr, DOT: tl.constexpr, PER_TOKEN: tl.constexpr,
):  # fmt: skip
    """Writes dp, dg1 and dg2 for active keys; all other entries must be zero.

    Inactive keys get no gradient here: the routing would multiply it by their probability, which is zero.
    """
    t = tl.program_id(0).to(tl.int64)
    h, m, u = tl.arange(0, BLOCK_H), tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_U)
    in_h, in_m = h < H, m < M
    count1, count2 = tl.load(count1_ptr + t), tl.load(count2_ptr + t)
    if PER_TOKEN:
        s = tl.load(mask_ptr + t).to(tl.int64)
        keep_ptr += tl.maximum(s, 0) * E * E
        count1, count2 = tl.where(s < 0, 0, count1), tl.where(s < 0, 0, count2)
    p_ptr += t * E * M
    dp_ptr += t * E * M
    dy_ptr += t * E * M
    g1_ptr += t * H * E
    g2_ptr += t * H * E
    dg1_ptr += t * H * E
    dg2_ptr += t * H * E
    for start1 in range(0, count1, BLOCK_U):
        in1 = start1 + u < count1
        i = tl.load(idx1_ptr + t * E + start1 + u, mask=in1, other=0).to(tl.int32)
        at_im, at_hi = in1[:, None] & in_m[None, :], in_h[:, None] & in1[None, :]
        g1 = tl.load(g1_ptr + h[:, None] * E + i[None, :], mask=at_hi, other=0.0).to(DOT)
        p = tl.load(p_ptr + i[:, None] * M + m[None, :], mask=at_im, other=0.0)
        a = activate(p, ACT).to(DOT)
        da = tl.zeros((BLOCK_U, BLOCK_M), tl.float32)
        dg1 = tl.zeros((BLOCK_H, BLOCK_U), tl.float32)
        for start2 in range(0, count2, BLOCK_U):
            in2 = start2 + u < count2
            j = tl.load(idx2_ptr + t * E + start2 + u, mask=in2, other=0).to(tl.int32)
            g2 = tl.load(g2_ptr + h[:, None] * E + j[None, :], mask=in_h[:, None] & in2[None, :], other=0.0).to(DOT)
            dy = tl.load(dy_ptr + j[:, None] * M + m[None, :], mask=in2[:, None] & in_m[None, :], other=0.0).to(DOT)
            dc = tl.load(dc_ptr + t * E + j, mask=in2, other=0.0).to(tl.float32)
            k = tl.load(keep_ptr + i[:, None] * E + j[None, :], mask=in1[:, None] & in2[None, :], other=0.0)
            k = k.to(tl.float32)
            w = tl.dot(tl.trans(g1), g2, input_precision="ieee") * k
            da = tl.dot(w.to(DOT), dy, da, input_precision="ieee")
            dw = (tl.dot(a, tl.trans(dy), input_precision="ieee") + dc[None, :]) * k
            dg1 = tl.dot(g2, tl.trans(dw).to(DOT), dg1, input_precision="ieee")
        dp = da * slope(p, ACT)
        tl.store(dp_ptr + i[:, None] * M + m[None, :], dp.to(dp_ptr.dtype.element_ty), mask=at_im)
        tl.store(dg1_ptr + h[:, None] * E + i[None, :], dg1.to(dg1_ptr.dtype.element_ty), mask=at_hi)
    for start2 in range(0, count2, BLOCK_U):
        in2 = start2 + u < count2
        j = tl.load(idx2_ptr + t * E + start2 + u, mask=in2, other=0).to(tl.int32)
        at_hj = in_h[:, None] & in2[None, :]
        dy = tl.load(dy_ptr + j[:, None] * M + m[None, :], mask=in2[:, None] & in_m[None, :], other=0.0).to(DOT)
        dc = tl.load(dc_ptr + t * E + j, mask=in2, other=0.0).to(tl.float32)
        dg2 = tl.zeros((BLOCK_H, BLOCK_U), tl.float32)
        for start1 in range(0, count1, BLOCK_U):
            in1 = start1 + u < count1
            i = tl.load(idx1_ptr + t * E + start1 + u, mask=in1, other=0).to(tl.int32)
            g1 = tl.load(g1_ptr + h[:, None] * E + i[None, :], mask=in_h[:, None] & in1[None, :], other=0.0).to(DOT)
            at_im = in1[:, None] & in_m[None, :]
            a = activate(tl.load(p_ptr + i[:, None] * M + m[None, :], mask=at_im, other=0.0), ACT).to(DOT)
            k = tl.load(keep_ptr + i[:, None] * E + j[None, :], mask=in1[:, None] & in2[None, :], other=0.0)
            k = k.to(tl.float32)
            dw = (tl.dot(a, tl.trans(dy), input_precision="ieee") + dc[None, :]) * k
            dg2 = tl.dot(g1, dw.to(DOT), dg2, input_precision="ieee")
        tl.store(dg2_ptr + h[:, None] * E + j[None, :], dg2.to(dg2_ptr.dtype.element_ty), mask=at_hj)
