"""Vertical mixing under a mask on a GPU: one program per token, only pairs of active keys.

The two axes mirror each other. Each kernel is therefore written once and computes one axis at a time: `own` is the axis
whose results are computed, `other` is the axis that is summed over.
"""

from __future__ import annotations

import triton
import triton.language as tl

from monet.kernels.triton_parts import activate, slope


@triton.jit
def masked_mix_kernel(
    p1_ptr, p2_ptr, g1_ptr, g2_ptr, idx1_ptr, idx2_ptr, count1_ptr, count2_ptr, keep_ptr, mask_ptr,
    y11_ptr, y12_ptr, y21_ptr, y22_ptr, r_ptr, c_ptr,
    E: tl.constexpr, M: tl.constexpr, H: tl.constexpr,
    BLOCK_U: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_H: tl.constexpr,
    ACT: tl.constexpr, DOT: tl.constexpr, PER_TOKEN: tl.constexpr,
):  # fmt: skip
    """Writes the mixed halves and r, c for active keys; all other entries must be zero.

    A token without a mask (negative number) is skipped; the unmasked kernel computes it.
    """
    t = tl.program_id(0).to(tl.int64)
    if PER_TOKEN:
        s = tl.load(mask_ptr + t).to(tl.int64)
        if s < 0:
            return
        keep_ptr += s * E * E
    _mix_axis(
        t, p1_ptr, p2_ptr, g1_ptr, g2_ptr, idx1_ptr, idx2_ptr, count1_ptr, count2_ptr, keep_ptr, E, 1,
        y11_ptr, y12_ptr, r_ptr, E, M, H, BLOCK_U, BLOCK_M, BLOCK_H, ACT, DOT,
    )  # fmt: skip
    _mix_axis(
        t, p2_ptr, p1_ptr, g2_ptr, g1_ptr, idx2_ptr, idx1_ptr, count2_ptr, count1_ptr, keep_ptr, 1, E,
        y22_ptr, y21_ptr, c_ptr, E, M, H, BLOCK_U, BLOCK_M, BLOCK_H, ACT, DOT,
    )  # fmt: skip


@triton.jit
def _mix_axis(
    t, p_ptr, other_p_ptr, g_ptr, other_g_ptr, idx_ptr, other_idx_ptr, count_ptr, other_count_ptr,
    keep_ptr, keep_stride, other_keep_stride, stayed_ptr, received_ptr, sum_ptr,
    E: tl.constexpr, M: tl.constexpr, H: tl.constexpr,
    BLOCK_U: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_H: tl.constexpr, ACT: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    h, m, u = tl.arange(0, BLOCK_H), tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_U)
    in_h, in_m = h < H, m < M
    count, other_count = tl.load(count_ptr + t), tl.load(other_count_ptr + t)
    for start in range(0, count, BLOCK_U):
        inside = start + u < count
        i = tl.load(idx_ptr + t * E + start + u, mask=inside, other=0).to(tl.int32)
        at_hi, at_im = in_h[:, None] & inside[None, :], inside[:, None] & in_m[None, :]
        im = t * E * M + i[:, None] * M + m[None, :]
        g = tl.load(g_ptr + t * H * E + h[:, None] * E + i[None, :], mask=at_hi, other=0.0).to(DOT)
        received = tl.zeros((BLOCK_U, BLOCK_M), tl.float32)
        total = tl.zeros((BLOCK_U,), tl.float32)
        for other_start in range(0, other_count, BLOCK_U):
            other_inside = other_start + u < other_count
            j = tl.load(other_idx_ptr + t * E + other_start + u, mask=other_inside, other=0).to(tl.int32)
            at_hj, at_jm = in_h[:, None] & other_inside[None, :], other_inside[:, None] & in_m[None, :]
            other_g = tl.load(other_g_ptr + t * H * E + h[:, None] * E + j[None, :], mask=at_hj, other=0.0).to(DOT)
            k_at = keep_ptr + i[:, None] * keep_stride + j[None, :] * other_keep_stride
            k = tl.load(k_at, mask=inside[:, None] & other_inside[None, :], other=0.0).to(tl.float32)
            w = tl.dot(tl.trans(g), other_g, input_precision="ieee") * k
            a = activate(tl.load(other_p_ptr + t * E * M + j[:, None] * M + m[None, :], mask=at_jm, other=0.0), ACT)
            received = tl.dot(w.to(DOT), a.to(DOT), received, input_precision="ieee")
            total += tl.sum(w, 1)
        stayed = activate(tl.load(p_ptr + im, mask=at_im, other=0.0), ACT) * total[:, None]
        tl.store(stayed_ptr + im, stayed.to(stayed_ptr.dtype.element_ty), mask=at_im)
        tl.store(received_ptr + im, received.to(received_ptr.dtype.element_ty), mask=at_im)
        tl.store(sum_ptr + t * E + i, total.to(sum_ptr.dtype.element_ty), mask=inside)


@triton.jit
def masked_mix_backward_kernel(
    p1_ptr, p2_ptr, g1_ptr, g2_ptr, idx1_ptr, idx2_ptr, count1_ptr, count2_ptr, keep_ptr, mask_ptr,
    d11_ptr, d12_ptr, d21_ptr, d22_ptr, dr_ptr, dc_ptr, dp1_ptr, dp2_ptr, dg1_ptr, dg2_ptr,
    E: tl.constexpr, M: tl.constexpr, H: tl.constexpr,
    BLOCK_U: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_H: tl.constexpr,
    ACT: tl.constexpr, DOT: tl.constexpr, PER_TOKEN: tl.constexpr,
):  # fmt: skip
    """Writes dp and dg of both axes for active keys; all other entries must be zero.

    Inactive keys get no gradient here: the routing would multiply it by their probability, which is zero.
    """
    t = tl.program_id(0).to(tl.int64)
    if PER_TOKEN:
        s = tl.load(mask_ptr + t).to(tl.int64)
        if s < 0:
            return
        keep_ptr += s * E * E
    _mix_axis_backward(
        t, p1_ptr, p2_ptr, g1_ptr, g2_ptr, idx1_ptr, idx2_ptr, count1_ptr, count2_ptr, keep_ptr, E, 1,
        d11_ptr, d12_ptr, dr_ptr, d22_ptr, d21_ptr, dc_ptr, dp1_ptr, dg1_ptr,
        E, M, H, BLOCK_U, BLOCK_M, BLOCK_H, ACT, DOT,
    )  # fmt: skip
    _mix_axis_backward(
        t, p2_ptr, p1_ptr, g2_ptr, g1_ptr, idx2_ptr, idx1_ptr, count2_ptr, count1_ptr, keep_ptr, 1, E,
        d22_ptr, d21_ptr, dc_ptr, d11_ptr, d12_ptr, dr_ptr, dp2_ptr, dg2_ptr,
        E, M, H, BLOCK_U, BLOCK_M, BLOCK_H, ACT, DOT,
    )  # fmt: skip


@triton.jit
def _mix_axis_backward(
    t, p_ptr, other_p_ptr, g_ptr, other_g_ptr, idx_ptr, other_idx_ptr, count_ptr, other_count_ptr,
    keep_ptr, keep_stride, other_keep_stride,
    dstayed_ptr, dreceived_ptr, dsum_ptr, other_dstayed_ptr, other_dreceived_ptr, other_dsum_ptr, dp_ptr, dg_ptr,
    E: tl.constexpr, M: tl.constexpr, H: tl.constexpr,
    BLOCK_U: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_H: tl.constexpr, ACT: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    h, m, u = tl.arange(0, BLOCK_H), tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_U)
    in_h, in_m = h < H, m < M
    count, other_count = tl.load(count_ptr + t), tl.load(other_count_ptr + t)
    for start in range(0, count, BLOCK_U):
        inside = start + u < count
        i = tl.load(idx_ptr + t * E + start + u, mask=inside, other=0).to(tl.int32)
        at_hi, at_im = in_h[:, None] & inside[None, :], inside[:, None] & in_m[None, :]
        hi, im = t * H * E + h[:, None] * E + i[None, :], t * E * M + i[:, None] * M + m[None, :]
        g = tl.load(g_ptr + hi, mask=at_hi, other=0.0).to(DOT)
        p = tl.load(p_ptr + im, mask=at_im, other=0.0)
        a = activate(p, ACT)
        dstayed = tl.load(dstayed_ptr + im, mask=at_im, other=0.0).to(tl.float32)
        dreceived = tl.load(dreceived_ptr + im, mask=at_im, other=0.0).to(DOT)
        dtotal = tl.load(dsum_ptr + t * E + i, mask=inside, other=0.0).to(tl.float32) + tl.sum(dstayed * a, 1)
        a = a.to(DOT)
        da = tl.zeros((BLOCK_U, BLOCK_M), tl.float32)
        total = tl.zeros((BLOCK_U,), tl.float32)
        dg = tl.zeros((BLOCK_H, BLOCK_U), tl.float32)
        for other_start in range(0, other_count, BLOCK_U):
            other_inside = other_start + u < other_count
            j = tl.load(other_idx_ptr + t * E + other_start + u, mask=other_inside, other=0).to(tl.int32)
            at_hj, at_jm = in_h[:, None] & other_inside[None, :], other_inside[:, None] & in_m[None, :]
            jm = t * E * M + j[:, None] * M + m[None, :]
            other_g = tl.load(other_g_ptr + t * H * E + h[:, None] * E + j[None, :], mask=at_hj, other=0.0).to(DOT)
            other_a = activate(tl.load(other_p_ptr + jm, mask=at_jm, other=0.0), ACT)
            other_dstayed = tl.load(other_dstayed_ptr + jm, mask=at_jm, other=0.0).to(tl.float32)
            other_dtotal = tl.load(other_dsum_ptr + t * E + j, mask=other_inside, other=0.0).to(tl.float32)
            other_dtotal += tl.sum(other_dstayed * other_a, 1)
            other_dreceived = tl.load(other_dreceived_ptr + jm, mask=at_jm, other=0.0).to(DOT)
            k_at = keep_ptr + i[:, None] * keep_stride + j[None, :] * other_keep_stride
            k = tl.load(k_at, mask=inside[:, None] & other_inside[None, :], other=0.0).to(tl.float32)
            w = tl.dot(tl.trans(g), other_g, input_precision="ieee") * k
            total += tl.sum(w, 1)
            da = tl.dot(w.to(DOT), other_dreceived, da, input_precision="ieee")
            dw = tl.dot(dreceived, tl.trans(other_a.to(DOT)), input_precision="ieee")
            dw = tl.dot(a, tl.trans(other_dreceived), dw, input_precision="ieee")
            dw = (dw + dtotal[:, None] + other_dtotal[None, :]) * k
            dg = tl.dot(other_g, tl.trans(dw).to(DOT), dg, input_precision="ieee")
        da += dstayed * total[:, None]
        tl.store(dp_ptr + im, (da * slope(p, ACT)).to(dp_ptr.dtype.element_ty), mask=at_im)
        tl.store(dg_ptr + hi, dg.to(dg_ptr.dtype.element_ty), mask=at_hi)
