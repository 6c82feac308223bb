"""GPU hours of an experiment by a formula whose assumptions are told; an estimate, not a measurement."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import LlamaConfig

from monet.costs.flops import forward_flops_per_token, parameter_counts
from monet.costs.hardware import ACCELERATORS
from monet.errors import ConfigError

UTILISATION = 0.3  # of the data sheet's dense bf16 rate, in forwards over many tokens
BANDWIDTH_SHARE = 0.5  # of the data sheet's memory bandwidth, in decoding
STEP_FLOOR = 0.02  # seconds that a decoding step takes at least, however small the model


@dataclass(frozen=True)
class Work:
    """What an experiment computes.

    Args:
        tokens: that are read in forwards over whole sequences.
        steps: of decoding, one after another; each makes one token of every sequence of a batch.
        counted: how both were counted, in words, with every assumption.
        seq_len: tokens of a sequence, for the share of attention.
    """

    tokens: float
    steps: float
    counted: str
    seq_len: int = 512


def check_gpu(gpu: str) -> None:
    """Refuse a GPU that is not listed.

    Raises:
        ConfigError: names those that are.
    """
    if gpu not in ACCELERATORS:
        raise ConfigError(f"gpu {gpu!r} is not listed; there are {', '.join(ACCELERATORS)}")


def gpu_hours(work: Work, config: LlamaConfig, gpu: str) -> float:
    """Hours on one GPU: tokens x operations / (peak x 0.3) + steps x max(weight bytes / (bandwidth x 0.5), 0.02 s).

    Args:
        work: of the experiment.
        config: of the model; weights are taken as bfloat16.
        gpu: key of `monet.costs.hardware.ACCELERATORS`.

    Raises:
        ConfigError: no such GPU is listed.
    """
    check_gpu(gpu)
    kind = ACCELERATORS[gpu]
    flops = sum(forward_flops_per_token(config, work.seq_len).values())
    step = max(2 * sum(parameter_counts(config).values()) / (kind.memory_bandwidth * BANDWIDTH_SHARE), STEP_FLOOR)
    return (work.tokens * flops / (kind.peak_flops * UTILISATION) + work.steps * step) / 3600


def formula(gpu: str) -> str:
    """The estimate's formula in words."""
    kind = ACCELERATORS[gpu]
    return (
        f"tokens x forward operations / ({kind.peak_flops / 1e12:.0f} TFLOP/s x {UTILISATION:g}) + decoding steps x "
        f"max(bytes of the bfloat16 weights / ({kind.memory_bandwidth / 1e12:g} TB/s x {BANDWIDTH_SHARE:g}), "
        f"{STEP_FLOOR:g} s), on one {kind.name}; {UTILISATION:g}, {BANDWIDTH_SHARE:g} and {STEP_FLOOR:g} s are assumed"
    )
