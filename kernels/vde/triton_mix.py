"""Vertical mixing in Triton."""

from __future__ import annotations

from monet.kernels.triton_mixing import Kernels, aot_cases, triton_mixing
from monet.kernels.vde.triton_kernels import mix_backward_kernel, mix_kernel
from monet.kernels.vde.triton_masked import masked_mix_backward_kernel, masked_mix_kernel

KERNELS = Kernels(
    name="vertical_mixing", num_hidden=2, wide_results=4, narrow_results=2,
    mix=mix_kernel, mix_backward=mix_backward_kernel,
    masked_mix=masked_mix_kernel, masked_mix_backward=masked_mix_backward_kernel,
)  # fmt: skip
AOT = aot_cases(KERNELS)
mixing = triton_mixing(KERNELS)
