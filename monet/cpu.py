"""Settings that make torch faster on a CPU. Only programs call this; the library does not change its user's process."""

from __future__ import annotations

import ctypes
import logging

import torch

from monet.kernels.products import is_float32, mkl_is_slow

log = logging.getLogger(__name__)

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # from glibc's malloc.h
_LARGEST_MMAP_THRESHOLD = 32 << 20  # the largest value that glibc accepts


def speed_up_cpu() -> None:
    """Use oneDNN's products if they are exact and faster, and keep freed memory in the process."""
    products, memory = use_onednn_products(), keep_freed_memory()
    log.info(
        "float32 products by %s; freed memory is %s", "oneDNN" if products else "BLAS", "kept" if memory else "not kept"
    )


def use_onednn_products() -> bool:
    """Make oneDNN compute torch's float32 matrix products, if it does so in float32.

    torch's BLAS, Intel's MKL, does not use AVX-512 on other makers' processors, where oneDNN takes about half the time.
    torch uses oneDNN for float32 products only if the precision "medium" permits bfloat16 arithmetic. oneDNN uses
    this permission only with matrix extensions (AMX). So this function compares a product with float64, and revokes
    the permission if the product was less exact.

    Returns:
        Whether oneDNN computes the products from now on.
    """
    if not mkl_is_slow():
        return False
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:  # someone chose a precision for each backend: keep their choice
        return False
    torch.set_float32_matmul_precision("medium")
    if is_float32(torch.mm):
        return True
    torch.set_float32_matmul_precision(before)
    return False


def keep_freed_memory() -> bool:
    """Make glibc keep memory that a training step frees, instead of returning it and faulting it in again.

    Returns:
        Whether glibc does so; other C libraries are left unchanged.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)) and bool(mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
