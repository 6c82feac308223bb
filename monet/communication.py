"""What GPUs send each other in an optimiser step, from a configuration: a model; volumes are checked on real ranks.

Formulas and what they leave out: docs/scaling.md.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from transformers import LlamaConfig

from monet.flops import parameter_counts
from monet.memory import Strategy, widths

# What messages reach of a link's rate; what a small collective takes for each doubling of the ranks; what one of a
# layer's weights or gradients takes for each rank of the ring.
LINK_EFFICIENCY, TREE_SECONDS, RING_SECONDS = 0.8, 20e-6, 2e-6
# Share of the communication that can run beside the layers' work and does.
OVERLAP = 0.5


class Volume(NamedTuple):
    """Bytes that one GPU sends in an optimiser step."""

    gradients: float
    weights: float


def sent_bytes(config: LlamaConfig, precision: str, strategy: Strategy, gpus: int, accumulate: int) -> Volume:
    """Bytes that one GPU sends in an optimiser step; each collective by rings.

    An all-reduce of S bytes sends 2 * S * (N-1)/N, a gather or a reduction to shards half of that.

    Args:
        config, precision, strategy: of the run.
        gpus: N.
        accumulate: micro-batches of a step.
    """
    total, wide = sum(parameter_counts(config).values()), widths(precision, strategy)
    share = (gpus - 1) / gpus
    gradients, weights = share * wide.gradient * total, share * wide.weight * total
    if strategy == "ddp":
        return Volume(2 * gradients, 0.0)
    if strategy in ("zero3", "fsdp2"):  # gathered for forward and backward, as the layers compute with them
        return Volume(accumulate * gradients, accumulate * 2 * share * wide.activation * total)
    # DeepSpeed reduces gradients of stage 1 and 2 to all ranks, which then drop what is not theirs
    return Volume((accumulate if strategy == "zero2" else 1) * 2 * gradients, weights)


def waiting_seconds(
    volume: Volume, strategy: Strategy, bandwidth: float, compute_seconds: float, accumulate: int
) -> tuple[float, float]:
    """Seconds of an optimiser step that the transfers take, and those of them in which nothing is computed.

    Gradients travel beside the backward (with DDP and stage 1 the last micro-batch's), gathered weights beside all of
    the work; the weights that stages 1 and 2 send after the update beside nothing.

    Args:
        volume: see `sent_bytes`.
        strategy: of the run.
        bandwidth: bytes a second that one GPU sends.
        compute_seconds: forward and backward of a step.
        accumulate: micro-batches of a step.
    """
    gradients, weights = (size / bandwidth for size in volume)
    backward = 2 / 3 * compute_seconds
    if strategy in ("zero3", "fsdp2"):
        hidden = min(OVERLAP * (gradients + weights), compute_seconds)
    else:
        hidden = min(OVERLAP * gradients, backward if strategy == "zero2" else backward / accumulate)
    return gradients + weights, gradients + weights - hidden


def latency_seconds(config: LlamaConfig, strategy: Strategy, gpus: int, accumulate: int) -> float:
    """Seconds of an optimiser step in which collectives start, all of them waited for.

    Statistics of each router and the losses of all; with stage 3 and FSDP2 each layer is gathered twice and its
    gradients are reduced.
    """
    routers: int = getattr(config, "num_routing_groups", 0)
    small = TREE_SECONDS * math.log2(gpus) * (routers + 1 if routers else 0)
    large = RING_SECONDS * (gpus - 1) * 3 * config.num_hidden_layers if strategy in ("zero3", "fsdp2") else 0.0
    return accumulate * (small + large)
