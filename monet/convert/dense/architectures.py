"""Which dense models can be converted, and the hybrid's configuration and weights that come from them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedConfig

from monet.configuration_monet import MonetConfig
from monet.errors import CheckpointError, ConfigError
from monet.model.pretrained import load_checked
from monet.terminal import clean

# model_type -> the class in transformers. All three have LLaMA's names of weights and its decoder layer.
_CLASSES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "qwen2": "Qwen2ForCausalLM"}
_ACCEPTED = "llama, mistral (without a sliding window) and qwen2 (without a sliding window)"
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


def read_config(model: str) -> PreTrainedConfig:
    """The configuration of a dense model; no code of its folder runs.

    Args:
        model: folder or hub name.
    Raises:
        CheckpointError: there is no readable config.json.
        ConfigError: the architecture cannot be converted; the message names it and lists the accepted ones.
    """
    try:
        content, _ = PreTrainedConfig.get_config_dict(model)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{model}: no readable config.json ({' '.join(str(error).split())[:300]})") from None
    kind = content.get("model_type")
    if kind not in _CLASSES:
        raise ConfigError(
            f"{model}: model_type {clean(str(kind))!r} cannot be converted; monet convert accepts {_ACCEPTED}"
        )
    try:
        config = getattr(transformers, _CLASSES[kind]).config_class.from_dict(content)
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{model}: config.json cannot be used ({' '.join(str(error).split())[:300]})") from None
    _refuse(model, config)
    return config


def _refuse(model: str, config: Any) -> None:
    """Refuse what the hybrid's attention or MLPs cannot compute exactly."""
    window = getattr(config, "sliding_window", None)
    if not getattr(config, "use_sliding_window", True):  # qwen2 names a window that it does not use
        window = None
    if window is not None and window < config.max_position_embeddings:
        raise ConfigError(
            f"{model}: {config.model_type} with sliding_window {window} below max_position_embeddings "
            f"{config.max_position_embeddings}; Monet's attention has no window; monet convert accepts {_ACCEPTED}"
        )
    if getattr(config, "mlp_bias", False):
        raise ConfigError(f"{model}: mlp_bias = true; Monet's dense layers have no biases; use a model without them")


def load_dense(model: str, dtype: Any = "auto") -> Any:
    """The dense model in evaluation mode, with frozen weights, on the CPU.

    Args:
        model: folder or hub name; only safetensors are read, and no code of the folder runs.
        dtype: data type of the weights; "auto" keeps that of the files.
    Raises:
        CheckpointError: weights are missing, superfluous or not finite.
        ConfigError: the architecture cannot be converted, or an expert mask cannot apply to it.
    """
    config = read_config(model)
    kind: Any = getattr(transformers, _CLASSES[str(config.model_type)])
    dense = load_checked(kind, kind.from_pretrained, model, dtype=dtype, attn_implementation="sdpa")
    return dense.eval().requires_grad_(False)


def fingerprint(dense: nn.Module) -> str:
    """SHA-256 over the names, shapes, data types and content of a model's weights."""
    digest = hashlib.sha256()
    for name, tensor in dense.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


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
