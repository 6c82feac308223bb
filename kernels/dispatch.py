"""The one place that decides which implementation of an op runs.

`MONET_KERNELS` in the environment overrides the choice: `auto` (default) or `torch`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

_IMPLEMENTATIONS: dict[tuple[str, str], Callable[..., Any]] = {}
_BACKENDS = ("auto", "torch")


def implementation(op: str, backend: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: enter a function as the `backend` implementation of `op`.

    Raises:
        ValueError: the pair is taken already.
    """

    def enter(function: Callable[..., Any]) -> Callable[..., Any]:
        if (op, backend) in _IMPLEMENTATIONS:
            raise ValueError(f"op {op!r} has a {backend!r} implementation already")
        _IMPLEMENTATIONS[op, backend] = function
        return function

    return enter


def chosen_backend() -> str:
    """Name of the backend in force.

    Raises:
        ValueError: `MONET_KERNELS` names no backend.
    """
    wanted = os.environ.get("MONET_KERNELS", "auto")
    if wanted not in _BACKENDS:
        raise ValueError(f"MONET_KERNELS={wanted!r} names no backend; use one of {', '.join(_BACKENDS)}")
    return "torch" if wanted == "auto" else wanted


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Context in which the ops choose their own precision; devices without autocast (meta) need none."""
    available = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if available else nullcontext()


def resolve(op: str) -> Callable[..., Any]:
    """The implementation of `op` for the backend in force."""
    return _IMPLEMENTATIONS[op, chosen_backend()]
