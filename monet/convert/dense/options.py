"""Options of `monet convert` that concern the experts, stage 2 and the run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from monet.convert.dense.architectures import ExpertShape
from monet.convert.dense.pieces import Heads
from monet.convert.dense.precision import Precision
from monet.convert.dense.start import Init
from monet.errors import ConfigError
from monet.options import Options


@dataclass(frozen=True)
class ExpertOptions(Options):
    """What the new layers are, and how they start.

    Args:
        moe_decompose: vertical or horizontal; see MonetConfig.
        moe_experts: keys per side E; a layer has E * E experts.
        moe_dim: hidden width M of one expert; null takes the width at which all neurons of the MLP fit: 4 * neurons / E
            for vertical, 2 * neurons / E for horizontal.
        moe_heads: routing heads H.
        moe_topk: expected number of active keys per side and head.
        moe_groups: number of converted layers that share one router.
        init: pieces starts from groups of the MLP's neurons; random starts from random weights.
        heads: which keys a head uses at a start from pieces. own: a share of 1/H, the same on both axes; permuted:
            other keys on the second axis; shared: all keys, its own four times as strongly.
        sample_tokens: tokens that are read before stage 1 for the start and for the scales of inputs and outputs.
    """

    moe_decompose: Literal["vertical", "horizontal"] = "vertical"
    moe_experts: int = 256
    moe_dim: int | None = None
    moe_heads: int = 8
    moe_topk: int = 8
    moe_groups: int = 1
    init: Init = "pieces"
    heads: Heads = "shared"
    sample_tokens: int = 16384

    def shape(self, neurons: int) -> ExpertShape:
        """The sizes for an MLP with this number of neurons.

        Raises:
            ConfigError: a size is impossible.
        """
        if self.moe_experts < 1 or self.sample_tokens < 1:
            raise ConfigError(
                f"moe_experts {self.moe_experts} and sample_tokens {self.sample_tokens} must be at least 1"
            )
        if self.init == "pieces" and self.moe_experts > neurons:
            raise ConfigError(
                f"moe_experts {self.moe_experts}: the MLP has {neurons} neurons, and each key starts with at least "
                "one; use fewer keys, or --init random"
            )
        each = -(-neurons // self.moe_experts)
        width = self.moe_dim or each * (4 if self.moe_decompose == "vertical" else 2)
        return ExpertShape(self.moe_decompose, self.moe_experts, width, self.moe_heads, self.moe_topk, self.moe_groups)


@dataclass(frozen=True)
class DistilOptions(Options):
    """Stage 2: the whole model learns the dense model's next-token probabilities, in RUN/distil.

    Args:
        distil_tokens: tokens of stage 2; 0 omits the stage.
        distil_rate: largest learning rate of AdamW.
        distil_batch_size: windows of a step.
        distil_weight: share of the divergence from the dense model in the loss; the rest is the next-token loss.
        distil_temperature: temperature of both models' probabilities in the divergence.
        freeze_dense: train only the new routers and experts.
        distil_here: true runs stage 2 in this process, on one device; false writes RUN/distil.yaml and ends after stage
            1. Then run train.py with that file on any number of GPUs and machines, and this command again.
    """

    distil_tokens: int = 1_000_000
    distil_rate: float = 2e-4
    distil_batch_size: int = 4
    distil_weight: float = 1.0
    distil_temperature: float = 1.0
    freeze_dense: bool = True
    distil_here: bool = True

    def check(self) -> None:
        """Refuse impossible values.

        Raises:
            ConfigError: the message names the option, its value and the valid range.
        """
        for name, least in (("distil_tokens", 0), ("distil_batch_size", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} {getattr(self, name)} must be at least {least}")
        for name in ("distil_rate", "distil_temperature"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ConfigError(f"{name} {getattr(self, name)} must be above 0")
        if not 0 <= self.distil_weight <= 1:
            raise ConfigError(f"distil_weight {self.distil_weight} must be from 0 to 1")


@dataclass(frozen=True)
class RunOptions(Options):
    """Where a conversion runs, and what it writes.

    Args:
        device: cpu, cuda, cuda:1, ...; auto takes a GPU if there is one.
        precision: arithmetic of matrix products: bf16 or float32. auto takes bf16 on a GPU and on a processor with
            instructions for it. Learning weights, losses and running statistics are float32 in both cases.
        dtype: data type of the final weights.
        report_windows: held-out windows of each domain that the report reads.
        save_minutes: minutes between two checkpoints of stage 1.
        progress: show progress on standard error.
    """

    device: str = "auto"
    precision: Precision = "auto"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    report_windows: int = 8
    save_minutes: float = 5.0
    progress: bool = True

    def check(self) -> None:
        """Refuse impossible values.

        Raises:
            ConfigError: the message names the option and its value.
        """
        if self.report_windows < 1:
            raise ConfigError(f"report_windows {self.report_windows} must be at least 1")
        if self.save_minutes < 0:
            raise ConfigError(f"save_minutes {self.save_minutes} must be at least 0")
