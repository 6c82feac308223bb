"""Activations that kernels and operators refer to by number."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from monet.kernels.checks import is_watched

Activation = Callable[[Tensor], Tensor]


def _identity(x: Tensor) -> Tensor:
    return x


def _relu2(x: Tensor) -> Tensor:
    return torch.square(F.relu(x))


IDENTITY, RELU2, RELU, SILU = range(4)
_FUNCTIONS: tuple[Activation, ...] = (_identity, _relu2, F.relu, F.silu)
# Exactly these classes from transformers' ACT2FN: another class of the same name may compute something else.
_CLASSES = {
    "transformers.activations.ReLUSquaredActivation": RELU2,
    "torch.nn.modules.activation.ReLU": RELU,
    "transformers.activations.SiLUActivation": SILU,
    "torch.nn.modules.activation.SiLU": SILU,
}


def number_of(activation: Activation) -> int | None:
    """The number of an activation; None if it has no number, or if a hook watches its call."""
    if is_watched(activation):
        return None
    for number, function in enumerate(_FUNCTIONS):
        if activation is function:
            return number
    kind = type(activation)
    return _CLASSES.get(f"{kind.__module__}.{kind.__qualname__}")


def by_number(number: int) -> Activation:
    """The activation with this number, elementwise in torch."""
    return _FUNCTIONS[number]
