"""Matrix products on the CPU: uses oneDNN where torch's own products are slow."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn

from monet.kernels import limits

CPUINFO = Path("/proc/cpuinfo")
# Largest relative root-mean-square error for a float32 product; bfloat16 arithmetic has about 3e-3.
FLOAT32_ERROR = 1e-6


def product(a_MK: Tensor, b_KN: Tensor) -> Tensor:
    """a @ b, for any strides, without a gradient.

    torch uses MKL for float32 products on the CPU, and MKL does not use AVX-512 on processors that are not Intel's.
    oneDNN does, and takes about half the time there. torch calls oneDNN in the operator that its compiler uses for
    linear layers. If an operand is some columns of wider rows, it is copied first.
    """
    if takes_onednn(a_MK, b_KN):
        return torch.ops.mkldnn._linear_pointwise(_dense(a_MK), _dense(b_KN).t(), None, "none", [], "")
    return torch.mm(a_MK, b_KN)


def _dense(matrix: Tensor) -> Tensor:
    """The matrix without gaps between its rows or columns; with gaps oneDNN runs its slowest code."""
    return matrix if matrix.is_contiguous() or matrix.t().is_contiguous() else matrix.contiguous()


def takes_onednn(a_MK: Tensor, b_KN: Tensor) -> bool:
    """Whether `product` sends these two matrices to oneDNN by a detour."""
    if a_MK.device.type != "cpu" or a_MK.dtype != torch.float32 or b_KN.dtype != torch.float32:
        return False
    if a_MK.shape[0] * a_MK.shape[1] * b_KN.shape[1] < limits.ONEDNN_FROM_PRODUCTS or torch.compiler.is_compiling():
        return False
    if not all(type(tensor) in (Tensor, nn.Parameter) for tensor in (a_MK, b_KN)) or onednn_products():
        return False
    return not torch._C._are_functorch_transforms_active() and has_onednn_detour()


def onednn_products() -> bool:
    """Whether torch uses oneDNN for all float32 products on the CPU (see `monet.cpu`)."""
    try:
        return torch.get_float32_matmul_precision() == "medium"
    except RuntimeError:  # set through torch's newer names, one backend at a time
        return torch.backends.mkldnn.matmul.fp32_precision == "bf16"  # type: ignore[attr-defined]


@lru_cache(maxsize=1)
def has_onednn_detour() -> bool:
    """Whether oneDNN's operator exists, is useful on this processor, and has full float32 accuracy."""
    if not mkl_is_slow():
        return False
    try:
        return is_float32(lambda a, b: torch.ops.mkldnn._linear_pointwise(a, b.t(), None, "none", [], ""))
    except (AttributeError, RuntimeError):  # another version of torch's operator
        return False


@lru_cache(maxsize=1)
def mkl_is_slow() -> bool:
    """Whether torch multiplies with MKL on an AVX-512 processor that is not Intel's, and could use oneDNN instead."""
    if not torch.backends.mkl.is_available() or not torch.backends.mkldnn.is_available() or not CPUINFO.exists():
        return False
    processor = CPUINFO.read_text(encoding="utf-8", errors="replace")
    return "avx512f" in processor and "GenuineIntel" not in processor


def is_float32(multiply: Callable[[Tensor, Tensor], Tensor]) -> bool:
    """Whether `multiply` computes a product of float32 matrices with float32 accuracy."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(256, 256, generator=generator) for _ in range(2))
    exact = a.double() @ b.double()
    error = (multiply(a, b).double() - exact).norm() / exact.norm()
    return bool(error < FLOAT32_ERROR)
