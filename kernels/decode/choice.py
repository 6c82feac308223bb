"""When an expert layer reads active keys alone, and which form of the output weights it then reads.

`MONET_DECODE` in the environment overrides the choice: `auto` (default), `dense` or `sparse`. Sparse layers are for
inference; where a gradient is wanted, or a weight is not plain memory, the layer stays dense whatever is asked for.

`MONET_DECODE_COPY=1` keeps a transposed copy of every output weight, whose rows are contiguous: reading is then up to
twice as fast, and the model takes about a third more memory. A copy follows every change that torch counts; a write
through `.data` is only noticed after `train()`, a move or a load.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from monet.kernels.decode.build import has_cpp
from monet.kernels.decode.op import count_active

# Share of (token, key) pairs up to which the sparse layer is not slower, by dtype and number of tokens, in the C++ of
# this folder on two cores with AVX-512 (E = 512, M = 16, D = 2048; milliseconds dense / sparse, weights out of cache):
#   float32   T=1  .12: 7.4/2.7  .40: 7.1/4.4  .89: 6.4/4.1     T=4   .40: 13/6.4  .90: 14/7.0  1.0: 68/32
#             T=64 .40: 37/35    .65: 37/27    .90: 72/83       T=256 .40: 109/91  .65: 114/112 .90: 238/358
LIMITS: dict[torch.dtype, tuple[tuple[int, float], ...]] = {
    torch.float32: ((4, 0.9), (1 << 62, 0.6)),
    torch.bfloat16: ((1, 0.5), (4, 0.2), (1 << 62, 0.09)),
}
# In plain torch gathered rows are copied, which pays for one token with few keys.
LIMITS_WITHOUT_CPP = ((1, 0.15),)
# torch.compile must not look at data. For one token reading every key is no slower, whatever is active.
COMPILED_TOKENS = 1
# Elements of the first weights: a smaller layer is done before the choice is.
SMALLEST_LAYER = 1 << 20

_CHOICES = ("auto", "dense", "sparse")


def is_sparse(
    x_TD: Tensor, g1_THE: Tensor, g2_THE: Tensor, linears: Sequence[nn.Module], weights: Sequence[Tensor]
) -> bool:
    """Whether the layer shall read active keys alone.

    Args:
        x_TD: states of T tokens.
        g1_THE, g2_THE: routing probabilities.
        linears: the modules of the first weights, whose call the sparse layer leaves out.
        weights: all other weights.
    Raises:
        ValueError: `MONET_DECODE` is none of its values.
    """
    wanted = os.environ.get("MONET_DECODE", "auto")
    if wanted not in _CHOICES:
        raise ValueError(f"MONET_DECODE={wanted!r}; use one of {', '.join(_CHOICES)}")
    if wanted == "dense" or x_TD.shape[0] == 0 or not _is_inference(x_TD, linears, weights):
        return False
    if wanted == "sparse":
        return True
    if x_TD.device.type != "cpu" or x_TD.dtype not in LIMITS or os.environ.get("MONET_KERNELS") == "triton":
        return False
    if sum(linear.weight.numel() for linear in linears) < SMALLEST_LAYER:  # type: ignore[union-attr]
        return False
    if torch.compiler.is_compiling():
        return x_TD.shape[0] <= COMPILED_TOKENS and _compiled_has_cpp()
    T, _, E = g1_THE.shape
    limits = LIMITS[x_TD.dtype] if has_cpp() else LIMITS_WITHOUT_CPP
    limit = next((limit for tokens, limit in limits if tokens >= T), 0.0)
    return limit > 0 and count_active(g1_THE) + count_active(g2_THE) <= 2 * limit * T * E


@torch.compiler.assume_constant_result
def _compiled_has_cpp() -> bool:
    # Asked while a graph is traced: the compiler must not look into a build.
    return has_cpp()


def _is_inference(x_TD: Tensor, linears: Sequence[nn.Module], weights: Sequence[Tensor]) -> bool:
    compiling = torch.compiler.is_compiling()
    everything = [x_TD, *weights]
    for linear in linears:
        # Whoever replaced, wrapped or watches the linear is to be called.
        if type(linear) is not nn.Linear or linear.bias is None or linear._forward_hooks or linear._forward_pre_hooks:
            return False
        everything += [linear.weight, linear.bias]
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in everything):
        return False
    if torch.is_autocast_enabled(x_TD.device.type):
        return False
    # A weight that is partitioned over ranks is empty here.
    if any(tensor.numel() == 0 or tensor.dtype != x_TD.dtype or tensor.device != x_TD.device for tensor in everything):
        return False
    if compiling:
        return True
    if forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active():
        return False
    # Subclasses (quantised, sharded, fake tensors) have their own idea of a linear.
    return all(type(tensor) in (Tensor, nn.Parameter) for tensor in everything)


class _Copy(NamedTuple):
    source: Any  # weak reference
    pointer: int
    version: int
    rows_PD: Tensor


class OutputRows:
    """A module's output weights as [P, D]: views, or copies with contiguous rows under `MONET_DECODE_COPY=1`."""

    def __init__(self) -> None:
        self._copies: dict[str, _Copy] = {}

    def of(self, name: str, weight_DP: Tensor) -> Tensor:
        """The weight known as `name`, transposed."""
        if torch.compiler.is_compiling() or os.environ.get("MONET_DECODE_COPY", "0") != "1":
            return weight_DP.t()
        pointer, version = weight_DP.data_ptr(), 0 if weight_DP.is_inference() else weight_DP._version
        kept = self._copies.get(name)
        if kept is None or kept.source() is not weight_DP or (kept.pointer, kept.version) != (pointer, version):
            rows_PD = weight_DP.detach().t().contiguous()
            kept = self._copies[name] = _Copy(weakref.ref(weight_DP), pointer, version, rows_PD)
        return kept.rows_PD

    def clear(self) -> None:
        """Forget all copies."""
        self._copies.clear()

    def __deepcopy__(self, memo: dict[int, Any]) -> OutputRows:
        return OutputRows()

    def __reduce__(self) -> tuple[type[OutputRows], tuple[()]]:
        return OutputRows, ()
