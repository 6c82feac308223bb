"""Settings that make torch quicker on a CPU. Programs call this; a library leaves its user's process alone."""

from __future__ import annotations

import ctypes
import logging
from pathlib import Path

import torch

log = logging.getLogger(__name__)

# Relative root-mean-square error a float32 product may have; bfloat16 arithmetic has about 3e-3.
_FLOAT32_ERROR = 1e-6
_CPUINFO = Path("/proc/cpuinfo")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_LARGEST_MMAP_THRESHOLD = 32 << 20  # glibc takes no more


def speed_up_cpu() -> None:
    """Take oneDNN's products where they are exact and quicker, and keep freed memory in the process."""
    products, memory = use_onednn_products(), keep_freed_memory()
    log.info(
        "float32 products by %s; freed memory is %s", "oneDNN" if products else "BLAS", "kept" if memory else "not kept"
    )


def use_onednn_products() -> bool:
    """Have torch's float32 matrix products computed by oneDNN, if it does so in float32.

    torch's BLAS, Intel's MKL, does not use AVX-512 on other makers' processors, where oneDNN takes about half its time.
    torch hands float32 products over once the precision "medium" allows bfloat16 arithmetic. oneDNN makes no use of
    that permission except with matrix extensions (AMX), so a product is compared with float64 here, and the permission
    is taken back if it was used.

    Returns:
        Whether oneDNN computes the products from now on.
    """
    if not torch.backends.mkldnn.is_available() or "GenuineIntel" in _processor():
        return False
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    if products_are_float32():
        return True
    torch.set_float32_matmul_precision(before)
    return False


def products_are_float32() -> bool:
    """Whether a product of float32 matrices has float32's accuracy."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(256, 256, generator=generator) for _ in range(2))
    exact = a.double() @ b.double()
    error = ((a @ b).double() - exact).norm() / exact.norm()
    return bool(error < _FLOAT32_ERROR)


def keep_freed_memory() -> bool:
    """Have glibc keep what a training step frees for the next, instead of returning it and faulting it in again.

    Returns:
        Whether it does; other C libraries are left as they are.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)) and bool(mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))


def _processor() -> str:
    return _CPUINFO.read_text(encoding="utf-8", errors="replace") if _CPUINFO.exists() else ""
