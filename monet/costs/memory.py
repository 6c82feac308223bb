"""Bytes that a training process keeps on its GPU, from a configuration: a model, checked against counted small runs.

Formulas and what they leave out: docs/scaling.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from transformers import LlamaConfig

from monet.configuration_monet import MonetConfig
from monet.costs.flops import parameter_counts

Strategy = Literal["ddp", "zero1", "zero2", "zero3", "fsdp2"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
# Those that spread the optimiser, gradients too, and weights too.
_SPREADS = {
    "optimiser": ("zero1", "zero2", "zero3", "fsdp2"),
    "gradients": ("zero2", "zero3", "fsdp2"),
    "weights": ("zero3", "fsdp2"),
}


@dataclass(frozen=True)
class Widths:
    """Bytes an element of what training keeps.

    Attributes:
        weight: of a parameter, as the process keeps it.
        gradient: of a parameter, as micro-batches and ranks are added up.
        master: float32 copy that the optimiser updates; 0 where `weight` is that.
        moments: both of AdamW.
        copy: of a matrix, made by autocast for the length of a micro-batch.
        activation: what layers compute with and hand on inside.
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
# ZeRO's optimiser has its own copy of the weights, in float32 too
_ZERO_FLOAT32 = Widths(weight=4, gradient=4, master=4, moments=8, copy=0, activation=4, residual=4)
_ZERO_HALF = Widths(weight=2, gradient=4, master=4, moments=8, copy=0, activation=2, residual=2)
# FSDP2 casts what it gathers
_SHARDED_HALF = Widths(weight=4, gradient=4, master=0, moments=8, copy=0, activation=2, residual=2)


def widths(precision: str, strategy: Strategy) -> Widths:
    """Widths under trainer.precision; ZeRO keeps half-precision weights with a float32 master in both bf16 modes."""
    is_half = precision.startswith("bf16")
    if strategy.startswith("zero"):
        return _ZERO_HALF if is_half else _ZERO_FLOAT32
    if not is_half:
        return _FLOAT32
    if precision == "bf16-true":
        return _HALF
    return _SHARDED_HALF if strategy == "fsdp2" else _AUTOCAST


# Elements of a buffer in which ZeRO gathers and reduces, and of the parameters stage 3 holds gathered at a time.
ZERO_BUCKET = 200_000_000
ZERO_LIVE = 1_000_000_000


def state_bytes(
    config: LlamaConfig, precision: str, strategy: Strategy, gpus: int, offload: bool = False
) -> dict[str, float]:
    """What does not depend on the batch, of one GPU.

    Args:
        config: of the model.
        precision: trainer.precision.
        strategy: how the state is spread over the GPUs.
        gpus: their number N.
        offload: ZeRO's optimiser, with the gradients and weights that are spread, lies in host memory.
    Returns:
        `weights`, `gradients`, `optimiser` (with the master copy) and `buffers` of the communication.
    """
    total, wide = sum(parameter_counts(config).values()), widths(precision, strategy)
    parts = {
        "weights": wide.weight * total, "gradients": wide.gradient * total,
        "optimiser": (wide.master + wide.moments) * total,
    }  # fmt: skip
    held = {
        name: 0.0 if offload and strategy in _SPREADS[name] else size / (gpus if strategy in _SPREADS[name] else 1)
        for name, size in parts.items()
    }
    return {**held, "buffers": _buffers(config, wide, strategy)}


def host_bytes(config: LlamaConfig, precision: str, strategy: Strategy, gpus: int) -> float:
    """Host memory of one process that offloads: master weights, moments, gradients twice, what returns to the GPU."""
    wide = widths(precision, strategy)
    each = wide.master + wide.moments + 2 * wide.gradient + wide.weight
    return each * sum(parameter_counts(config).values()) / gpus


def update_bytes(config: LlamaConfig, precision: str, strategy: Strategy, gpus: int) -> float:
    """What AdamW's update reads and writes on one GPU, gradient clipping included."""
    wide = widths(precision, strategy)
    weights = 2 * wide.master + wide.weight if wide.master else 2 * wide.weight
    each = weights + 2 * wide.moments + 4 * wide.gradient  # for the norm, scaled, for the update
    return each * sum(parameter_counts(config).values()) / (gpus if strategy in _SPREADS["optimiser"] else 1)


def _buffers(config: LlamaConfig, wide: Widths, strategy: Strategy) -> float:
    """Beside the layers' work: gradients on their way to the other ranks, and gathered weights."""
    parts = parameter_counts(config)
    total = sum(parts.values())
    if strategy == "ddp":  # its buckets are the gradients themselves
        return 0.0
    if strategy == "zero1":  # filled and sent in turns, and the copy that is sent
        return 3.0 * wide.gradient * ZERO_BUCKET
    if strategy == "zero2":  # the same in the layers' width, and cast
        return (3.0 * wide.weight + (wide.gradient if wide.gradient > wide.weight else 0)) * ZERO_BUCKET
    if strategy == "zero3":
        return 2.0 * wide.gradient * ZERO_BUCKET + wide.weight * min(ZERO_LIVE, total)
    ends = parts["embedding"] + parts["lm_head"]
    layer = (total - ends) / config.num_hidden_layers
    # this layer's weights and the next one's, or the two ends'; gradients as computed and as reduced
    return wide.activation * max(2 * layer, ends) + (wide.activation + wide.gradient) * max(layer, ends)


def layer_bytes_per_token(config: LlamaConfig, wide: Widths) -> float:
    """What one decoder layer's forward saves for its backward, a token; its share of a router included."""
    return _layer(config, wide) + _router(config, wide) * _routers(config) / config.num_hidden_layers


def saved_bytes_per_token(config: LlamaConfig, wide: Widths) -> float:
    """What a whole forward with its loss saves for the backward, a token, without checkpointing."""
    layers = config.num_hidden_layers * layer_bytes_per_token(config, wide)
    return layers + _norm(config, wide, readers=1) + 4 * config.vocab_size  # log-probabilities


def activation_bytes_per_token(config: LlamaConfig, wide: Widths, checkpointing: bool) -> dict[str, float]:
    """Highest use of a micro-batch's forward and backward, a token.

    Args:
        config: of the model.
        wide: widths of the run.
        checkpointing: layers keep their inputs only and are computed again in the backward, one at a time.
    Returns:
        `layers`, held from forward to backward, and the larger of what then comes on top: `head` (final norm, logits
        and their loss) or `work` of one layer's backward; the other is 0.
    """
    L, D = config.num_hidden_layers, config.hidden_size
    # log-probabilities, their gradient and that of the logits, all in float32
    head = _norm(config, wide, readers=1) + 12 * config.vocab_size
    work = _work(config, wide)
    layers = L * layer_bytes_per_token(config, wide)
    if checkpointing:
        work += _layer(config, wide) + _router(config, wide)
        layers = L * D * wide.residual
        if isinstance(config, MonetConfig):  # handed from a router to the layers of its group
            layers += _routers(config) * 2 * config.moe_heads * config.moe_experts * wide.activation
    return {"layers": layers, "head": head if head >= work else 0.0, "work": work if work > head else 0.0}


def copies_bytes(config: LlamaConfig, wide: Widths, checkpointing: bool) -> float:
    """Autocast's half-precision copies of the matrices that the backward needs, at its start.

    Layers that are computed again make theirs again; the output head's is there either way.
    """
    parts = parameter_counts(config)
    head = parts["lm_head"] or parts["embedding"]
    return wide.copy * (head if checkpointing else sum(parts.values()) - parts["embedding"] - parts["norms"])


def _norm(config: LlamaConfig, wide: Widths, readers: int) -> float:
    """Input in float32, normalised input, and output, of which autocast makes a copy for each linear that reads it."""
    copies = readers if wide.copy else 1
    return config.hidden_size * (4 + wide.residual + copies * wide.activation)


def _layer(config: LlamaConfig, wide: Widths) -> float:
    heads = config.num_attention_heads
    head_dim = config.head_dim or config.hidden_size // heads
    keys = (config.num_key_value_heads or heads) * head_dim
    # queries, keys, values, output; and the softmax's normaliser
    attention = wide.activation * 2 * (heads * head_dim + keys) + 4 * heads
    if isinstance(config, MonetConfig):
        readers = 2 if config.moe_decompose == "vertical" else 1
        inner = wide.activation * config.moe_experts * config.moe_dim  # hidden units; the rest is made again
    else:
        readers, inner = 2, wide.activation * 4 * config.intermediate_size  # gate, up, activated gate, product
    return _norm(config, wide, readers=3) + _norm(config, wide, readers) + attention + inner


def _router(config: LlamaConfig, wide: Widths) -> float:
    if not isinstance(config, MonetConfig):
        return 0.0
    # probabilities in float32 and as the layers read them; the Triton kernels keep less
    width = 4 + (wide.activation if wide.activation < 4 else 0)
    copies = 2 * wide.activation * config.hidden_size if wide.copy else 0
    return 2 * config.moe_heads * config.moe_experts * width + copies


def _work(config: LlamaConfig, wide: Widths) -> float:
    """Arrays of a layer's backward that live for a moment: mixed arrays made again, gradients of these and of gates."""
    if isinstance(config, MonetConfig):
        mixed = 6 * wide.activation * config.moe_experts * config.moe_dim
        return mixed + 8 * 2 * config.moe_heads * config.moe_experts
    return 3 * wide.activation * config.intermediate_size


def _routers(config: LlamaConfig) -> int:
    return config.num_routing_groups if isinstance(config, MonetConfig) else 0
