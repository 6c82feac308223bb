"""Computes parameters and floating-point operations of a model, part by part, only from its configuration.

A matrix-vector product counts two operations for each element. Norms, activations, thresholds, softmaxes and rotary
embeddings are omitted: together they take less than one percent, and memory, not arithmetic, bounds them.
"""

from __future__ import annotations

from transformers import LlamaConfig

from monet.configuration_monet import MonetConfig


def parameter_counts(config: LlamaConfig) -> dict[str, int]:
    """Numbers of parameters by part; their sum equals the count of the built model.

    Args:
        config: a `MonetConfig`, or a `LlamaConfig` for a dense model.
    Returns:
        `embedding`, `attention`, `norms`, then `routers` and `experts` (Monet), `mlp` (LLaMA, and the dense layers of a
        hybrid), and `lm_head`, which is 0 if it shares the embedding.
    """
    D, L, V = config.hidden_size, config.num_hidden_layers, config.vocab_size
    queries, keys = _attention_widths(config)
    attention = 2 * D * (queries + keys) + ((queries + 2 * keys + D) if config.attention_bias else 0)
    parts = {"embedding": V * D, "attention": L * attention, "norms": (2 * L + 1) * D}
    if isinstance(config, MonetConfig):
        H, E, M = config.moe_heads, config.moe_experts, config.moe_dim
        # both decompositions have the same number: U and V, the hidden units' biases, the output biases
        experts = 2 * D * E * M + E * M + E * D
        parts |= {"routers": config.num_routing_groups * 2 * D * H * E, "experts": len(config.monet_layers) * experts}
    if dense := dense_layers(config):
        width = mlp_width(config)
        parts["mlp"] = dense * (3 * D * width + (2 * width + D if config.mlp_bias else 0))
    return {**parts, "lm_head": 0 if config.tie_word_embeddings else V * D}


def forward_flops_per_token(config: LlamaConfig, seq_len: int) -> dict[str, float]:
    """Operations of a training forward for one token, by part.

    Args:
        config: a `MonetConfig`, or a `LlamaConfig` for a dense model.
        seq_len: tokens per sequence; on average a token attends to half of them.
    Returns:
        `attention_projections`, `attention_scores` (queries with keys, weights with values), then `router`, `experts`
        (input and output projections, output biases) and `mixing` (Monet), `mlp` (LLaMA, and the dense layers of a
        hybrid), and `lm_head`.
    """
    D, L, V = config.hidden_size, config.num_hidden_layers, config.vocab_size
    queries, keys = _attention_widths(config)
    parts: dict[str, float] = {
        "attention_projections": 2 * L * 2 * D * (queries + keys),
        "attention_scores": 4 * L * queries * seq_len / 2,
    }
    if isinstance(config, MonetConfig):
        H, E, M = config.moe_heads, config.moe_experts, config.moe_dim
        layers = len(config.monet_layers)
        parts["router"] = 2 * config.num_routing_groups * 2 * D * H * E
        parts["experts"] = 2 * layers * (2 * D * E * M + E * D)
        # Horizontal: sums over i and over j, each of H * E * M products. Vertical: two such pairs of half the width.
        parts["mixing"] = 2 * layers * 2 * H * E * M
    if dense := dense_layers(config):
        parts["mlp"] = 2 * dense * 3 * D * mlp_width(config)
    return {**parts, "lm_head": 2 * D * V}


def training_flops_per_token(
    config: LlamaConfig, seq_len: int, recompute: bool = False, freeze_dense: bool = False
) -> float:
    """Operations of forward and backward for one token; the backward counts as twice the forward.

    Args:
        config: a `MonetConfig`, or a `LlamaConfig` for a dense model.
        seq_len: tokens per sequence.
        recompute: also count the second forward of the layers under activation checkpointing. Model utilisation (MFU)
            is computed without it, hardware utilisation with it.
        freeze_dense: only routers and experts learn. The backward then ends at the first Monet layer, and frozen
            matrices cost half, because they need no gradient.
    """
    parts = forward_flops_per_token(config, seq_len)
    forward = sum(parts.values())
    again = forward - parts["lm_head"] if recompute else 0.0
    if not (freeze_dense and isinstance(config, MonetConfig)):
        return 3 * forward + again
    above = [layer for layer in range(config.num_hidden_layers) if layer > config.monet_layers[0]]
    attention = len(above) / config.num_hidden_layers
    backward = 2 * (parts["router"] + parts["experts"] + parts["mixing"]) + parts["lm_head"]
    backward += attention * (parts["attention_projections"] + 2 * parts["attention_scores"])
    if dense := dense_layers(config):
        backward += parts["mlp"] * len(set(above) & set(config.dense_layers or ())) / dense
    return forward + backward + again * saving_layers(config, freeze_dense) / config.num_hidden_layers


def trained_parameters(config: LlamaConfig, freeze_dense: bool = False) -> int:
    """Number of parameters that get a gradient.

    Args:
        config: a `MonetConfig`, or a `LlamaConfig` for a dense model.
        freeze_dense: only routers and experts learn.
    """
    parts = parameter_counts(config)
    return parts["routers"] + parts["experts"] if freeze_dense else sum(parts.values())


def saving_layers(config: LlamaConfig, freeze_dense: bool = False) -> int:
    """Number of decoder layers whose forward saves something for the backward.

    Args:
        config: a `MonetConfig`, or a `LlamaConfig` for a dense model.
        freeze_dense: only routers and experts learn, so the layers below the first Monet layer save nothing.
    """
    first = config.monet_layers[0] if freeze_dense and isinstance(config, MonetConfig) else 0
    return config.num_hidden_layers - first


def dense_layers(config: LlamaConfig) -> int:
    """Number of layers with a dense MLP."""
    return len(config.dense_layers or ()) if isinstance(config, MonetConfig) else config.num_hidden_layers


def mlp_width(config: LlamaConfig) -> int:
    """Hidden width of the dense MLPs."""
    assert config.intermediate_size is not None
    return config.intermediate_size


def _attention_widths(config: LlamaConfig) -> tuple[int, int]:
    """Total widths of queries and of keys."""
    head_dim = config.head_dim or config.hidden_size // config.num_attention_heads
    return config.num_attention_heads * head_dim, (config.num_key_value_heads or config.num_attention_heads) * head_dim
