"""Decides when an expert layer reads only active keys, and which form of the output weights it then reads.

`MONET_DECODE` in the environment overrides the choice: `auto` (default), `dense` or `sparse`. Sparse layers are for
inference. If a gradient is needed, or a weight is not in plain memory, the layer stays dense in every mode.

On the CPU the layer reads a transposed copy of each output weight, in which an expert's rows are contiguous. The weight
itself keeps the shape of the checkpoint. Copies are made at first use and add about a quarter of the model's memory.
`MONET_DECODE_COPY=0` reads the weights in place instead, at as little as a quarter of the speed. A copy is refreshed
when its weight changes: when torch has counted a change; after `train()`, a move or a load; and when sampled entries
differ, as they do after writing to `.data`.

On a GPU there are no copies: a captured CUDA graph would continue to read them after they are outdated or freed, and
comparing entries would wait for the device. The layer reads the weight in place, in its present memory layout.
`monet.model.experts.lay_out_for_decoding` transposes the memory once, so that an expert's rows are contiguous.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from monet.kernels.checks import is_watched
from monet.kernels.decode.build import has_cpp
from monet.kernels.decode.op import count_active, is_transposed
from monet.kernels.dispatch import backend
from monet.kernels.products import mkl_is_slow, onednn_products

# The largest number of tokens, and the largest share of (token, key) pairs, at which the sparse layer is faster: with
# copies and in place. Measured with the C++ of this folder (E = 512, M = 16, D = 2048, AVX-512): sparse / dense time.
#                            share .12 (k = 8)    share .40 (k = 32)   share .65 (k = 64)
#   float32, copies,   T=1   .17 .. .21           .35 .. .38           .46 .. .48
#                      T=4   .38 .. .45           .72 .. .84           .88 .. .97
#                      T>4   .43 .. .69           .96 .. 1.6           1.3 .. 2.5
#   float32, in place, T=1   .21 .. .37           .40 .. .66           .44 .. .95
#                      T=4   .53 .. .57           1.0                  1.2
#                      T>4   .62 .. .86           1.2 .. 1.9           1.5 .. 4.0
#   bfloat16, copies,  T=1   .14 .. .17           .46 .. .52
#                      T=2   .29 .. .34           .75 .. .92
#                      T=4   .47 .. .60           1.1 .. 1.3
#                      T=16  .82 .. 1.1           1.3 .. 1.8
#   bfloat16, in place, T=1  .30 .. .65           .53 .. 1.8
#                       T=2  .54 .. .70           1.3 .. 1.9
#                       T=4  .90 .. 1.2           1.9 .. 2.6
Limits = tuple[tuple[int, float], ...]
LIMITS: dict[tuple[torch.dtype, bool], Limits] = {
    (torch.float32, True): ((1, 0.9), (4, 0.5), (1 << 62, 0.2)),
    (torch.float32, False): ((1, 0.5), (4, 0.3), (1 << 62, 0.15)),
    (torch.bfloat16, True): ((1, 0.6), (2, 0.35), (4, 0.25)),
    (torch.bfloat16, False): ((1, 0.2), (2, 0.15)),
}
# The same ratios where a slow MKL computes the dense layer's first products (see `monet.kernels.products`). With
# copies: .16 .. .40 (k = 8), .34 .. .76 (k = 32), and for k = 64 .47 .. .52 up to four tokens and .72 .. 1.05 beyond.
# In place: .15 .. .54 (k = 8), .45 .. .63 and .78 .. 1.3 (k = 32), .59 .. .93 and 1.0 .. 2.1 (k = 64).
LIMITS_SLOW_MKL: dict[tuple[torch.dtype, bool], Limits] = {
    (torch.float32, True): ((4, 0.9), (1 << 62, 0.5)),
    (torch.float32, False): ((4, 0.65), (1 << 62, 0.25)),
}
# Plain torch copies the gathered rows, which pays off only for one token with few keys.
LIMITS_WITHOUT_CPP: Limits = ((1, 0.15),)
# On a GPU the choice must not read any values: the host would wait, and a CUDA graph could not hold the layer. The
# share of active keys is therefore the router's target, 1 - (1 - k / E)^H. The limits are the most rows that may be
# read, summed over tokens, as a share of all rows. They come from a model and were not measured on a GPU. Contiguous
# rows are read at the bandwidth of the whole weight, and the work around the products takes as long as in the dense
# layer. A limit of half of all rows leaves room for routers that fire more often than their target: at k = 8
# (share .12) up to four tokens, at k = 32 (share .40) one. In place, a row of 16 two-byte units is scattered over
# pieces of 32 bytes (one sector each) and a row of 8 units over halves of sectors, so twice the bytes may move.
GPU_LIMIT_ROWS, GPU_LIMIT_IN_PLACE = 0.5, 0.25
# torch.compile must not read values. For one token, reading every key in place is no slower in float32.
COMPILED_TOKENS = 1
# Elements of the first weights. In a smaller layer the products take less time than the work around them. With 2^20
# elements and T=64 the sparse layer takes .9 (horizontal) to 1.4 (vertical) of the dense layer's time; with 2^21,
# it takes .5 to .8.
SMALLEST_LAYER = 1 << 21

_CHOICES = ("auto", "dense", "sparse")


def is_sparse(
    x_TD: Tensor,
    g1_THE: Tensor,
    g2_THE: Tensor,
    linears: Sequence[nn.Module],
    projections: Sequence[Tensor],
    biases: Sequence[Tensor],
    topk: int,
) -> bool:
    """Whether the layer should read only active keys.

    Args:
        x_TD: states of T tokens.
        g1_THE, g2_THE: routing probabilities.
        linears: the modules of the first weights; the sparse layer does not call them.
        projections, biases: all other weights.
        topk: number of keys a side that the router targets for each head.
    Raises:
        ValueError: `MONET_DECODE` has an unknown value.
    """
    wanted = os.environ.get("MONET_DECODE", "auto")
    if wanted not in _CHOICES:
        raise ValueError(f"MONET_DECODE={wanted!r}; set it to one of {', '.join(_CHOICES)}")
    if wanted == "dense" or x_TD.shape[0] == 0 or not is_inference(x_TD, linears, [*projections, *biases]):
        return False
    if wanted == "sparse":
        return True
    if sum(linear.weight.numel() for linear in linears) < SMALLEST_LAYER:  # type: ignore[union-attr]
        return False
    if x_TD.device.type == "cuda":
        return _is_sparse_on_gpu(x_TD, g1_THE, projections, topk)
    key = (x_TD.dtype, _with_copies())
    if x_TD.device.type != "cpu" or key not in LIMITS or os.environ.get("MONET_KERNELS") == "triton":
        return False
    if torch.compiler.is_compiling():
        return x_TD.shape[0] <= COMPILED_TOKENS and x_TD.dtype == torch.float32 and _compiled_has_cpp()
    T, _, E = g1_THE.shape
    slow = mkl_is_slow() and not onednn_products()
    limits = (LIMITS | LIMITS_SLOW_MKL if slow else LIMITS)[key] if has_cpp() else LIMITS_WITHOUT_CPP
    limit = next((limit for tokens, limit in limits if tokens >= T), 0.0)
    return limit > 0 and count_active(g1_THE) + count_active(g2_THE) <= 2 * limit * T * E


def _is_sparse_on_gpu(x_TD: Tensor, g1_THE: Tensor, projections: Sequence[Tensor], topk: int) -> bool:
    T, H, E = g1_THE.shape
    in_rows = all(projection_DP.stride(0) == 1 for projection_DP in projections)
    limit = GPU_LIMIT_ROWS if in_rows else GPU_LIMIT_IN_PLACE
    # In plain torch the layer would have to wait for the device.
    return T * (1 - (1 - topk / E) ** H) <= limit and backend("active_experts", x_TD) == "triton"


@torch.compiler.assume_constant_result
def _compiled_has_cpp() -> bool:
    # This is called while a graph is traced: the compiler must not trace into a build.
    return has_cpp()


def is_inference(x_TD: Tensor, linears: Sequence[nn.Module], weights: Sequence[Tensor]) -> bool:
    """Whether a layer computes without gradients, hooks and other replacements, so that its weights may be read."""
    compiling = torch.compiler.is_compiling()
    everything = [x_TD, *weights]
    for linear in linears:
        # A module that is replaced, wrapped or hooked must be called.
        if type(linear) is not nn.Linear or linear.bias is None or is_watched(linear):
            return False
        everything += [linear.weight, linear.bias]
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in everything):
        return False
    if torch.is_autocast_enabled(x_TD.device.type):
        return False
    # A weight that is partitioned over ranks is empty on this rank.
    if any(tensor.numel() == 0 or tensor.dtype != x_TD.dtype or tensor.device != x_TD.device for tensor in everything):
        return False
    if compiling:
        return True
    if forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active():
        return False
    # Tensor subclasses (quantised, sharded, fake tensors) implement a linear in their own way.
    return all(type(tensor) in (Tensor, nn.Parameter) for tensor in everything)


class _Copy(NamedTuple):
    source: Any  # weak reference
    pointer: int
    version: int
    rows_PD: Tensor


def _with_copies() -> bool:
    wanted = os.environ.get("MONET_DECODE_COPY", "1")
    if wanted not in ("0", "1"):
        raise ValueError(f"MONET_DECODE_COPY={wanted!r}; set it to 1, or to 0 to read output weights in place")
    return wanted == "1" and not torch.compiler.is_compiling()


class OutputRows:
    """A module's output weights as [P, D]: views on a GPU, copies with contiguous rows on the CPU.

    With `MONET_DECODE_COPY=0` they are views on the CPU too.
    """

    def __init__(self) -> None:
        self._copies: dict[str, _Copy] = {}
        self._uses = 0

    def of(self, name: str, weight_DP: Tensor) -> Tensor:
        """The weight named `name`, transposed."""
        if weight_DP.is_cuda or not _with_copies():
            return weight_DP.t()
        pointer, version = weight_DP.data_ptr(), 0 if weight_DP.is_inference() else weight_DP._version
        kept = self._copies.get(name)
        fresh = kept is not None and kept.source() is weight_DP and (kept.pointer, kept.version) == (pointer, version)
        self._uses += 1
        if kept is None or not fresh or not is_transposed(weight_DP, kept.rows_PD, self._uses):
            rows_PD = weight_DP.detach().t().contiguous()
            kept = self._copies[name] = _Copy(weakref.ref(weight_DP), pointer, version, rows_PD)
        return kept.rows_PD

    def clear(self) -> None:
        """Drop all copies."""
        self._copies.clear()

    def __deepcopy__(self, memo: dict[int, Any]) -> OutputRows:
        return OutputRows()

    def __reduce__(self) -> tuple[type[OutputRows], tuple[()]]:
        return OutputRows, ()
