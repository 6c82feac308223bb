"""Estimates the bytes that a training process keeps on its GPU, from a configuration. Tests compare with small runs.

docs/scaling.md has the formulas and states what they omit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from transformers import LlamaConfig

from monet.configuration_monet import MonetConfig
from monet.costs.flops import (
    dense_layers,
    mlp_width,
    parameter_counts,
    saving_layers,
    trained_parameters,
)

Strategy = Literal["ddp", "zero1", "zero2", "zero3", "fsdp2"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
# Strategies that shard the optimiser; those that also shard gradients; those that also shard weights.
_SPREADS = {
    "optimiser": ("zero1", "zero2", "zero3", "fsdp2"),
    "gradients": ("zero2", "zero3", "fsdp2"),
    "weights": ("zero3", "fsdp2"),
}


@dataclass(frozen=True)
class Widths:
    """Bytes per element of each kind of array that training keeps.

    Attributes:
        weight: a parameter, as the process keeps it.
        gradient: a parameter's gradient, in the form that is accumulated over micro-batches and ranks.
        master: float32 copy that the optimiser updates; 0 if `weight` is that copy.
        moments: both moments of AdamW together.
        copy: a matrix, as autocast copies it for one micro-batch.
        activation: values that layers compute with and pass on internally.
        residual: the stream between layers.
    """

    weight: int
    gradient: int
    master: int
    moments: int
    copy: int
    activation: int
    residual: int


_FLOAT32 = Widths(weight=4, gradient=4, master=0, moments=8, copy=0, activation=4, residual=4)
_AUTOCAST = Widths(weight=4, gradient=4, master=0, moments=8, copy=2, activation=2, residual=4)
_HALF = Widths(weight=2, gradient=2, master=0, moments=4, copy=0, activation=2, residual=2)
# ZeRO's optimiser has a separate copy of the weights, in float32 too
_ZERO_FLOAT32 = Widths(weight=4, gradient=4, master=4, moments=8, copy=0, activation=4, residual=4)
_ZERO_HALF = Widths(weight=2, gradient=4, master=4, moments=8, copy=0, activation=2, residual=2)
# FSDP2 casts the weights that it gathers
_SHARDED_HALF = Widths(weight=4, gradient=4, master=0, moments=8, copy=0, activation=2, residual=2)


def widths(precision: str, strategy: Strategy) -> Widths:
    """Widths under trainer.precision; in both bf16 modes ZeRO keeps half-precision weights with a float32 master."""
    is_half = precision.startswith("bf16")
    if strategy.startswith("zero"):
        return _ZERO_HALF if is_half else _ZERO_FLOAT32
    if not is_half:
        return _FLOAT32
    if precision == "bf16-true":
        return _HALF
    return _SHARDED_HALF if strategy == "fsdp2" else _AUTOCAST


# Elements of a buffer in which ZeRO gathers and reduces, and of the gathered parameters that stage 3 holds at a time.
ZERO_BUCKET = 200_000_000
ZERO_LIVE = 1_000_000_000


def state_bytes(
    config: LlamaConfig,
    precision: str,
    strategy: Strategy,
    gpus: int,
    offload: bool = False,
    freeze_dense: bool = False,
) -> dict[str, float]:
    """Bytes on one GPU that do not depend on the batch.

    Args:
        config: configuration of the model.
        precision: trainer.precision.
        strategy: how the state is sharded over the GPUs.
        gpus: the number N of GPUs.
        offload: ZeRO's optimiser, with the sharded gradients and weights, is in host memory.
        freeze_dense: only routers and experts have gradients and an optimiser's state.
    Returns:
        `weights`, `gradients`, `optimiser` (with the master copy) and the `buffers` for communication.
    """
    total, wide = sum(parameter_counts(config).values()), widths(precision, strategy)
    trained = trained_parameters(config, freeze_dense)
    parts = {
        "weights": wide.weight * total, "gradients": wide.gradient * trained,
        "optimiser": (wide.master + wide.moments) * trained,
    }  # fmt: skip
    held = {
        name: 0.0 if offload and strategy in _SPREADS[name] else size / (gpus if strategy in _SPREADS[name] else 1)
        for name, size in parts.items()
    }
    return {**held, "buffers": _buffers(config, wide, strategy)}


def host_bytes(config: LlamaConfig, precision: str, strategy: Strategy, gpus: int, freeze_dense: bool = False) -> float:
    """Host memory of one offloading process: master weights, moments, two copies of gradients, data sent to the GPU."""
    wide = widths(precision, strategy)
    each = wide.master + wide.moments + 2 * wide.gradient
    total, trained = sum(parameter_counts(config).values()), trained_parameters(config, freeze_dense)
    return (each * trained + wide.weight * total) / gpus


def update_bytes(
    config: LlamaConfig, precision: str, strategy: Strategy, gpus: int, freeze_dense: bool = False
) -> float:
    """Bytes that AdamW's update reads and writes on one GPU, gradient clipping included."""
    wide = widths(precision, strategy)
    weights = 2 * wide.master + wide.weight if wide.master else 2 * wide.weight
    each = weights + 2 * wide.moments + 4 * wide.gradient  # gradients: for the norm, for scaling, for the update
    return each * trained_parameters(config, freeze_dense) / (gpus if strategy in _SPREADS["optimiser"] else 1)


def _buffers(config: LlamaConfig, wide: Widths, strategy: Strategy) -> float:
    """Memory in addition to the layers' work: gradients on their way to other ranks, and gathered weights."""
    parts = parameter_counts(config)
    total = sum(parts.values())
    if strategy == "ddp":  # its buckets are the gradients themselves
        return 0.0
    bucket = min(ZERO_BUCKET, total)
    if strategy == "zero1":  # two buffers in turn, and the copy that is sent
        return 3.0 * wide.gradient * bucket
    if strategy == "zero2":  # the same in the layers' dtype, and cast
        return (3.0 * wide.weight + (wide.gradient if wide.gradient > wide.weight else 0)) * bucket
    if strategy == "zero3":
        return 2.0 * wide.gradient * bucket + wide.weight * min(ZERO_LIVE, total)
    ends = parts["embedding"] + parts["lm_head"]
    layer = (total - ends) / config.num_hidden_layers
    # weights of this layer and the next one, or of both ends; gradients as computed and as reduced
    return wide.activation * max(2 * layer, ends) + (wide.activation + wide.gradient) * max(layer, ends)


def layer_bytes_per_token(config: LlamaConfig, wide: Widths) -> float:
    """Bytes per token that one decoder layer's forward saves for its backward, with its share of a router."""
    return _layer(config, wide) + _router(config, wide) * _routers(config) / config.num_hidden_layers


def saved_bytes_per_token(config: LlamaConfig, wide: Widths) -> float:
    """Bytes per token that a whole forward with its loss saves for the backward, without checkpointing."""
    layers = config.num_hidden_layers * layer_bytes_per_token(config, wide)
    return layers + _norm(config, wide, readers=1) + 4 * config.vocab_size  # log-probabilities


def activation_bytes_per_token(
    config: LlamaConfig, wide: Widths, checkpointing: bool, freeze_dense: bool = False
) -> dict[str, float]:
    """Peak memory of a micro-batch's forward and backward, in bytes per token.

    Args:
        config: configuration of the model.
        wide: widths of the run.
        checkpointing: layers keep only their inputs and are recomputed in the backward, one at a time.
        freeze_dense: only routers and experts learn, so the layers below the first Monet layer keep nothing.
    Returns:
        `layers`, held from forward to backward, and the larger of two further parts: `head` (final norm, logits and
        their loss) or `work` (one layer's backward); the other part is 0.
    """
    L, D = saving_layers(config, freeze_dense), config.hidden_size
    # log-probabilities, their gradient and the gradient of the logits, all in float32
    head = _norm(config, wide, readers=1) + 12 * config.vocab_size
    work = _work(config, wide)
    layers = L * layer_bytes_per_token(config, wide)
    if checkpointing:
        work += _layer(config, wide) + _router(config, wide)
        layers = L * D * wide.residual
        if isinstance(config, MonetConfig):  # passed from a router to the layers of its group
            layers += _routers(config) * 2 * config.moe_heads * config.moe_experts * wide.activation
    return {"layers": layers, "head": head if head >= work else 0.0, "work": work if work > head else 0.0}


def copies_bytes(config: LlamaConfig, wide: Widths, checkpointing: bool) -> float:
    """Bytes of autocast's half-precision copies of the matrices that the backward needs, at the start of the backward.

    Recomputed layers make their copies again; the output head's copy exists in both cases.
    """
    parts = parameter_counts(config)
    head = parts["lm_head"] or parts["embedding"]
    return wide.copy * (head if checkpointing else sum(parts.values()) - parts["embedding"] - parts["norms"])


def _norm(config: LlamaConfig, wide: Widths, readers: int) -> float:
    """Input in float32, normalised input, and output; autocast copies the output for each linear that reads it."""
    copies = readers if wide.copy else 1
    return config.hidden_size * (4 + wide.residual + copies * wide.activation)


def _layer(config: LlamaConfig, wide: Widths) -> float:
    """What one decoder layer saves; in a hybrid the mean over its layers."""
    heads = config.num_attention_heads
    head_dim = config.head_dim or config.hidden_size // heads
    keys = (config.num_key_value_heads or heads) * head_dim
    # queries, keys, values, output, and the normaliser of the softmax
    attention = wide.activation * 2 * (heads * head_dim + keys) + 4 * heads
    inner, dense = 0.0, dense_layers(config) / config.num_hidden_layers
    if isinstance(config, MonetConfig):
        readers = 2 if config.moe_decompose == "vertical" else 1
        hidden = wide.activation * config.moe_experts * config.moe_dim  # hidden units; the rest is recomputed
        inner += (1 - dense) * (_norm(config, wide, readers) + hidden)
    if dense:  # gate, up, activated gate, product
        inner += dense * (_norm(config, wide, readers=2) + wide.activation * 4 * mlp_width(config))
    return _norm(config, wide, readers=3) + attention + inner


def _router(config: LlamaConfig, wide: Widths) -> float:
    if not isinstance(config, MonetConfig):
        return 0.0
    # probabilities in float32 and in the dtype that the layers read; the Triton kernels keep less
    width = 4 + (wide.activation if wide.activation < 4 else 0)
    copies = 2 * wide.activation * config.hidden_size if wide.copy else 0
    return 2 * config.moe_heads * config.moe_experts * width + copies


def _work(config: LlamaConfig, wide: Widths) -> float:
    """Short-lived arrays of a layer's backward: recomputed mixed arrays, and gradients of these and of gates."""
    work = 0.0
    if isinstance(config, MonetConfig):
        mixed = 6 * wide.activation * config.moe_experts * config.moe_dim
        work = mixed + 8 * 2 * config.moe_heads * config.moe_experts
    return max(work, 3 * wide.activation * mlp_width(config)) if dense_layers(config) else work


def _routers(config: LlamaConfig) -> int:
    return config.num_routing_groups if isinstance(config, MonetConfig) else 0
