"""Expert layers over active keys on a GPU: three launches per layer, whose sizes depend only on shapes.

The device finds the active keys and uses them, so the host never waits and a CUDA graph can hold the launches. Lists of
active keys have room for every key; each kernel that reads a list stops at its end.

Each token reads the rows of the keys active for it; rows that several tokens share come from the L2 cache. No atomics
are used, so results are the same in every run. All sums and intermediate values are float32.

Side 0 belongs to the first keys, side 1 to the second keys. In the mixing of one side, `own` is the side whose keys the
results belong to and `other` is the side that is summed over. So w[i, j] is summed over i for the second keys j, and
over j for the first keys i. The horizontal form (SIDES = 1) has hidden units only on side 0 and results only on side 1,
and stores both at index 0.
"""

from __future__ import annotations

import triton
import triton.language as tl

from monet.kernels.triton_parts import activate


@triton.jit
def hidden_kernel(
    x_ptr, g1_ptr, g2_ptr, u1_ptr, u2_ptr, bias1_ptr, bias2_ptr, hidden_ptr, keys_ptr, count_ptr, T,
    E: tl.constexpr, M: tl.constexpr, H: tl.constexpr, D: tl.constexpr, SIDES: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
    ACT: tl.constexpr,
):  # fmt: skip
    """Hidden units of active keys, and the lists of these keys.

    Grid: (2 BLOCK_T + SIDES E cdiv(M, BLOCK_M), cdiv(T, BLOCK_T)). The first 2 BLOCK_T programs of a block of tokens
    each read a token's g_HE of one side. They write its active keys in ascending order, keys_2TE (rest unwritten), and
    their number, count_2T. Each other program has some rows of one key. It reads the key's gates and ends unless a
    token uses the key. Otherwise it reads the rows of u_PD once and writes hidden_STEM for the tokens that use the key
    (rest unwritten).
    """
    ROWS: tl.constexpr = (M + BLOCK_M - 1) // BLOCK_M
    program = tl.program_id(0)
    first = tl.program_id(1) * BLOCK_T
    if program < 2 * BLOCK_T:
        side, t = program // BLOCK_T, (first + program % BLOCK_T).to(tl.int64)
        if t < T:
            g_ptr = g1_ptr
            if side == 1:
                g_ptr = g2_ptr
            e = tl.arange(0, BLOCK_E)
            active = tl.zeros((BLOCK_E,), tl.int32)
            for h in tl.static_range(H):
                g = tl.load(g_ptr + (t * H + h) * E + e, mask=e < E, other=0.0)
                active = active | (g != 0.0).to(tl.int32)
            place = tl.cumsum(active, 0) - active
            tl.store(keys_ptr + (side * T + t) * E + place, e, mask=active != 0)
            tl.store(count_ptr + side * T + t, tl.sum(active, 0))
    else:
        program -= 2 * BLOCK_T
        side, e = 0, program // ROWS
        g_ptr, u_ptr, bias_ptr = g1_ptr, u1_ptr, bias1_ptr
        if SIDES == 2:
            side, e = e // E, e % E
            if side == 1:
                g_ptr, u_ptr, bias_ptr = g2_ptr, u2_ptr, bias2_ptr
        n, h = tl.arange(0, BLOCK_T), tl.arange(0, BLOCK_H)
        at_TH = (first + n < T)[:, None] & (h < H)[None, :]
        g_TH = tl.load(g_ptr + ((first + n).to(tl.int64)[:, None] * H + h[None, :]) * E + e, mask=at_TH, other=0.0)
        active_T = tl.max((g_TH != 0.0).to(tl.int32), 1)
        if tl.max(active_T, 0) > 0:
            m = program % ROWS * BLOCK_M + tl.arange(0, BLOCK_M)
            row = e.to(tl.int64) * M + m
            bias = tl.load(bias_ptr + row, mask=m < M, other=0.0).to(tl.float32)
            for chosen in range(BLOCK_T):
                if tl.sum(tl.where(n == chosen, active_T, 0), 0) > 0:
                    t = (first + chosen).to(tl.int64)
                    sum_MD = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
                    for start in tl.static_range(0, D, BLOCK_D):
                        d = start + tl.arange(0, BLOCK_D)
                        x = tl.load(x_ptr + t * D + d, mask=d < D, other=0.0).to(tl.float32)
                        at_MD = (m < M)[:, None] & (d < D)[None, :]
                        u = tl.load(u_ptr + row[:, None] * D + d[None, :], mask=at_MD, other=0.0).to(tl.float32)
                        sum_MD += u * x[None, :]
                    hidden = activate(tl.sum(sum_MD, 1) + bias, ACT)
                    tl.store(hidden_ptr + (side * T + t) * E * M + row, hidden, mask=m < M)


@triton.jit
def mix_kernel(
    g1_ptr, g2_ptr, hidden_ptr, keys_ptr, count_ptr, keep_ptr, mask_ptr, mixed_ptr, share_ptr, T, S,
    E: tl.constexpr, M: tl.constexpr, H: tl.constexpr, SIDES: tl.constexpr, PROGRAMS: tl.constexpr,
    BLOCK_U: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_H: tl.constexpr,
    MASKED: tl.constexpr, PER_TOKEN: tl.constexpr,
):  # fmt: skip
    """For each key of the own side that a token uses: the sum of its weights, and the mixed hidden units.

    Grid: (SIDES PROGRAMS, T); the programs of a token alternate over the entries of its list. Each program reads the
    gates and hidden units of the other side's active keys, and under a mask the pairs' keep-weights. It writes
    mixed_STEM and share_STE, both in the order of the list (rest unwritten).
    """
    program, t = tl.program_id(0), tl.program_id(1).to(tl.int64)
    own, own_ptr, other_ptr = 1, g2_ptr, g1_ptr
    result = 0
    if SIDES == 2:
        own = program // PROGRAMS
        result = own
        if own == 0:
            own_ptr, other_ptr = g1_ptr, g2_ptr
    other = 1 - own
    hidden_ptr += ((SIDES - 1) * other * T + t) * E * M
    own_ptr += t * H * E
    other_ptr += t * H * E
    own_keys_ptr, other_keys_ptr = keys_ptr + (own * T + t) * E, keys_ptr + (other * T + t) * E
    num_own, num_other = tl.load(count_ptr + own * T + t), tl.load(count_ptr + other * T + t)
    # keep_SEE has the first keys as its rows
    own_stride, other_stride = 1, E
    if own == 0:
        own_stride, other_stride = E, 1
    is_exempt, scale = False, 1.0
    if PER_TOKEN:
        mask = tl.load(mask_ptr + t)
        is_exempt = mask < 0
        # A number beyond the last mask must not be taken for a valid one: its weights become NaN.
        scale = tl.where(mask < S, 1.0, float("nan"))
        keep_ptr += tl.where((mask < 0) | (mask >= S), 0, mask) * E * E
    h, m = tl.arange(0, BLOCK_H), tl.arange(0, BLOCK_M)
    for place in range(program % PROGRAMS, num_own, PROGRAMS):
        key = tl.load(own_keys_ptr + place)
        g_H = tl.load(own_ptr + h * E + key, mask=h < H, other=0.0).to(tl.float32)
        mixed, share = tl.zeros((BLOCK_M,), tl.float32), tl.zeros((), tl.float32)
        for start in range(0, num_other, BLOCK_U):
            u = start + tl.arange(0, BLOCK_U)
            keys = tl.load(other_keys_ptr + u, mask=u < num_other, other=0)
            at_UH = (u < num_other)[:, None] & (h < H)[None, :]
            g_UH = tl.load(other_ptr + h[None, :] * E + keys[:, None], mask=at_UH, other=0.0).to(tl.float32)
            w = tl.sum(g_UH * g_H[None, :], 1)
            if MASKED:
                kept = tl.load(keep_ptr + keys * other_stride + key * own_stride, mask=u < num_other, other=0)
                w *= scale * tl.where(is_exempt, 1.0, kept.to(tl.float32))
                share += tl.sum(w, 0)
            at_UM = (u < num_other)[:, None] & (m < M)[None, :]
            a_UM = tl.load(hidden_ptr + keys[:, None] * M + m[None, :], mask=at_UM, other=0.0)
            mixed += tl.sum(w[:, None] * a_UM, 0)
        # Without a mask, each row of the other side's gates sums to one.
        share = tl.where(is_exempt, tl.sum(g_H, 0), share) if MASKED else tl.sum(g_H, 0)
        at = (result * T + t) * E + place
        tl.store(mixed_ptr + at * M + m, mixed, mask=m < M)
        tl.store(share_ptr + at, share)


@triton.jit
def output_kernel(
    hidden_ptr, mixed_ptr, share_ptr, keys_ptr, count_ptr, v11_ptr, v12_ptr, v21_ptr, v22_ptr, b1_ptr, b2_ptr, out_ptr,
    T,
    E: tl.constexpr, M: tl.constexpr, W: tl.constexpr, SIDES: tl.constexpr, ROW: tl.constexpr, COLUMN: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Some output columns of one token, from the rows of its active keys.

    Grid: (SIDES cdiv(W, BLOCK_D), T); W is the width of a side's results, the left or right half in the vertical form.
    Reads mixed_STEM and share_STE, the keys' rows of b_EW, and the weights (E M, W) with strides ROW and COLUMN. In the
    vertical form it also reads hidden_STEM. Writes out_TD. The horizontal form's weight is v12.
    """
    BLOCKS: tl.constexpr = (W + BLOCK_D - 1) // BLOCK_D
    program, t = tl.program_id(0), tl.program_id(1).to(tl.int64)
    own, result = 1, 0
    v_mixed_ptr, v_own_ptr, b_ptr = v12_ptr, v11_ptr, b1_ptr
    if SIDES == 2:
        own = program // BLOCKS
        result = own
        if own == 1:
            v_mixed_ptr, v_own_ptr, b_ptr = v21_ptr, v22_ptr, b2_ptr
    start_of_results = (result * T + t) * E
    mixed_ptr += start_of_results * M
    hidden_ptr += start_of_results * M
    share_ptr += start_of_results
    keys_ptr += (own * T + t) * E
    num_keys = tl.load(count_ptr + own * T + t)
    d, m = program % BLOCKS * BLOCK_D + tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_M)
    in_d = (d < W)[None, :]
    columns = m[None, :, None] * ROW + d[None, None, :] * COLUMN
    sum_KMD = tl.zeros((BLOCK_K, BLOCK_M, BLOCK_D), tl.float32)
    sum_KD = tl.zeros((BLOCK_K, BLOCK_D), tl.float32)
    for start in range(0, num_keys, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        in_k = k < num_keys
        keys = tl.load(keys_ptr + k, mask=in_k, other=0).to(tl.int64)
        at_KM = in_k[:, None] & (m < M)[None, :]
        at_KMD = at_KM[:, :, None] & in_d[None, :, :]
        weights = keys[:, None, None] * (M * ROW) + columns
        mixed = tl.load(mixed_ptr + k[:, None] * M + m[None, :], mask=at_KM, other=0.0)
        share = tl.load(share_ptr + k, mask=in_k, other=0.0)
        v = tl.load(v_mixed_ptr + weights, mask=at_KMD, other=0.0)
        sum_KMD += mixed[:, :, None] * v.to(tl.float32)
        if SIDES == 2:
            hidden = tl.load(hidden_ptr + keys[:, None] * M + m[None, :], mask=at_KM, other=0.0) * share[:, None]
            v = tl.load(v_own_ptr + weights, mask=at_KMD, other=0.0)
            sum_KMD += hidden[:, :, None] * v.to(tl.float32)
        b = tl.load(b_ptr + keys[:, None] * W + d[None, :], mask=in_k[:, None] & in_d, other=0.0)
        sum_KD += share[:, None] * b.to(tl.float32)
    out = tl.sum(tl.sum(sum_KMD, 0), 0) + tl.sum(sum_KD, 0)
    tl.store(out_ptr + t * (SIDES * W) + result * W + d, out.to(out_ptr.dtype.element_ty), mask=d < W)
