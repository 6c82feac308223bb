"""Estimates what GPUs send each other per optimiser step, from a configuration. Tests check the volumes on real ranks.

docs/scaling.md has the formulas and states what they omit.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from transformers import LlamaConfig

from monet.costs.flops import parameter_counts, trained_parameters
from monet.costs.memory import ZERO_BUCKET, Strategy, widths

# Share of a link's rate that messages reach. Time to start a sum, for each doubling of the ranks (NCCL uses trees).
# Time to start a gather or a reduction to shards, for each rank of the ring (NCCL uses rings).
LINK_EFFICIENCY, TREE_SECONDS, RING_SECONDS = 0.8, 20e-6, 2e-6
# Bytes of gradients that DDP sums at a time, the default of its strategy here.
DDP_BUCKET_BYTES = 25 << 20
# Share of the communication that actually overlaps with the layers' work, out of what can overlap.
OVERLAP = 0.5


class Volume(NamedTuple):
    """Bytes that one GPU sends per optimiser step."""

    gradients: float
    weights: float


def sent_bytes(
    config: LlamaConfig, precision: str, strategy: Strategy, gpus: int, accumulate: int, freeze_dense: bool = False
) -> Volume:
    """Bytes that one GPU sends per optimiser step; each collective uses rings.

    An all-reduce of S bytes sends 2 * S * (N-1)/N bytes, a gather or a reduction to shards half of that.

    Args:
        config, precision, strategy: settings of the run.
        gpus: N.
        accumulate: micro-batches per step.
        freeze_dense: only routers and experts have gradients, and change.
    """
    total, wide = sum(parameter_counts(config).values()), widths(precision, strategy)
    share = (gpus - 1) / gpus
    trained = trained_parameters(config, freeze_dense)
    gradients, weights = share * wide.gradient * trained, share * wide.weight * trained
    if strategy == "ddp":
        return Volume(2 * gradients, 0.0)
    if strategy in ("zero3", "fsdp2"):  # gathered for forward and backward, in the dtype of the layers
        return Volume(accumulate * gradients, accumulate * 2 * share * wide.activation * total)
    # in stages 1 and 2 DeepSpeed reduces gradients to all ranks, which then drop the parts that are not theirs
    return Volume((accumulate if strategy == "zero2" else 1) * 2 * gradients, weights)


def waiting_seconds(
    volume: Volume,
    strategy: Strategy,
    bandwidth: float,
    compute_seconds: float,
    accumulate: int,
    starting_seconds: float = 0.0,
) -> tuple[float, float]:
    """Seconds per optimiser step that the transfers take, and the part of them in which nothing is computed.

    Gradients are sent during the backward pass (with DDP and stage 1, that of the last micro-batch). Gathered weights
    are sent during all of the work. The weights that stages 1 and 2 send after the update overlap with nothing.

    Args:
        volume: see `sent_bytes`.
        strategy: strategy of the run.
        bandwidth: bytes a second that one GPU sends.
        compute_seconds: seconds for forward and backward of a step.
        accumulate: micro-batches per step.
        starting_seconds: seconds per step to start the sums of gradients, see `starting_seconds`.
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
    """Collectives per optimiser step that block computation until they have started on all ranks.

    Attributes:
        gathers: gathers and reductions to shards, in which one message passes every rank.
        sums: sums, in which messages pass a tree of the ranks.
    """

    gathers: int
    sums: int


def collectives(config: LlamaConfig, strategy: Strategy, accumulate: int) -> Collectives:
    """Collectives per optimiser step with `model.router_statistics: global`.

    Each micro-batch has one gather for each router and one sum for the losses of all routers. Each step has one sum for
    its metrics. ZeRO computes the gradient's norm twice, once for each parameter group. After the update, stages 1 and
    2 gather the weights one buffer at a time. With stage 3 and FSDP2 each layer is gathered twice and its gradients are
    reduced. The gradients of the other strategies are counted in `starting_seconds` instead.

    Args:
        config, strategy: settings of the run.
        accumulate: micro-batches per step.
    """
    routers: int = getattr(config, "num_routing_groups", 0)
    groups = 3 if routers else 2  # parameters with weight decay, parameters without, routers
    gathers, sums = accumulate * routers, (accumulate if routers else 0) + 1
    if strategy.startswith("zero"):
        sums += 2 * groups
    if strategy in ("zero1", "zero2"):
        gathers += sum(parameter_counts(config).values()) // ZERO_BUCKET + groups
    if strategy in ("zero3", "fsdp2"):
        gathers += 3 * accumulate * config.num_hidden_layers
    return Collectives(gathers, sums)


def starting_seconds(config: LlamaConfig, precision: str, strategy: Strategy, gpus: int, accumulate: int) -> float:
    """Seconds per optimiser step to start the gradient buckets of DDP, and of stages 1 and 2.

    The buckets start one after another during the backward pass.
    """
    count = sum(parameter_counts(config).values())
    if strategy == "ddp":
        buckets = widths(precision, strategy).gradient * count / DDP_BUCKET_BYTES
    else:
        buckets = {"zero1": 1, "zero2": accumulate}.get(strategy, 0) * count / ZERO_BUCKET
    return TREE_SECONDS * math.log2(gpus) * math.ceil(buckets)


def latency_seconds(config: LlamaConfig, strategy: Strategy, gpus: int, accumulate: int) -> float:
    """Seconds per optimiser step to start `collectives`; the GPU waits for all of them."""
    gathers, sums = collectives(config, strategy, accumulate)
    return RING_SECONDS * (gpus - 1) * gathers + TREE_SECONDS * math.log2(gpus) * sums
