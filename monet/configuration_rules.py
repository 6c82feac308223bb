"""The rules for the values of a MonetConfig and of a config.json."""

from __future__ import annotations

import math
from typing import Any

from transformers.activations import ACT2FN

DECOMPOSITIONS = ("vertical", "horizontal")
# Largest accepted values: far above any real model, but low enough that a damaged file cannot ask for huge allocations.
_LIMITS = {
    "vocab_size": 1 << 24,
    "hidden_size": 1 << 20,
    "num_hidden_layers": 1 << 9,
    "num_attention_heads": 1 << 12,
    "num_key_value_heads": 1 << 12,
    "max_position_embeddings": 1 << 30,
    "moe_dim": 1 << 16,
    "moe_heads": 1 << 10,
    "moe_experts": 1 << 15,
    "moe_groups": 1 << 12,
    "head_dim": 1 << 16,
    "intermediate_size": 1 << 24,
}
_ROPE_KINDS = ("default", "linear", "dynamic", "yarn", "longrope", "llama3")
_MAX_LABELS = 1 << 16
# The implementations in transformers. It would download any other name from the hub, as code.
_ATTENTIONS = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flash_attention_4", "flex_attention")
_DTYPES = ("bfloat16", "float16", "float32", "float64")


def value_problems(config: Any) -> list[str]:
    """Problems with the values of a `MonetConfig`; each names the key, its value and the valid range."""
    problems = []
    for key, largest in _LIMITS.items():
        value = getattr(config, key)
        if value is not None and not (type(value) is int and 1 <= value <= largest):
            problems.append(f"{key}={value!r}: must be a whole number from 1 to {largest}")
    for key in ("attention_bias", "tie_word_embeddings", "use_cache", "output_router_probs", "document_mask"):
        if type(getattr(config, key)) is not bool:
            problems.append(f"{key}={getattr(config, key)!r}: must be true or false")
    if not (isinstance(config.initializer_range, (int, float)) and 0 <= config.initializer_range <= 1):
        problems.append(f"initializer_range={config.initializer_range!r}: must be a number from 0 to 1")
    for key in ("rms_norm_eps", "attention_dropout"):
        value = getattr(config, key)
        if value is not None and not (isinstance(value, (int, float)) and 0 <= value < 1):
            problems.append(f"{key}={value!r}: must be at least 0 and less than 1")
    if type(config.moe_topk) is not int:
        problems.append(f"moe_topk={config.moe_topk!r}: must be a whole number")
    if problems:
        return problems
    if not 1 <= config.moe_topk <= config.moe_experts:
        problems.append(f"moe_topk={config.moe_topk!r}: must be from 1 to moe_experts={config.moe_experts}")
    if config.moe_decompose not in DECOMPOSITIONS:
        problems.append(f"moe_decompose={config.moe_decompose!r}: must be {' or '.join(map(repr, DECOMPOSITIONS))}")
    if config.moe_decompose == "vertical":
        for key in ("hidden_size", "moe_dim"):
            if getattr(config, key) % 2:
                problems.append(
                    f"{key}={getattr(config, key)!r}: the vertical decomposition halves it; use an even number"
                )
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    head_dim = config.head_dim or config.hidden_size // heads
    if head_dim % 2:
        problems.append(f"head_dim={head_dim}: must be even for rotary embeddings")
    if config.head_dim is None and config.hidden_size % heads:
        problems.append(
            f"hidden_size={config.hidden_size}: must be a multiple of num_attention_heads={heads}, or set head_dim"
        )
    if kv_heads and heads % kv_heads:
        problems.append(f"num_key_value_heads={kv_heads}: must divide num_attention_heads={heads}")
    if config.pad_token_id is not None and not 0 <= config.pad_token_id < config.vocab_size:
        problems.append(
            f"pad_token_id={config.pad_token_id!r}: must be from 0 to vocab_size-1={config.vocab_size - 1}, or null"
        )
    if config.expert_mask is not None and config.expert_mask.keys() != {"file", "digest"}:
        problems.append(f"expert_mask={config.expert_mask!r}: must be null or an object with file and digest")
    return problems + _dense_problems(config)


def _dense_problems(config: Any) -> list[str]:
    dense, last = config.dense_layers, config.num_hidden_layers - 1
    problems = []
    if config.dense_act not in ACT2FN:
        problems.append(f"dense_act={config.dense_act!r}: choose from {', '.join(sorted(ACT2FN))}")
    if not dense:
        return problems
    if config.mlp_bias:
        problems.append(f"mlp_bias={config.mlp_bias!r}: the dense layers of a hybrid have no biases; leave it out")
    if not (isinstance(dense, list) and all(type(layer) is int and 0 <= layer <= last for layer in dense)):
        problems.append(f"dense_layers={dense!r}: must be null or a list of layers from 0 to {last}")
    elif sorted(set(dense)) != dense:
        problems.append(f"dense_layers={dense!r}: must be sorted, each layer once")
    elif len(dense) > last:
        problems.append(f"dense_layers={dense!r}: no Monet layer is left; use a LLaMA for a dense model")
    if config.intermediate_size is None:
        problems.append("intermediate_size is missing: the layers in dense_layers need the width of their MLPs")
    return problems


def labels_problem(number: Any) -> str | None:
    """transformers makes a name for each label, so the number sets the memory that a configuration takes."""
    if number is None or (type(number) is int and 0 < number <= _MAX_LABELS):
        return None
    return f"num_labels={number!r}: must be a whole number from 1 to {_MAX_LABELS}"


def file_problems(content: dict[str, Any]) -> list[str]:
    """Problems with keys of a config.json that would override the user's choice of code or precision, or fail later."""
    problems = []
    for key in ("dtype", "torch_dtype"):
        value = content.get(key)
        if value is not None and str(value).removeprefix("torch.") not in _DTYPES:
            problems.append(f"{key}={value!r}: must be one of {', '.join(_DTYPES)}")
    for key in ("attn_implementation", "_attn_implementation", "_attn_implementation_internal"):
        if content.get(key) is not None and content[key] not in _ATTENTIONS:
            problems.append(
                f"{key}={content[key]!r}: a configuration file may name only {', '.join(_ATTENTIONS)}; pass any other "
                "to from_pretrained as attn_implementation"
            )
    return problems


def rope_problems(rope: dict[str, Any]) -> list[str]:
    """Problems with the rotary settings."""
    problems = []
    kind, factor = rope.get("rope_type"), rope.get("factor", 1.0)
    if kind not in _ROPE_KINDS:
        problems.append(f"rope_type={kind!r} in rope_scaling: must be one of {', '.join(_ROPE_KINDS)}")
    elif kind != "default" and not {"factor", "short_factor"} & rope.keys():
        problems.append(f"rope_scaling of type {kind!r} has no factor; add it")
    for key, value in (("rope_theta", rope.get("rope_theta")), ("factor", factor)):
        if not (isinstance(value, (int, float)) and 0 < value < math.inf):
            problems.append(f"{key}={value!r}: must be a positive number")
    return problems
