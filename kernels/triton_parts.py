"""Shared parts of the Triton mixings: activations by number with their slopes, tiles, the dtype of products."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

DOT_DTYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


def tile(size: int) -> int:
    """Edge of a tile that holds `size` values and that a matrix product accepts."""
    return max(16, triton.next_power_of_2(size))


@triton.jit
def activate(p, ACT: tl.constexpr):
    """Activation in float32."""
    p = p.to(tl.float32)
    if ACT == 1:
        r = tl.maximum(p, 0.0, propagate_nan=tl.PropagateNan.ALL)
        return r * r
    elif ACT == 2:
        return tl.maximum(p, 0.0, propagate_nan=tl.PropagateNan.ALL)
    elif ACT == 3:
        return p / (1.0 + tl.exp(-p))
    else:
        return p


@triton.jit
def slope(p, ACT: tl.constexpr):
    """Derivative of `activate`, in float32."""
    p = p.to(tl.float32)
    if ACT == 1:
        return 2.0 * tl.maximum(p, 0.0, propagate_nan=tl.PropagateNan.ALL)
    elif ACT == 2:
        return tl.where(p > 0.0, 1.0, 0.0)
    elif ACT == 3:
        s = 1.0 / (1.0 + tl.exp(-p))
        return s * (1.0 + p * (1.0 - s))
    else:
        return tl.full(p.shape, 1.0, tl.float32)
