"""A tiny model whose weights come from an integer hash, so that every machine has the same bits without a file."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    from monet.model.modeling_monet import MonetForCausalLM

FORMS = ("horizontal", "vertical")
# Two routers of two layers each. No routing decision of `TOKENS` is close to its threshold, and no greedy token of
# `PROMPTS` is close to the second best one, so rounding cannot change a choice; tests/doctor checks both.
CONFIG: dict[str, Any] = {
    "vocab_size": 32,
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "moe_dim": 4,
    "moe_heads": 3,
    "moe_experts": 6,
    "moe_topk": 2,
    "moe_groups": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
TOKENS = ((5, 17, 9, 30, 12, 3, 26, 8),)
# Prompts of two lengths; the shorter one is padded on the left.
PROMPTS = ((7, 21, 4, 15, 28, 11), (0, 0, 19, 6, 23, 10))
NEW_TOKENS = 8
# Routing group -> ids of removed experts: four rows of six experts in each group.
REMOVED = {0: tuple(range(6, 30)), 1: tuple(range(0, 24))}


def values(name: str, shape: tuple[int, ...]) -> Tensor:
    """The tensor of this name: float32, uniform around a centre that depends on the kind of tensor.

    Args:
        name: its name in the model's state dict.
        shape: its shape.
    """
    import torch

    centre, scale = _range(name)
    number = np.arange(int(np.prod(shape)), dtype=np.uint32) + np.uint32(zlib.crc32(name.encode()))
    for shift, factor in ((16, 0x21F0AAAD), (15, 0xD35A2D97)):
        number = (number ^ (number >> np.uint32(shift))) * np.uint32(factor)
    number ^= number >> np.uint32(15)
    uniform = number.astype(np.float64) * 2.0**-31 - 1
    return torch.from_numpy((centre + scale * uniform).astype(np.float32).reshape(shape))


def _range(name: str) -> tuple[float, float]:
    """Centre and half width of the values of a tensor."""
    if "running_var" in name:
        return 1.5, 1.0
    if "running_mean" in name:
        return 0.0, 0.5
    if "norm" in name:
        return 1.0, 0.2
    return (0.0, 1.5) if "embed" in name else (0.0, 0.7)


def tiny_model(form: str) -> MonetForCausalLM:
    """The model in evaluation mode, float32, on the CPU.

    Args:
        form: "horizontal" or "vertical".
    """
    import torch

    from monet.configuration_monet import MonetConfig
    from monet.model.modeling_monet import MonetForCausalLM

    model = MonetForCausalLM(MonetConfig(**CONFIG, moe_decompose=form))
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("num_batches_tracked"):
                tensor.fill_(1000)
            else:
                tensor.copy_(values(name, tuple(tensor.shape)))
    return model.eval()
