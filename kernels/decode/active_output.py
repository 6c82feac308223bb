"""The output projections of a layer that stays dense, over active keys alone: in training they are a sixth of a step.

Mixed arrays are exactly zero at inactive keys, so leaving those out changes the order of a sum and nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from monet.kernels.decode.build import has_cpp
from monet.kernels.decode.choice import SMALLEST_LAYER, onednn_products
from monet.kernels.decode.op import count_active

# Active (token, key) pairs among all up to which it pays. Time over the dense product's (E = 512, M = 16, D = 2048,
# float32, AVX-512, T = 16 .. 512): share .12 .39 .. .54, share .2 .55 .. .77, share .3 .75 .. .87, share .4 .89 .. 1.3.
# oneDNN's dense product takes half that time, so that nothing is won beside it.
LARGEST_SHARE = 0.3


def reads_active_rows(gates_THE: Sequence[Tensor], weights: Sequence[Tensor]) -> bool:
    """Whether `project_active` is the faster one, which holds for float32 weights read in place, on the CPU.

    Args:
        gates_THE: routing probabilities of both sides.
        weights: of the output projections.
    """
    tensors = [*gates_THE, *weights]
    # Subclasses (sharded, fake tensors) have their own idea of a product.
    if not all(type(tensor) in (Tensor, nn.Parameter) and tensor.device.type == "cpu" for tensor in tensors):
        return False
    if any(weight.dtype != torch.float32 for weight in weights) or torch._C._are_functorch_transforms_active():
        return False
    if os.environ.get("MONET_DECODE") == "dense" or os.environ.get("MONET_KERNELS") == "triton":
        return False
    if sum(weight.numel() for weight in weights) < SMALLEST_LAYER or onednn_products() or not has_cpp():
        return False
    T, _, E = gates_THE[0].shape
    return sum(count_active(gate_THE) for gate_THE in gates_THE) <= len(gates_THE) * LARGEST_SHARE * T * E


def project_active(mixed: Sequence[Tensor], weights_PD: Sequence[Tensor], starts: Sequence[int]) -> Tensor:
    """Sum of the products of mixed arrays, (T, E, M) or (T, E), with weights (E*M, columns) from a first column on."""
    width = max(start + weight.shape[1] for start, weight in zip(starts, weights_PD, strict=True))
    values_TEM = [x if x.dim() == 3 else x[..., None] for x in mixed]
    return torch.ops.monet.active_sum(values_TEM, list(weights_PD), list(starts), width)
