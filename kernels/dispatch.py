"""The single place that decides which implementation of an op runs.

`MONET_KERNELS` in the environment overrides the choice:

- `auto` (default): Triton on a CUDA device if the op has a Triton kernel and Triton can be imported, else plain torch;
- `torch`: plain torch everywhere;
- `triton`: Triton or an error, for the ops that have a Triton kernel. On CPU tensors it needs TRITON_INTERPRET=1,
  Triton's slow interpreter.
"""

from __future__ import annotations

import functools
import importlib
import logging
import os
import warnings
from typing import Any

import torch
from torch import Tensor

from monet.kernels.plain import IMPLEMENTATIONS
from monet.kernels.plain import enter_torch as enter_torch
from monet.kernels.plain import without_autocast as without_autocast

_log = logging.getLogger("monet.kernels")

_IMPLEMENTATIONS: dict[str, dict[str, Any]] = {"torch": IMPLEMENTATIONS, "triton": {}}
# Imported on first use: only these modules import triton.
_TRITON = {
    "active_experts": "monet.kernels.decode.triton_op:active_experts",
    "batch_statistics": "monet.kernels.routing.triton_op:batch_statistics",
    "horizontal_mixing": "monet.kernels.hde.triton_mix:mixing",
    "route_with_losses": "monet.kernels.routing.triton_op:route_with_losses",
    "thresholded_softmax": "monet.kernels.routing.triton_op:thresholded_softmax",
    "vertical_mixing": "monet.kernels.vde.triton_mix:mixing",
}
WRONG_IN_BFLOAT16 = ("active_experts", "horizontal_mixing", "vertical_mixing")
_BACKENDS = ("auto", "torch", "triton")
_TRITON_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def resolve(op: str, tensor: Tensor) -> Any:
    """The implementation of `op` for the device and dtype of `tensor`.

    Raises:
        ValueError: `MONET_KERNELS` names no known backend, or requires Triton where it cannot run.
    """
    return _IMPLEMENTATIONS[backend(op, tensor)][op]


def backend(op: str, tensor: Tensor) -> str:
    """The backend that `resolve` chooses for `op`: "torch" or "triton".

    Raises:
        ValueError: see `resolve`.
    """
    return _choose(op, tensor.device.type, tensor.dtype, os.environ.get("MONET_KERNELS", "auto"), interpreted())


def interpreted() -> bool:
    """Whether Triton kernels run in its interpreter, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes")


@torch.compiler.assume_constant_result
def _choose(op: str, device: str, dtype: torch.dtype, wanted: str, interpreted: bool) -> str:
    return _cached_choice(op, device, dtype, wanted, interpreted)


@functools.cache
def _cached_choice(op: str, device: str, dtype: torch.dtype, wanted: str, interpreted: bool) -> str:
    if wanted not in _BACKENDS:
        raise ValueError(f"MONET_KERNELS={wanted!r} is no known backend; use one of {', '.join(_BACKENDS)}")
    refusal = "MONET_KERNELS=torch" if wanted == "torch" else _why_not_triton(op, device, dtype, wanted, interpreted)
    if not refusal:
        _log.info("%s on %s: triton", op, device)
        return "triton"
    if wanted == "triton" and op in _TRITON:
        raise ValueError(f"MONET_KERNELS=triton, but {op} cannot use it: {refusal}")
    _log.info("%s on %s: torch (%s)", op, device, refusal)
    if wanted == "auto" and device == "cuda" and op in _TRITON and dtype in _TRITON_DTYPES:
        warnings.warn(f"{op} runs as plain torch on this GPU, slower than with Triton: {refusal}", stacklevel=5)
    return "torch"


def _why_not_triton(op: str, device: str, dtype: torch.dtype, wanted: str, interpreted: bool) -> str:
    if op not in _TRITON:
        return "it has no Triton kernel"
    if dtype not in _TRITON_DTYPES:
        return f"its Triton kernel has no {dtype}; cast to float32, bfloat16 or float16"
    if dtype == torch.bfloat16 and device == "cpu" and op in WRONG_IN_BFLOAT16:
        return "Triton's interpreter computes products of bfloat16 wrongly; use float32 or float16"
    if not (device == "cuda" or (device == "cpu" and wanted == "triton" and interpreted)):
        return f"the tensors are on {device}; move them to cuda, or set TRITON_INTERPRET=1 too"
    module, name = _TRITON[op].split(":")
    try:
        _IMPLEMENTATIONS["triton"][op] = getattr(importlib.import_module(module), name)
    except Exception as error:  # a broken or old installation must not stop the torch path
        return f"its Triton kernels cannot be imported ({error}); pip install 'triton>=3.6'"
    return ""
