"""Settings that make torch quicker on a CPU. Programs call this; a library leaves its user's process alone."""

from __future__ import annotations

import ctypes
import logging

import torch

from monet.kernels.products import is_float32, mkl_is_slow

log = logging.getLogger(__name__)

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
    if not mkl_is_slow():
        return False
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:  # somebody chose a precision for each backend: theirs it is
        return False
    torch.set_float32_matmul_precision("medium")
    if is_float32(torch.mm):
        return True
    torch.set_float32_matmul_precision(before)
    return False


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
