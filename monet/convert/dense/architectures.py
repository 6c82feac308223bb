"""The configuration and the kept weights of a hybrid, from the dense model that it was converted from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from monet.configuration_monet import MonetConfig

# Keys that the hybrid takes from the dense model unchanged.
_COPIED = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id",
    "initializer_range",
)  # fmt: skip
_PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class ExpertShape:
    """Sizes of the experts and routers of the new layers; the names are those of `MonetConfig`."""

    moe_decompose: str
    moe_experts: int
    moe_dim: int
    moe_heads: int
    moe_topk: int
    moe_groups: int


def hybrid_config(dense: Any, layers: Sequence[int], shape: ExpertShape) -> MonetConfig:
    """The configuration of the model in which `layers` are Monet layers and the others keep their MLP.

    Raises:
        ConfigError: a size of the experts is impossible for this model.
    """
    kept = sorted(set(range(dense.num_hidden_layers)) - set(layers))
    keys: dict[str, Any] = {key: getattr(dense, key, None) for key in _COPIED}
    if kept:
        keys |= {"dense_layers": kept, "intermediate_size": dense.intermediate_size, "dense_act": dense.hidden_act}
    return MonetConfig(
        **keys,
        head_dim=getattr(dense, "head_dim", None) or dense.hidden_size // dense.num_attention_heads,
        # qwen2 always has biases on queries, keys and values; LLaMA's attention then has one on the output too
        attention_bias=dense.model_type == "qwen2" or bool(getattr(dense, "attention_bias", False)),
        attention_dropout=float(getattr(dense, "attention_dropout", 0.0)),
        rope_parameters=dict(dense.rope_parameters),
        **vars(shape),
    )


def kept_weights(dense: Any, layers: Sequence[int]) -> dict[str, Tensor]:
    """The weights that the hybrid takes from the dense model, under the same names; MLPs of `layers` are left out."""
    replaced = {f"model.layers.{layer}.mlp.{part}.weight" for layer in layers for part in _PROJECTIONS}
    weights = {name: tensor for name, tensor in dense.state_dict().items() if name not in replaced}
    if dense.config.model_type == "qwen2":
        for layer, block in enumerate(dense.model.layers):
            name = f"model.layers.{layer}.self_attn.o_proj.bias"
            weights.setdefault(name, torch.zeros_like(block.self_attn.o_proj.weight[:, 0]))
    return weights
