"""Dense language models of other makers that Monet can read: LLaMA and models with its decoder layer."""

from __future__ import annotations

from typing import Any

import transformers
from transformers import PreTrainedConfig

from monet.errors import CheckpointError, ConfigError
from monet.model.pretrained import load_checked
from monet.terminal import clean

# model_type -> the class in transformers. All three have LLaMA's names of weights and its decoder layer.
_CLASSES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "qwen2": "Qwen2ForCausalLM"}
_ACCEPTED = "llama, mistral (without a sliding window) and qwen2 (without a sliding window)"


def read_config(model: str) -> PreTrainedConfig:
    """The configuration of a dense model; no code of its folder runs.

    Args:
        model: folder or hub name.
    Raises:
        CheckpointError: there is no readable config.json.
        ConfigError: the architecture is not supported; the message names it and lists the accepted ones.
    """
    try:
        content, _ = PreTrainedConfig.get_config_dict(model)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{model}: no readable config.json ({' '.join(str(error).split())[:300]})") from None
    kind = content.get("model_type")
    if kind not in _CLASSES:
        raise ConfigError(f"{model}: model_type {clean(str(kind))!r} is not supported; use {_ACCEPTED}")
    try:
        config = getattr(transformers, _CLASSES[kind]).config_class.from_dict(content)
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{model}: config.json cannot be used ({' '.join(str(error).split())[:300]})") from None
    _refuse(model, config)
    return config


def _refuse(model: str, config: Any) -> None:
    """Refuse what Monet's attention or dense layers cannot compute exactly."""
    window = getattr(config, "sliding_window", None)
    if not getattr(config, "use_sliding_window", True):  # qwen2 names a window that it does not use
        window = None
    if window is not None and window < config.max_position_embeddings:
        raise ConfigError(
            f"{model}: {config.model_type} with sliding_window {window} below max_position_embeddings "
            f"{config.max_position_embeddings}; Monet's attention has no window; use {_ACCEPTED}"
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
        ConfigError: the architecture is not supported, or an expert mask cannot apply to it.
    """
    config = read_config(model)
    kind: Any = getattr(transformers, _CLASSES[str(config.model_type)])
    dense = load_checked(kind, kind.from_pretrained, model, dtype=dtype, attn_implementation="sdpa")
    return dense.eval().requires_grad_(False)
