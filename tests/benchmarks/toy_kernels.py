"""Kernels for the tests of benchmarks/aot.py, in a module like those in its list."""

from __future__ import annotations

import triton
import triton.language as tl

from monet.kernels.aot_case import AotCase


@triton.jit
def scale(x_ptr, out_ptr, factor, N, BLOCK: tl.constexpr):
    o_n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_ptr + o_n, tl.load(x_ptr + o_n, mask=o_n < N) * factor, mask=o_n < N)


@triton.jit
def product(x_ptr, out_ptr, SIDE: tl.constexpr):
    o = tl.arange(0, SIDE)[:, None] * SIDE + tl.arange(0, SIDE)[None, :]
    x = tl.load(x_ptr + o)
    tl.store(out_ptr + o, tl.dot(x, x).to(x.dtype))


@triton.jit
def centred(x_ptr, out_ptr, BLOCK: tl.constexpr):
    o_n = tl.arange(0, BLOCK)
    x_n = tl.load(x_ptr + o_n)
    tl.store(out_ptr + o_n, x_n - tl.sum(x_n, 0))


SCALE = AotCase(
    "scale fp32",
    scale,
    {"x_ptr": "*fp32", "out_ptr": "*fp32", "factor": "fp32", "N": "i32"},
    {"BLOCK": 1024},
    num_warps=2,
    divisible_by_16=("x_ptr", "out_ptr"),
)
PRODUCT = AotCase("product bf16", product, {"x_ptr": "*bf16", "out_ptr": "*bf16"}, {"SIDE": 64})
# The row needs 256 registers of each thread, more than a thread has.
SPILLING = AotCase("row spilling", centred, {"x_ptr": "*fp32", "out_ptr": "*fp32"}, {"BLOCK": 8192}, num_warps=1)

AOT = [SCALE, PRODUCT]
