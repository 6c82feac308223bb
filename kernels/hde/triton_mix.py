"""Horizontal mixing in Triton."""

from __future__ import annotations

from monet.kernels.hde.triton_kernels import (
    masked_mix_backward_kernel,
    masked_mix_kernel,
    mix_backward_kernel,
    mix_kernel,
)
from monet.kernels.triton_mixing import Kernels, aot_cases, triton_mixing

KERNELS = Kernels(
    name="horizontal_mixing", num_hidden=1, wide_results=1, narrow_results=1,
    mix=mix_kernel, mix_backward=mix_backward_kernel,
    masked_mix=masked_mix_kernel, masked_mix_backward=masked_mix_backward_kernel,
)  # fmt: skip
AOT = aot_cases(KERNELS)
mixing = triton_mixing(KERNELS)
