"""Lists of each token's active keys on a GPU; the masked kernels read these lists instead of all keys."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from monet.kernels.aot_case import AotCase
from monet.kernels.shared import GateFacts

# Keys fit in int16 while there are fewer than 2^15 a side, far more than any product-key model has.
MAX_KEYS = 1 << 15


@triton.jit
def active_keys_kernel(g_ptr, idx_ptr, count_ptr, H: tl.constexpr, E: tl.constexpr, BLOCK_E: tl.constexpr):
    """One program per token: reads g_THE, writes the keys active in any head in ascending order, and their number."""
    t = tl.program_id(0).to(tl.int64)
    e = tl.arange(0, BLOCK_E)
    active = tl.zeros((BLOCK_E,), tl.int32)
    for h in range(H):
        g = tl.load(g_ptr + t * H * E + h * E + e, mask=e < E, other=0.0)
        active = active | (g != 0.0).to(tl.int32)
    place = tl.cumsum(active, 0) - active
    tl.store(idx_ptr + t * E + place, e.to(tl.int16), mask=active != 0)
    tl.store(count_ptr + t, tl.sum(active, 0))


def active_keys(g_THE: Tensor, facts: GateFacts | None = None) -> tuple[Tensor, Tensor]:
    """List the keys whose probability is not zero in at least one head.

    Args:
        g_THE: routing probabilities, contiguous.
        facts: what is known about g_THE; it holds the lists for the other layers of the routing group. If None, the
            lists are computed.
    Returns:
        idx_TE int16, where only the first count_T entries of each row are written, and count_T int32.
    Raises:
        ValueError: E is too large for the lists' int16.
    """
    T, H, E = g_THE.shape
    if facts is not None and facts.active_keys is not None:
        return facts.active_keys
    if E > MAX_KEYS:
        raise ValueError(
            f"g_THE has {E} keys, but GPU masks take at most {MAX_KEYS}; set MONET_KERNELS=torch to use plain torch"
        )
    idx_TE = torch.empty(T, E, dtype=torch.int16, device=g_THE.device)
    count_T = torch.empty(T, dtype=torch.int32, device=g_THE.device)
    if T:
        active_keys_kernel[(T,)](g_THE, idx_TE, count_T, H, E, triton.next_power_of_2(E), num_warps=4)  # type: ignore
    if facts is not None:
        facts.active_keys = (idx_TE, count_T)
    return idx_TE, count_T


AOT = [
    AotCase(
        f"active_keys {dtype}",
        active_keys_kernel,
        {"g_ptr": f"*{dtype}", "idx_ptr": "*i16", "count_ptr": "*i32"},
        {"H": 8, "E": 512, "BLOCK_E": 512},
        divisible_by_16=("g_ptr", "idx_ptr", "count_ptr"),
    )
    for dtype in ("bf16", "fp32")
]
