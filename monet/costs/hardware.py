"""Accelerators for planning and for measurements, with rates and sizes from the makers' data sheets."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_GIB = 1 << 30


@dataclass(frozen=True)
class Accelerator:
    """One kind of GPU.

    Attributes:
        name: name for people.
        words: words of torch's device name that identify the kind, in lower case.
        peak_flops: operations a second for dense bf16 products with float32 sums.
        memory_bytes: memory that a program can address, rounded down.
        memory_bandwidth: bytes a second between the GPU and its memory.
        link_bandwidth: bytes a second that one GPU sends to other GPUs of its node, in one direction.
    """

    name: str
    words: tuple[str, ...]
    peak_flops: float
    memory_bytes: int
    memory_bandwidth: float
    link_bandwidth: float


# Links: NVLink between all GPUs of a node if the kind has it, else PCIe (bridges of GPU pairs do not help a ring of 8).
ACCELERATORS: dict[str, Accelerator] = {
    "b200": Accelerator("B200", ("b200",), 2250e12, 178 * _GIB, 7.7e12, 900e9),
    "h200": Accelerator("H200 SXM", ("h200",), 989e12, 139 * _GIB, 4.8e12, 450e9),
    "h200-nvl": Accelerator("H200 NVL", ("h200", "nvl"), 835e12, 139 * _GIB, 4.8e12, 64e9),
    "h100": Accelerator("H100 SXM", ("h100",), 989e12, 79 * _GIB, 3.35e12, 450e9),
    "h100-pcie": Accelerator("H100 PCIe", ("h100", "pcie"), 756e12, 79 * _GIB, 2.0e12, 64e9),
    "h100-nvl": Accelerator("H100 NVL", ("h100", "nvl"), 835e12, 93 * _GIB, 3.9e12, 64e9),
    "a100": Accelerator("A100 SXM 80GB", ("a100",), 312e12, 79 * _GIB, 2.04e12, 300e9),
    "a100-40gb": Accelerator("A100 SXM 40GB", ("a100", "40gb"), 312e12, 39 * _GIB, 1.55e12, 300e9),
    "a100-pcie": Accelerator("A100 PCIe 80GB", ("a100", "pcie"), 312e12, 79 * _GIB, 1.94e12, 32e9),
    "a100-pcie-40gb": Accelerator("A100 PCIe 40GB", ("a100", "pcie", "40gb"), 312e12, 39 * _GIB, 1.55e12, 32e9),
    "l40s": Accelerator("L40S", ("l40s",), 362e12, 44 * _GIB, 0.86e12, 32e9),
    "rtx4090": Accelerator("RTX 4090", ("rtx", "4090"), 165e12, 23 * _GIB, 1.0e12, 32e9),
}


def accelerator_of(device_name: str) -> Accelerator | None:
    """The kind of GPU whose torch device name is `device_name`, such as "NVIDIA H100 80GB HBM3"; None if not listed.

    Parts of a GPU (MIG) and other chips of a family (GH200, laptops) are not listed.
    """
    words = set(re.findall(r"[a-z0-9]+", device_name.lower()))
    kinds = [kind for kind in ACCELERATORS.values() if words.issuperset(kind.words)]
    return None if words & {"mig", "laptop"} else max(kinds, key=lambda kind: len(kind.words), default=None)


def peak_flops(device: torch.device) -> float | None:
    """Dense bf16 operations a second of a torch device, from its data sheet; None if unknown."""
    if device.type != "cuda":
        return None
    import torch

    kind = accelerator_of(torch.cuda.get_device_name(device))
    return None if kind is None else kind.peak_flops
