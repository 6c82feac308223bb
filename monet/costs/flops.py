"""Parameters and floating-point operations of a model, part by part, from its configuration alone.

A product of a matrix with a vector counts two operations an element. Norms, activations, thresholds, softmaxes and
rotary embeddings are left out: together they are below one percent, and memory, not arithmetic, bounds them.
"""

from __future__ import annotations

from transformers import LlamaConfig

from monet.configuration_monet import MonetConfig


def parameter_counts(config: LlamaConfig) -> dict[str, int]:
    """Numbers of parameters by part; their sum is what the built model has.

    Args:
        config: a `MonetConfig`, or a `LlamaConfig` for a dense model.
    Returns:
        `embedding`, `attention`, `norms`, then `routers` and `experts` (Monet) or `mlp` (LLaMA), and `lm_head`, 0 where
        it is the embedding.
    """
    D, L, V = config.hidden_size, config.num_hidden_layers, config.vocab_size
    queries, keys = _attention_widths(config)
    attention = 2 * D * (queries + keys) + ((queries + 2 * keys + D) if config.attention_bias else 0)
    parts = {"embedding": V * D, "attention": L * attention, "norms": (2 * L + 1) * D}
    if isinstance(config, MonetConfig):
        H, E, M = config.moe_heads, config.moe_experts, config.moe_dim
        # both decompositions have as many: U and V, the hidden units' biases, the output biases
        experts = 2 * D * E * M + E * M + E * D
        parts |= {"routers": config.num_routing_groups * 2 * D * H * E, "experts": L * experts}
    else:
        width: int = config.intermediate_size
        parts["mlp"] = L * (3 * D * width + (2 * width + D if config.mlp_bias else 0))
    return {**parts, "lm_head": 0 if config.tie_word_embeddings else V * D}


def forward_flops_per_token(config: LlamaConfig, seq_len: int) -> dict[str, float]:
    """Operations of a training forward for one token of a sequence of `seq_len`, by part.

    Args:
        config: a `MonetConfig`, or a `LlamaConfig` for a dense model.
        seq_len: tokens of a sequence; a token attends to half of them on average.
    Returns:
        `attention_projections`, `attention_scores` (queries with keys, weights with values), then `router`, `experts`
        (input and output projections, output biases) and `mixing` (Monet), or `mlp` (LLaMA), and `lm_head`.
    """
    D, L, V = config.hidden_size, config.num_hidden_layers, config.vocab_size
    queries, keys = _attention_widths(config)
    parts: dict[str, float] = {
        "attention_projections": 2 * L * 2 * D * (queries + keys),
        "attention_scores": 4 * L * queries * seq_len / 2,
    }
    if isinstance(config, MonetConfig):
        H, E, M = config.moe_heads, config.moe_experts, config.moe_dim
        parts["router"] = 2 * config.num_routing_groups * 2 * D * H * E
        parts["experts"] = 2 * L * (2 * D * E * M + E * D)
        # Horizontal: sums over i and over j, each of H * E * M products. Vertical: two such pairs of half the width.
        parts["mixing"] = 2 * L * 2 * H * E * M
    else:
        parts["mlp"] = 2 * L * 3 * D * config.intermediate_size
    return {**parts, "lm_head": 2 * D * V}


def training_flops_per_token(config: LlamaConfig, seq_len: int, recompute: bool = False) -> float:
    """Operations of forward and backward for one token; the backward counts twice the forward.

    Args:
        config: a `MonetConfig`, or a `LlamaConfig` for a dense model.
        seq_len: tokens of a sequence.
        recompute: count activation checkpointing's second forward of the layers too. The model's utilisation (MFU) is
            counted without it, the hardware's with it.
    """
    parts = forward_flops_per_token(config, seq_len)
    forward = sum(parts.values())
    return 3 * forward + (forward - parts["lm_head"] if recompute else 0.0)


def _attention_widths(config: LlamaConfig) -> tuple[int, int]:
    """Widths of all queries and of all keys."""
    head_dim = config.head_dim or config.hidden_size // config.num_attention_heads
    return config.num_attention_heads * head_dim, (config.num_key_value_heads or config.num_attention_heads) * head_dim
