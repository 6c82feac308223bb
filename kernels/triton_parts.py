"""What the Triton mixings share: activations with their slopes, launch parameters, the number format of products."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from monet.kernels.mixing import Activation

# What the kernels compute themselves, by the class transformers' ACT2FN holds; any other activation is applied by
# torch before the kernel and differentiated by autograd after it.
IDENTITY, RELU2, RELU, SILU = range(4)
_FUSED = {"ReLUSquaredActivation": RELU2, "ReLU": RELU, "SiLUActivation": SILU, "SiLU": SILU}

DOT_DTYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


def fused_activation(activation: Activation) -> int | None:
    """The kernels' own number of an activation; None for others, and for one whose call a hook watches."""
    if getattr(activation, "_forward_hooks", None) or getattr(activation, "_forward_pre_hooks", None):
        return None
    return _FUSED.get(type(activation).__name__)


def tile(size: int) -> int:
    """The edge of a tile that holds `size` values and that a matrix product takes."""
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
