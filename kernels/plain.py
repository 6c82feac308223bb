"""The ops in plain torch, by name, and the choice of implementation where only these ops exist.

`dispatch.py` chooses between the ops of this module and the Triton kernels. A model file that runs without this package
(`monet.convert.remote_code`) contains `resolve` and everything after it from this module. They replace `dispatch.py`,
the layers in `decode/` that read only active keys, and the operators for torch.compile in `mix_project_op.py`.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from monet.kernels.mix_project_parts import Step, reference

IMPLEMENTATIONS: dict[str, Any] = {}


def enter_torch(op: str, implementation: Any) -> None:
    """Register the plain torch implementation of `op`.

    Raises:
        ValueError: the op already has one.
    """
    if op in IMPLEMENTATIONS:
        raise ValueError(f"op {op!r} already has a torch implementation; register each op once")
    IMPLEMENTATIONS[op] = implementation


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Context in which the ops choose their own precision; devices without autocast (meta) need no such context."""
    return torch.autocast(device.type, enabled=False) if _has_autocast(device.type) else nullcontext()


@torch.compiler.assume_constant_result  # torch 2.10 cannot trace this call
def _has_autocast(device: str) -> bool:
    return torch.amp.is_autocast_available(device)


def resolve(op: str, tensor: Tensor) -> Any:
    """The implementation of `op`; the tensor's device and dtype make no difference."""
    return IMPLEMENTATIONS[op]


def backend(op: str, tensor: Tensor) -> str:
    """The backend that `resolve` chooses: always "torch"."""
    return "torch"


def is_sparse(*layer: Any) -> bool:
    """Whether an expert layer reads only the weights of active keys: never here."""
    return False


class OutputRows:
    """A module's output weights as [P, D], without copies."""

    def of(self, name: str, weight_DP: Tensor) -> Tensor:
        """The weight named `name`, transposed."""
        return weight_DP.t()

    def clear(self) -> None:
        """Do nothing: there are no copies to drop."""


def active_horizontal(*layer: Any) -> Tensor:
    """Not available here: `is_sparse` never chooses it."""
    raise NotImplementedError("layers that read active keys only need the package monet: pip install monet-experts")


active_vertical = active_horizontal


def traced(step: Step, inputs: tuple[Tensor, ...], weights: tuple[Tensor, ...]) -> Tensor:
    """`mix_project` under torch.compile, as single operations; a layer with a mask breaks the graph."""
    return reference(step, inputs, weights) if step.keep is None else _untraced(step, inputs, weights)


@torch.compiler.disable()
def _untraced(step: Step, inputs: tuple[Tensor, ...], weights: tuple[Tensor, ...]) -> Tensor:
    # The number of active keys depends on the data, which a graph cannot follow.
    return reference(step, inputs, weights)
