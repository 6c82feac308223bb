"""A case for ahead-of-time compilation: a kernel with the types and constants of one launch."""

from __future__ import annotations

from typing import Any, NamedTuple


class AotCase(NamedTuple):
    """One launch of one kernel, as `benchmarks.aot` compiles it without a GPU.

    name: label in the table of results and key of the case's limits.
    kernel: the Triton function.
    signature: Triton types of the runtime arguments, such as "*bf16" or "i32".
    constants: values of the constexpr arguments.
    divisible_by_16: runtime arguments that Triton would find divisible by 16 (aligned pointers, strides).
    """

    name: str
    kernel: Any
    signature: dict[str, str]
    constants: dict[str, Any]
    num_warps: int = 4
    num_stages: int = 2
    divisible_by_16: tuple[str, ...] = ()
