"""Estimates the GPU hours of an experiment by a formula with explicit assumptions; it measures nothing."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import LlamaConfig

from monet.costs.flops import forward_flops_per_token, parameter_counts
from monet.costs.hardware import ACCELERATORS
from monet.errors import ConfigError

UTILISATION = 0.3  # share of the data sheet's dense bf16 rate, in forwards over many tokens
BANDWIDTH_SHARE = 0.5  # share of the data sheet's memory bandwidth, in decoding
STEP_FLOOR = 0.02  # minimum seconds of a decoding step, even for a small model


@dataclass(frozen=True)
class Work:
    """The computation of an experiment.

    Args:
        tokens: number of tokens read in forwards over whole sequences.
        steps: number of decoding steps, one after another; each makes one token of every sequence of a batch.
        counted: text that explains both counts, with every assumption.
        seq_len: tokens per sequence, for the share of attention.
    """

    tokens: float
    steps: float
    counted: str
    seq_len: int = 512


def check_gpu(gpu: str) -> None:
    """Refuse a GPU that is not listed.

    Raises:
        ConfigError: the GPU is not listed; the message names the listed ones.
    """
    if gpu not in ACCELERATORS:
        raise ConfigError(f"gpu {gpu!r} is not listed; choose from {', '.join(ACCELERATORS)}")


def gpu_hours(work: Work, config: LlamaConfig, gpu: str) -> float:
    """Hours on one GPU: tokens x operations / (peak x 0.3) + steps x max(weight bytes / (bandwidth x 0.5), 0.02 s).

    Args:
        work: computation of the experiment.
        config: configuration of the model; weights count as bfloat16.
        gpu: key of `monet.costs.hardware.ACCELERATORS`.

    Raises:
        ConfigError: the GPU is not listed.
    """
    check_gpu(gpu)
    kind = ACCELERATORS[gpu]
    flops = sum(forward_flops_per_token(config, work.seq_len).values())
    step = max(2 * sum(parameter_counts(config).values()) / (kind.memory_bandwidth * BANDWIDTH_SHARE), STEP_FLOOR)
    return (work.tokens * flops / (kind.peak_flops * UTILISATION) + work.steps * step) / 3600


def formula(gpu: str) -> str:
    """Describe the formula of the estimate."""
    kind = ACCELERATORS[gpu]
    return (
        f"tokens x forward operations / ({kind.peak_flops / 1e12:.0f} TFLOP/s x {UTILISATION:g}) + decoding steps x "
        f"max(bytes of the bfloat16 weights / ({kind.memory_bandwidth / 1e12:g} TB/s x {BANDWIDTH_SHARE:g}), "
        f"{STEP_FLOOR:g} s), on one {kind.name}; {UTILISATION:g}, {BANDWIDTH_SHARE:g} and {STEP_FLOOR:g} s are assumed"
    )
