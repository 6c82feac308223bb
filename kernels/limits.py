"""How much the plain torch code does at a time; tests shrink these numbers to reach every border with small arrays.

Read them as `limits.NAME` when they are needed, so that a changed number counts.
"""

from __future__ import annotations

# Elements of the pair tensor that exist at once; 2^22 float32 values are 16 MiB.
PAIR_ELEMENTS = 1 << 22
# Elements of one hidden array that the CPU processes at a time. This limits temporary memory, while the projections'
# matrix products stay large enough to be efficient.
GEMM_ELEMENTS = 1 << 22
# Elements of one hidden array that an unmasked backward processes at a time, so that its many temporaries stay in the
# cache.
CACHE_ELEMENTS = 1 << 18
# Logits that the CPU compares, masks and normalises at a time, or whose moments it computes, so that they stay in the
# last-level cache.
LOGIT_ELEMENTS = 1 << 19
# Pre-activations from which a layer keeps only its inputs for backward. With fewer, recomputing saves nothing, and
# plain autograd is faster.
LEAN_FROM_ELEMENTS = 1 << 16
# Multiply-adds of a product from which the detour through oneDNN pays off.
ONEDNN_FROM_PRODUCTS = 1 << 20
