"""Sizes and targets of the GPU suite."""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from monet import MonetConfig

FORMS = {"horizontal": "HD", "vertical": "VD"}
# The suites' targets: what the figure is, the bound, and whether it is the least or the most allowed.
TARGETS: dict[str, tuple[str, float, bool]] = {
    "G1": ("HD layer / dense, forward", 1.30, False),
    "G2": ("VD layer / dense, forward", 1.40, False),
    "G3": ("HD layer / dense, forward+backward", 1.30, False),
    "G4": ("VD layer / dense, forward+backward", 1.40, False),
    "G5 HD": ("einsum formulation / ours, forward+backward", 1.4, True),
    "G5 VD": ("einsum formulation / ours, forward+backward", 1.6, True),
    "G6 HD": ("mixing, TB/s of its least bytes", 2.0, True),
    "G6 VD": ("mixing, TB/s of its least bytes", 2.0, True),
    "G7": ("routing after its products, TB/s of its least bytes", 2.0, True),
    "G8 HD": ("saved for backward, KiB a token and layer", 28, False),
    "G8 VD": ("saved for backward, KiB a token and layer", 28, False),
    "G9 HD": ("masked / unmasked forward, worst mask", 1.10, False),
    "G9 VD": ("masked / unmasked forward, worst mask", 1.10, False),
    "G10 HD": ("decode, experts and router/4: dense path / sparse", 2.5, True),
    "G10 VD": ("decode, experts and router/4: dense path / sparse", 2.5, True),
    "G11 HD": ("decode, model tokens/s: sparse / dense path", 1.5, True),
    "G11 VD": ("decode, model tokens/s: sparse / dense path", 1.5, True),
    "G12 HD": ("training tokens/s / LLaMA's", 0.80, True),
    "G12 VD": ("training tokens/s / LLaMA's", 0.80, True),
    "G13 HD": ("statistics pass / forward", 1.15, False),
    "G13 VD": ("statistics pass / forward", 1.15, False),
    "G14 HD": ("training MFU", 0.40, True),
    "G14 VD": ("training MFU", 0.40, True),
}
Row = dict[str, Any]


@dataclass(frozen=True)
class Shape:
    """Sizes of a released model and of the dense model it is compared with."""

    name: str
    hidden_size: int
    layers: int
    attention_heads: int
    heads: int
    expert_width: int
    dense_width: int
    experts: int = 512
    vocab_size: int = 32000

    def config(self, form: str, topk: int, **changes: Any) -> MonetConfig:
        sizes: dict[str, Any] = {
            "vocab_size": self.vocab_size, "hidden_size": self.hidden_size, "num_hidden_layers": self.layers,
            "num_attention_heads": self.attention_heads, "moe_experts": self.experts, "moe_heads": self.heads,
            "moe_dim": self.expert_width, "moe_topk": topk, "moe_groups": 4, "moe_decompose": form,
        }  # fmt: skip
        return MonetConfig(**{**sizes, **changes})


@dataclass(frozen=True)
class Plan:
    """One run of the suite.

    Args:
        device: device that runs the suite.
        dtype: dtype of activations and weights in timed calls.
        shapes: shapes at which layers are timed.
        main: number of the shape for everything else, including the targets.
        tokens: tokens in a layer's forward.
        rounds: timed calls of each implementation.
        compiler: backend of torch.compile.
        saved_tokens: tokens in the forward whose saved bytes are counted.
        prompt, decoded: tokens before and during timed decoding.
        batch, seq_len: sequences and tokens of a training step; halved until they fit.
        steps: timed training steps.
        labels: labels in the statistics pass.
        copied_bytes, product_size: sizes for measuring the device's upper limits.
    """

    device: torch.device
    dtype: torch.dtype
    shapes: tuple[Shape, ...]
    main: int
    tokens: int
    rounds: int
    compiler: str
    saved_tokens: int
    prompt: int
    decoded: int
    batch: int
    seq_len: int
    steps: int
    copied_bytes: int
    product_size: int
    topk: int = 8
    labels: int = 14

    @property
    def shape(self) -> Shape:
        return self.shapes[self.main]


def full(device: torch.device) -> Plan:
    """The released sizes."""
    shapes = (
        Shape("850M", 1536, 24, 12, 6, 12, 4096),
        Shape("1.4B", 2048, 24, 16, 8, 16, 5504),
        Shape("4.1B", 3072, 32, 24, 12, 24, 8192),
    )
    return Plan(
        device, torch.bfloat16, shapes, main=1, tokens=16384, rounds=50, compiler="inductor", saved_tokens=4096,
        prompt=128, decoded=64, batch=8, seq_len=2048, steps=8, copied_bytes=2 << 30, product_size=8192,
    )  # fmt: skip


def quick(device: torch.device) -> Plan:
    """Toy sizes, to check that every section runs; float32, the only dtype that is exact and fast everywhere."""
    shape = Shape("toy", 32, 4, 2, 2, 4, 88, experts=16, vocab_size=64)
    return Plan(
        device, torch.float32, (shape,), main=0, tokens=24, rounds=2, compiler="eager", saved_tokens=24,
        prompt=4, decoded=4, batch=2, seq_len=12, steps=2, copied_bytes=1 << 16, product_size=64, topk=4, labels=2,
    )  # fmt: skip


@contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Sets environment variables inside the block; the kernels' dispatch reads some at every call."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def medians(samples: dict[str, list[float]]) -> dict[str, float]:
    return {name: statistics.median(values) for name, values in samples.items()}


def total_bytes(tensors: Iterable[Tensor | None]) -> int:
    """Bytes of the elements: the minimum that reading or writing each once must move."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor is not None)


def free(device: torch.device) -> None:
    """Release cached memory, so that one section does not take memory from the next."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
