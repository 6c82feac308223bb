"""Triton kernels of the routing: moments of the logits, thresholded softmax with sums over tokens, and its backward.

A program takes one head of `tokens` successive tokens, one tile of BLOCK_T tokens by all E keys at a time. Arithmetic
is float32 for every data type of the arrays. Each program keeps sums over tokens in registers and writes them once.
They are added up in one fixed order, without atomics, so results are bitwise reproducible.
"""

from __future__ import annotations

import triton
import triton.language as tl

# The kind of `share`: none, the softmax of all keys, or a smooth step at the threshold.
NO_SHARE, SOFTMAX_SHARE, FIRING_SHARE = range(3)


@triton.jit
def _load(ptr, t, stride, e, E: tl.constexpr, BLOCK_E: tl.constexpr, FILL: tl.constexpr):
    """Rows `t` of one head in float32, with FILL beyond the E keys."""
    at = t[:, None].to(tl.int64) * stride + e[None, :]
    if BLOCK_E == E:
        return tl.load(ptr + at).to(tl.float32)
    return tl.load(ptr + at, mask=e[None, :] < E, other=FILL).to(tl.float32)


@triton.jit
def _thresholded(z, threshold):
    """Softmax over the keys not below min(row maximum, threshold), and each row's largest entry."""
    z_max = tl.max(z, 1)
    # Two comparisons instead of one with the minimum: a NaN fails both and so stays in the row.
    below = (z < z_max[:, None]) & (z < threshold)
    power = tl.where(below, 0.0, tl.exp(z - z_max[:, None]))
    g_max = 1.0 / tl.sum(power, 1)
    return power * g_max[:, None], g_max


@triton.jit
def _softmax(z):
    power = tl.exp(z - tl.max(z, 1)[:, None])
    return power / tl.sum(power, 1)[:, None]


@triton.jit
def _step(z, threshold, slope):
    """Smooth step at the threshold; `slope` is one over its width."""
    return 1.0 / (1.0 + tl.exp((threshold - z) * slope))


@triton.jit
def _step_derivative(z, threshold, slope):
    """Derivative of `_step`, equal on both sides; step * (1 - step) would cancel far above the threshold."""
    power = tl.exp(-tl.abs((threshold - z) * slope))
    return slope * power / ((1.0 + power) * (1.0 + power))


@triton.jit
def _weights(weight_ptr, t, last, num_tokens, WEIGHTED: tl.constexpr):
    """The weight of each token in the means; zero from token `last` on."""
    if WEIGHTED:
        return tl.load(weight_ptr + t, mask=t < last, other=0.0).to(tl.float32)
    return tl.where(t < last, 1.0 / num_tokens, 0.0)


@triton.jit
def moments(
    z_ptr, mask_ptr, partial_ptr, num_tokens, z_stride, num_heads, tokens, num_slots,
    E: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_T: tl.constexpr, MASKED: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Number of logits, mean and squared deviations for the tokens of each tile row.

    Reads the logits once; writes float64 partial[head, 0..2, slot], one slot for each program and tile row. Deviations
    are taken from the row's own mean, and means are accumulated as distances from the first counted mean. A mean far
    from zero therefore causes no cancellation.
    """
    pid = tl.program_id(0)
    head, part = pid % num_heads, pid // num_heads
    e = tl.arange(0, BLOCK_E)
    z_ptr += head * E
    rows = tl.zeros([BLOCK_T], tl.float32)
    pivot = tl.zeros([BLOCK_T], tl.float32)
    away = tl.zeros([BLOCK_T], tl.float32)
    away2 = tl.zeros([BLOCK_T], tl.float32)
    m2 = tl.zeros([BLOCK_T], tl.float32)
    first = part * tokens
    last = tl.minimum(first + tokens, num_tokens)
    for start in tl.range(first, last, BLOCK_T, num_stages=STAGES):
        t = start + tl.arange(0, BLOCK_T)
        counted = t < last
        if MASKED:
            counted = counted & (tl.load(mask_ptr + t, mask=counted, other=0) != 0)
        z = _load(z_ptr, tl.minimum(t, num_tokens - 1), z_stride, e, E, BLOCK_E, 0.0)
        mean = tl.sum(z, 1) / E
        deviation = z - mean[:, None]
        if BLOCK_E != E:
            deviation = tl.where(e[None, :] < E, deviation, 0.0)
        rounded = tl.sum(deviation, 1) / E  # the rounding error of the mean
        square = tl.sum(deviation * deviation, 1) - E * rounded * rounded
        pivot = tl.where(rows == 0.0, mean, pivot)
        distance = tl.where(counted, (mean - pivot) + rounded, 0.0)
        rows += counted.to(tl.float32)
        away += distance
        away2 += distance * distance
        m2 += tl.where(counted, square, 0.0)
    average = away / tl.maximum(rows, 1.0)
    m2 += E * (away2 - away * average)
    mean64 = tl.where(rows > 0.0, pivot.to(tl.float64) + average.to(tl.float64), 0.0)
    slot = part * BLOCK_T + tl.arange(0, BLOCK_T)
    partial_ptr += head * 3 * num_slots
    tl.store(partial_ptr + slot, rows.to(tl.float64))
    tl.store(partial_ptr + num_slots + slot, mean64)
    m2 = tl.where(m2 < 0.0, 0.0, m2)  # a maximum would hide a NaN
    tl.store(partial_ptr + 2 * num_slots + slot, m2.to(tl.float64))


@triton.jit
def merge_moments(partial_ptr, moments_ptr, num_heads, num_slots, E: tl.constexpr, BLOCK: tl.constexpr):
    """One head's slots -> float64 moments[0..2, head]: number of logits, mean, squared deviations (Chan et al.)."""
    head = tl.program_id(0)
    partial_ptr += head * 3 * num_slots
    rows = tl.zeros([BLOCK], tl.float64)
    total = tl.zeros([BLOCK], tl.float64)
    for start in range(0, num_slots, BLOCK):
        slot = start + tl.arange(0, BLOCK)
        n = tl.load(partial_ptr + slot, mask=slot < num_slots, other=0.0)
        rows += n
        total += n * tl.load(partial_ptr + num_slots + slot, mask=slot < num_slots, other=0.0)
    count = tl.sum(rows, 0)
    mean = tl.sum(total, 0) / tl.maximum(count, 1.0)
    m2 = tl.zeros([BLOCK], tl.float64)
    for start in range(0, num_slots, BLOCK):
        slot = start + tl.arange(0, BLOCK)
        n = tl.load(partial_ptr + slot, mask=slot < num_slots, other=0.0)
        distance = tl.load(partial_ptr + num_slots + slot, mask=slot < num_slots, other=0.0) - mean
        m2 += tl.load(partial_ptr + 2 * num_slots + slot, mask=slot < num_slots, other=0.0)
        m2 += E * n * distance * distance
    tl.store(moments_ptr + head, count * E)
    tl.store(moments_ptr + num_heads + head, mean)
    tl.store(moments_ptr + 2 * num_heads + head, tl.sum(m2, 0))


@triton.jit
def forward(
    z_ptr, threshold_ptr, weight_ptr, width_ptr, g_ptr, sums_ptr, num_tokens, z_stride, num_heads, tokens,
    E: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_T: tl.constexpr,
    SUMS: tl.constexpr, WEIGHTED: tl.constexpr, SHARE: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Logits -> probabilities, and with SUMS also this program's part of the sums over tokens.

    Reads the logits once, writes g_TP once. A program's row of `sums` holds, in this order: weighted g (H, E); the
    number of tokens at which each key fired (H, E); weighted share (H, E), if any; weighted row maximum (H,).
    """
    pid = tl.program_id(0)
    head, part = pid % num_heads, pid // num_heads
    e = tl.arange(0, BLOCK_E)
    P = num_heads * E
    z_ptr += head * E
    g_ptr += head * E
    threshold = tl.load(threshold_ptr + head).to(tl.float32)
    slope = 1.0 / tl.load(width_ptr + head).to(tl.float32) if SHARE == 2 else 1.0
    mean = tl.zeros([BLOCK_T, BLOCK_E], tl.float32)
    fired = tl.zeros([BLOCK_T, BLOCK_E], tl.float32)
    share = tl.zeros([BLOCK_T, BLOCK_E], tl.float32)
    largest = tl.zeros([BLOCK_T], tl.float32)
    first = part * tokens
    last = tl.minimum(first + tokens, num_tokens)
    for start in tl.range(first, last, BLOCK_T, num_stages=STAGES):
        t = start + tl.arange(0, BLOCK_T)
        z = _load(z_ptr, tl.minimum(t, num_tokens - 1), z_stride, e, E, BLOCK_E, -float("inf"))
        g, g_max = _thresholded(z, threshold)
        at = t[:, None].to(tl.int64) * P + e[None, :]
        inside = t[:, None] < last
        if BLOCK_E != E:
            inside = inside & (e[None, :] < E)
        tl.store(g_ptr + at, g.to(g_ptr.dtype.element_ty), mask=inside)
        if SUMS:
            weight = _weights(weight_ptr, t, last, num_tokens, WEIGHTED)
            mean += weight[:, None] * g
            fired += tl.where((g > 0.0) & (weight[:, None] > 0.0), 1.0, 0.0)
            largest += weight * g_max
            if SHARE == 1:
                share += weight[:, None] * _softmax(z)
            elif SHARE == 2:
                share += weight[:, None] * _step(z, threshold, slope)
    if SUMS:
        in_e = e < E
        arrays: tl.constexpr = 3 if SHARE > 0 else 2
        sums_ptr += part.to(tl.int64) * (arrays * P + num_heads)
        tl.store(sums_ptr + head * E + e, tl.sum(mean, 0), mask=in_e)
        tl.store(sums_ptr + P + head * E + e, tl.sum(fired, 0), mask=in_e)
        if SHARE > 0:
            tl.store(sums_ptr + 2 * P + head * E + e, tl.sum(share, 0), mask=in_e)
        tl.store(sums_ptr + arrays * P + head, tl.sum(largest, 0))


@triton.jit
def backward(
    saved_ptr, dg_ptr, threshold_ptr, weight_ptr, width_ptr, dsums_ptr, dz_ptr, num_tokens, saved_stride, num_heads,
    tokens,
    E: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_T: tl.constexpr,
    SUMS: tl.constexpr, WEIGHTED: tl.constexpr, SHARE: tl.constexpr, FROM_LOGITS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Gradient of the logits, from the gradients of the probabilities and, with SUMS, of the sums, in one pass.

    `saved` holds the probabilities or, with FROM_LOGITS, the logits; the kernel then recomputes the probabilities in
    float32, regardless of their stored dtype. A SHARE needs the logits. Reads `saved` and dg once, writes dz once;
    `dsums` is one row of the forward's `sums`.
    """
    pid = tl.program_id(0)
    head, part = pid % num_heads, pid // num_heads
    e = tl.arange(0, BLOCK_E)
    P = num_heads * E
    saved_ptr += head * E
    dg_ptr += head * E
    dz_ptr += head * E
    threshold = tl.load(threshold_ptr + head).to(tl.float32)
    slope = 1.0 / tl.load(width_ptr + head).to(tl.float32) if SHARE == 2 else 1.0
    if SUMS:
        arrays: tl.constexpr = 3 if SHARE > 0 else 2
        dmean = tl.load(dsums_ptr + head * E + e, mask=e < E, other=0.0)[None, :]
        dlargest = tl.load(dsums_ptr + arrays * P + head)
        if SHARE > 0:
            dshare = tl.load(dsums_ptr + 2 * P + head * E + e, mask=e < E, other=0.0)[None, :]
    first = part * tokens
    last = tl.minimum(first + tokens, num_tokens)
    for start in tl.range(first, last, BLOCK_T, num_stages=STAGES):
        t = start + tl.arange(0, BLOCK_T)
        row = tl.minimum(t, num_tokens - 1)
        dg = _load(dg_ptr, row, P, e, E, BLOCK_E, 0.0)
        if FROM_LOGITS:
            z = _load(saved_ptr, row, saved_stride, e, E, BLOCK_E, -float("inf"))
            g, _ = _thresholded(z, threshold)
        else:
            g = _load(saved_ptr, row, saved_stride, e, E, BLOCK_E, 0.0)
        if SUMS:
            weight = _weights(weight_ptr, t, last, num_tokens, WEIGHTED)[:, None]
            is_max = (g == tl.max(g, 1)[:, None]).to(tl.float32)  # tied keys share the maximum's gradient
            dg += weight * (dmean + (dlargest / tl.sum(is_max, 1))[:, None] * is_max)
        dz = g * (dg - tl.sum(g * dg, 1)[:, None])
        if SHARE == 1:
            softmax = _softmax(z)
            dz += weight * softmax * (dshare - tl.sum(softmax * dshare, 1)[:, None])
        elif SHARE == 2:
            dz += weight * dshare * _step_derivative(z, threshold, slope)
        inside = t[:, None] < last
        if BLOCK_E != E:
            inside = inside & (e[None, :] < E)
        at = t[:, None].to(tl.int64) * P + e[None, :]
        tl.store(dz_ptr + at, dz.to(dz_ptr.dtype.element_ty), mask=inside)
