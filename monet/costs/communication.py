"""What GPUs send each other in an optimiser step, from a configuration: a model; volumes are checked on real ranks.

Formulas and what they leave out: docs/scaling.md.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from transformers import LlamaConfig

from monet.costs.flops import parameter_counts
from monet.costs.memory import ZERO_BUCKET, Strategy, widths

# What messages reach of a link's rate; what starting a sum takes for each doubling of the ranks (NCCL has trees for
# it); what starting a gather, or a reduction to shards, takes for each rank of the ring (NCCL has rings for those).
LINK_EFFICIENCY, TREE_SECONDS, RING_SECONDS = 0.8, 20e-6, 2e-6
# Bytes of gradients that DDP sums at a time: the default of its strategy here.
DDP_BUCKET_BYTES = 25 << 20
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
    volume: Volume,
    strategy: Strategy,
    bandwidth: float,
    compute_seconds: float,
    accumulate: int,
    starting_seconds: float = 0.0,
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
        starting_seconds: of a step in which the sums of gradients start, see `starting_seconds`.
    """
    gradients, weights = (size / bandwidth for size in volume)
    gradients += starting_seconds
    backward = 2 / 3 * compute_seconds
    if strategy in ("zero3", "fsdp2"):
        hidden = min(OVERLAP * (gradients + weights), compute_seconds)
    else:
        hidden = min(OVERLAP * gradients, backward if strategy == "zero2" else backward / accumulate)
    return gradients + weights, gradients + weights - hidden


class Collectives(NamedTuple):
    """Collectives of an optimiser step in which nothing is computed until they have started everywhere.

    Attributes:
        gathers: also reductions to shards: one message passes every rank.
        sums: messages pass a tree of the ranks.
    """

    gathers: int
    sums: int


def collectives(config: LlamaConfig, strategy: Strategy, accumulate: int) -> Collectives:
    """Collectives of an optimiser step with `model.router_statistics: global`.

    Each micro-batch has one gather a router and one sum for the losses of all, each step one sum of its numbers. ZeRO
    takes the gradient's norm twice, once a parameter group. After the update stages 1 and 2 gather the weights, a
    buffer at a time. With stage 3 and FSDP2 each layer is gathered twice and its gradients are reduced. The gradients
    of the other strategies are left out: see `starting_seconds`.

    Args:
        config, strategy: of the run.
        accumulate: micro-batches of a step.
    """
    routers: int = getattr(config, "num_routing_groups", 0)
    groups = 3 if routers else 2  # parameters with weight decay, those without, routers
    gathers, sums = accumulate * routers, (accumulate if routers else 0) + 1
    if strategy.startswith("zero"):
        sums += 2 * groups
    if strategy in ("zero1", "zero2"):
        gathers += sum(parameter_counts(config).values()) // ZERO_BUCKET + groups
    if strategy in ("zero3", "fsdp2"):
        gathers += 3 * accumulate * config.num_hidden_layers
    return Collectives(gathers, sums)


def starting_seconds(config: LlamaConfig, precision: str, strategy: Strategy, gpus: int, accumulate: int) -> float:
    """Seconds of an optimiser step in which the buckets of DDP's, and of stage 1's and 2's gradients start.

    They start one after another beside the backward pass.
    """
    count = sum(parameter_counts(config).values())
    if strategy == "ddp":
        buckets = widths(precision, strategy).gradient * count / DDP_BUCKET_BYTES
    else:
        buckets = {"zero1": 1, "zero2": accumulate}.get(strategy, 0) * count / ZERO_BUCKET
    return TREE_SECONDS * math.log2(gpus) * math.ceil(buckets)


def latency_seconds(config: LlamaConfig, strategy: Strategy, gpus: int, accumulate: int) -> float:
    """Seconds of an optimiser step in which `collectives` start, all of them waited for."""
    gathers, sums = collectives(config, strategy, accumulate)
    return RING_SECONDS * (gpus - 1) * gathers + TREE_SECONDS * math.log2(gpus) * sums
