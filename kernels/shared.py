"""What the layers of a routing group share, in addition to the values of their gates.

A router creates one `SharedGates` in each forward. The model passes it to each layer of the group, and the layer passes
it to its op, where it saves work and memory. It never changes a result: without it the op computes the same numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.weak import TensorWeakRef


class GateFacts:
    """What is known about the gates of one axis.

    Autograd keeps this object until backward. It therefore does not refer to the gates of the forward, and refers only
    weakly to the logits.

    Attributes:
        active_keys: idx_TE and count_T as `monet.kernels.active_keys` returns them; None until a layer makes them.
        gates_again: the gates, computed a second time in backward for all layers of the group; None otherwise.
    """

    def __init__(self, z_TP: Tensor | None = None, threshold_H: Tensor | None = None) -> None:
        """`z_TP` and `threshold_H`: what the gates were computed from, if backward may compute them again."""
        self._logits = None if z_TP is None else (TensorWeakRef(z_TP), z_TP._version)
        self._threshold_H = threshold_H
        self._savers = self._waiting = 0
        self.active_keys: tuple[Tensor, Tensor] | None = None
        self.gates_again: Tensor | None = None

    def origin(self) -> tuple[Tensor, Tensor] | None:
        """Logits and threshold of the gates; None if nothing else keeps the logits, or they were written to."""
        if self._logits is None or self._threshold_H is None:
            return None
        reference, version = self._logits
        z_TP = reference()
        return None if z_TP is None or z_TP._version != version else (z_TP, self._threshold_H)

    def saved(self) -> None:
        """Count an autograd node that saves the gates."""
        self._savers += 1
        self._waiting += 1

    def read(self) -> None:
        """Count a node that has read the gates in backward; after the last one, free what was kept for all."""
        self._waiting -= 1
        if self._waiting <= 0:
            self.active_keys = self.gates_again = None
            self._waiting = self._savers


Facts = tuple[GateFacts | None, GateFacts | None]
UNKNOWN: Facts = (None, None)


class SharedGates:
    """The gates of a routing group with the facts about them.

    Use `share` to create one. Hooks, wrappers and users may give a layer other gates, or write to these; `of` notices
    both.
    """

    def __init__(self, gates: tuple[Tensor, Tensor], facts: tuple[GateFacts, GateFacts]) -> None:
        self._gates, self._facts = gates, facts
        self._versions = [gate._version for gate in gates]

    def of(self, g1_THE: Tensor, g2_THE: Tensor) -> Facts:
        """The facts about these tensors; None for a tensor that does not hold the values of the router's gates."""
        first, second = (
            facts if _is_same(given, gate) and given._version == version else None
            for given, gate, version, facts in zip(
                (g1_THE, g2_THE), self._gates, self._versions, self._facts, strict=True
            )
        )
        return first, second


def share(gates: tuple[Tensor, Tensor], facts: tuple[GateFacts, GateFacts]) -> SharedGates | None:
    """Gates that layers can share facts about; None if a write to them would not be noticed.

    torch does not count writes to inference tensors, nor writes by a compiled graph. A captured CUDA graph runs again
    with other values.
    """
    if torch.compiler.is_compiling() or any(gate.is_inference() or not gate.is_contiguous() for gate in gates):
        return None
    if gates[0].is_cuda and torch.cuda.is_current_stream_capturing():
        return None
    return SharedGates(gates, facts)


def facts_of(shared: SharedGates | None, g1_THE: Tensor, g2_THE: Tensor) -> Facts:
    """`shared.of`; None while a CUDA graph is captured, since the graph would read outdated tensors."""
    if shared is None or torch.compiler.is_compiling():
        return UNKNOWN
    if g1_THE.is_cuda and torch.cuda.is_current_stream_capturing():
        return UNKNOWN
    return shared.of(g1_THE, g2_THE)


def _is_same(tensor: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same elements of the same memory; their shapes may differ."""
    return (
        tensor.untyped_storage() is other.untyped_storage()
        and tensor.storage_offset() == other.storage_offset()
        and tensor.numel() == other.numel()
        and tensor.dtype == other.dtype
        and tensor.is_contiguous()
    )
