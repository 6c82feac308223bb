"""Activations that have a number, by which kernels and operators name them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

Activation = Callable[[Tensor], Tensor]


def _identity(x: Tensor) -> Tensor:
    return x


def _relu2(x: Tensor) -> Tensor:
    return torch.square(F.relu(x))


IDENTITY, RELU2, RELU, SILU = range(4)
_FUNCTIONS: tuple[Activation, ...] = (_identity, _relu2, F.relu, F.silu)
# By the class transformers' ACT2FN holds.
_CLASSES = {"ReLUSquaredActivation": RELU2, "ReLU": RELU, "SiLUActivation": SILU, "SiLU": SILU}


def number_of(activation: Activation) -> int | None:
    """The number of an activation; None for others, and for one whose call a hook watches."""
    if getattr(activation, "_forward_hooks", None) or getattr(activation, "_forward_pre_hooks", None):
        return None
    for number, function in enumerate(_FUNCTIONS):
        if activation is function:
            return number
    return _CLASSES.get(type(activation).__name__)


def by_number(number: int) -> Activation:
    """The activation of a number, elementwise in torch."""
    return _FUNCTIONS[number]
