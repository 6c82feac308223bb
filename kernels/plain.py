"""The ops in plain torch, by name, and a choice among implementations where these are the only ones.

`dispatch.py` chooses between the ops of this module and the Triton kernels. A model file that runs without this package
(`monet.remote_code`) takes `resolve` and all that follows it from here, in the place of `dispatch.py`, of the layers in
`decode/` that read active keys only, and of the operators for torch.compile in `mix_project_op.py`.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from monet.kernels.mix_project_parts import Step, reference

IMPLEMENTATIONS: dict[str, Any] = {}


def enter_torch(op: str, implementation: Any) -> None:
    """Enter the plain torch implementation of `op`.

    Raises:
        ValueError: the op has one already.
    """
    if op in IMPLEMENTATIONS:
        raise ValueError(f"op {op!r} has a torch implementation already")
    IMPLEMENTATIONS[op] = implementation


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Context in which the ops choose their own precision; devices without autocast (meta) need none."""
    return torch.autocast(device.type, enabled=False) if _has_autocast(device.type) else nullcontext()


@torch.compiler.assume_constant_result  # torch 2.10 cannot trace the question
def _has_autocast(device: str) -> bool:
    return torch.amp.is_autocast_available(device)


def resolve(op: str, tensor: Tensor) -> Any:
    """The implementation of `op`, whatever the tensor's device and dtype."""
    return IMPLEMENTATIONS[op]


def backend(op: str, tensor: Tensor) -> str:
    """Whose implementation `resolve` gives: always "torch"."""
    return "torch"


def is_sparse(*layer: Any) -> bool:
    """Whether an expert layer reads the weights of active keys only: never."""
    return False


class OutputRows:
    """A module's output weights as [P, D], without copies."""

    def of(self, name: str, weight_DP: Tensor) -> Tensor:
        """The weight known as `name`, transposed."""
        return weight_DP.t()

    def clear(self) -> None:
        """There are no copies to forget."""


def active_horizontal(*layer: Any) -> Tensor:
    """Not here: `is_sparse` never chooses it."""
    raise NotImplementedError("layers that read active keys only need the package monet")


active_vertical = active_horizontal


def traced(step: Step, inputs: tuple[Tensor, ...], weights: tuple[Tensor, ...]) -> Tensor:
    """`mix_project` under torch.compile: the single operations; a layer with a mask breaks the graph."""
    return reference(step, inputs, weights) if step.keep is None else _untraced(step, inputs, weights)


@torch.compiler.disable()
def _untraced(step: Step, inputs: tuple[Tensor, ...], weights: tuple[Tensor, ...]) -> Tensor:
    # How many keys are active depends on the data, which a graph cannot follow.
    return reference(step, inputs, weights)
