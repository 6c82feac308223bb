"""The arithmetic of a conversion: bfloat16 where the processor is fast at it, float32 elsewhere."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

import torch

Precision = Literal["auto", "bf16", "float32"]


@dataclass(frozen=True)
class Arithmetic:
    """Where and how to compute.

    Attributes:
        device: the device.
        half: compute matrix products in bfloat16. Weights that learn, losses and running statistics stay float32.
    """

    device: torch.device
    half: bool

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the frozen dense model and of its states."""
        return torch.bfloat16 if self.half else torch.float32

    def autocast(self) -> AbstractContextManager[object]:
        """The context in which a module with float32 weights computes."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.half)


def arithmetic(device: torch.device, precision: Precision) -> Arithmetic:
    """Choose the arithmetic; `auto` takes bfloat16 on a GPU, and on a processor with instructions for it."""
    half = is_fast_in_bfloat16(device) if precision == "auto" else precision == "bf16"
    return Arithmetic(device, half)


def is_fast_in_bfloat16(device: torch.device) -> bool:
    """Whether this device multiplies bfloat16 matrices faster than float32 matrices."""
    if device.type != "cpu":
        return True
    # torch has no public query; a release without these names counts as slow
    asked = (getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("avx512_bf16", "amx_tile"))
    return any(ask is not None and ask() for ask in asked)
