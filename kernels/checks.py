"""Argument checks of the public ops. Every message names the argument, its value and the expected value."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_shape(name: str, tensor: Tensor, wanted: Sequence[int | None]) -> None:
    """Raise ValueError unless `tensor` has the wanted shape; None in `wanted` allows any size."""
    got = tuple(tensor.shape)
    if len(got) != len(wanted) or any(w is not None and g != w for g, w in zip(got, wanted, strict=True)):
        shown = ", ".join("any" if w is None else str(w) for w in wanted)
        raise ValueError(f"{name} has shape {got}; expected ({shown})")


def check_float(name: str, tensor: Tensor) -> None:
    """Raise ValueError unless the ops support the dtype of `tensor`, which must be floating."""
    if tensor.dtype not in FLOATS:
        raise ValueError(f"{name} has dtype {tensor.dtype}; cast it to one of {', '.join(map(str, FLOATS))}")


def check_same_device(first_name: str, first: Tensor, **others: Tensor) -> None:
    """Raise ValueError unless all tensors are on the device of `first`."""
    for name, tensor in others.items():
        if tensor.device != first.device:
            raise ValueError(f"{name} is on {tensor.device}, {first_name} on {first.device}; move them together")


def check_routing(g1_THE: Tensor, g2_THE: Tensor, hidden_TEM: Tensor) -> None:
    """Raise ValueError unless both routing tensors match the experts' hidden units (T, E, M)."""
    if hidden_TEM.dim() != 3:
        raise ValueError(f"hidden units have shape {tuple(hidden_TEM.shape)}; expected three dimensions (T, E, M)")
    check_float("hidden units", hidden_TEM)
    T, E, _ = hidden_TEM.shape
    check_shape("g1_THE", g1_THE, (T, None, E))
    check_shape("g2_THE", g2_THE, tuple(g1_THE.shape))
    check_float("g1_THE", g1_THE)
    check_float("g2_THE", g2_THE)
    check_same_device("hidden units", hidden_TEM, g1_THE=g1_THE, g2_THE=g2_THE)


def is_watched(function: object) -> bool:
    """Whether someone must see the calls of a module: it has a hook, or its object has a separate `forward`.

    Libraries that trace a model (nnsight) and offloading (accelerate) replace the object's `forward`.
    """
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(function, name, None) for name in hooks) or "forward" in getattr(function, "__dict__", {})


def is_plain_linear(linear: nn.Module) -> bool:
    """Whether a module is an nn.Linear whose weight may be read directly instead of calling the module.

    Adapters (peft) and quantisation replace the module or its weight by another kind. Hooks must see the call, and so
    must libraries that replace the object's `forward` (see `is_watched`). DeepSpeed's own hooks do not count: they are
    on every module, and its partitioned weights are gathered when they are read.
    """
    if type(linear) is not nn.Linear or "forward" in vars(linear) or hasattr(linear.weight, "__tensor_flatten__"):
        return False
    return hasattr(linear.weight, "ds_id") or not is_watched(linear)
