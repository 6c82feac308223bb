"""`monet plan`: whether a training run fits and what it costs, before anything is spent. A model, no measurement."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from transformers import LlamaConfig

from monet.errors import ConfigError
from monet.files import atomic_write_json
from monet.flops import forward_flops_per_token, parameter_counts, training_flops_per_token
from monet.hardware import ACCELERATORS, Accelerator
from monet.memory import Stage, activation_bytes_per_token, copies_bytes, state_bytes, widths

GIB = 1 << 30
# Kept free: the CUDA context, the libraries' workspaces, NCCL; and what the allocator cannot use, as a share.
RESERVED_BYTES, FRAGMENTED = 3 * GIB, 0.05
# What messages reach of a link's rate, what a collective takes to start on N ranks: LATENCY_SECONDS * log2(N).
LINK_EFFICIENCY, LATENCY_SECONDS = 0.8, 20e-6
# Share of the communication that runs beside the layers' work.
OVERLAP = 0.5
STAGES: tuple[Stage, ...] = (0, 1, 2, 3)
NAMES = {0: "ddp", 1: "zero1", 2: "zero2", 3: "zero3"}


@dataclass(frozen=True)
class Run:
    """What of a training configuration the cost depends on."""

    name: str
    config: LlamaConfig
    seq_len: int
    windows: int  # of an optimiser step, over all GPUs
    micro_batch: int
    steps: int
    precision: str
    checkpointing: bool
    stage: Stage
    offload: bool

    @property
    def tokens(self) -> int:
        """Of an optimiser step."""
        return self.windows * self.seq_len


@dataclass(frozen=True)
class Assumptions:
    """What the estimates stand on."""

    gpu: Accelerator
    gpus: int
    gpus_per_node: int
    mfu: float
    network_bandwidth: float  # bytes a second of one GPU to other nodes, one direction

    @property
    def memory(self) -> float:
        """Bytes of a GPU that a run can fill."""
        return (self.gpu.memory_bytes - RESERVED_BYTES) * (1 - FRAGMENTED)

    @property
    def bandwidth(self) -> float:
        """Bytes a second that one GPU sends in a collective over all of them."""
        within = self.gpus <= self.gpus_per_node
        return LINK_EFFICIENCY * (self.gpu.link_bandwidth if within else self.network_bandwidth)


@dataclass(frozen=True)
class Choice:
    """One way to run: memory in bytes of one GPU, times in seconds of an optimiser step."""

    stage: Stage
    micro_batch: int
    checkpointing: bool
    accumulate: int
    memory: dict[str, float]
    compute_seconds: float
    communication_seconds: float
    fits: bool

    @property
    def total_bytes(self) -> float:
        return sum(self.memory.values())

    @property
    def step_seconds(self) -> float:
        """Compute, and what of the communication finds no compute to hide behind."""
        return (
            self.compute_seconds
            + self.communication_seconds
            - min(OVERLAP * self.communication_seconds, self.compute_seconds)
        )


def plan(
    config: list[Path],
    gpus: int = 8,
    gpu: str = "h100",
    mfu: float = 0.4,
    network_gbps: float = 400.0,
    gpus_per_node: int = 8,
    tokens: float | None = None,
    json: Path | None = None,
) -> None:
    """Estimate a training run's memory, time and cost before it is started.

    Everything is computed from the configuration: parameters and operations exactly, memory and time by the formulas
    of docs/scaling.md. The batch of an optimiser step is kept as configured, whatever the number of GPUs.

    Args:
        config: training configuration as for train.py; give it several times to merge files.
        gpus: number N of GPUs.
        gpu: kind of GPU: h100, h100-pcie, h100-nvl, h200, b200, a100, a100-40gb, l40s, rtx4090.
        mfu: share of the GPU's peak that forward and backward reach while they run; an assumption, not a measurement.
        network_gbps: network of one GPU to other nodes, gigabits a second, one direction.
        gpus_per_node: GPUs that share a node and its fast links.
        tokens: budget in tokens; none takes the configuration's trainer.max_steps.
        json: also write everything to this file.
    """
    run = read_run(config)
    if tokens is not None:
        run = replace(run, steps=math.ceil(tokens / run.tokens))
    if gpu not in ACCELERATORS:
        raise ConfigError(f"gpu = {gpu}: known are {', '.join(sorted(ACCELERATORS))}")
    for name, value in (("gpus", gpus), ("gpus_per_node", gpus_per_node), ("mfu", mfu), ("network_gbps", network_gbps)):
        if not value > 0:
            raise ConfigError(f"{name} = {value}: must be positive")
    if mfu > 1:
        raise ConfigError(f"mfu = {mfu}: a share of the peak, at most 1")
    if run.windows % gpus:
        raise ConfigError(
            f"gpus = {gpus}: a step's {run.windows} windows (data.batch_size x accumulation x devices x nodes of the"
            f" configuration) cannot be dealt to them evenly; take a divisor, or change the batch"
        )
    given = Assumptions(ACCELERATORS[gpu], gpus, gpus_per_node, mfu, network_gbps * 1e9 / 8)
    choices = all_choices(run, given)
    from monet.plan_report import show

    show(run, given, choices)
    if json is not None:
        atomic_write_json(json, as_json(run, given, choices))


def read_run(files: list[Path]) -> Run:
    """What a training configuration says.

    Raises:
        ConfigError: train.py would refuse it, or it leaves the batch open.
    """
    from monet.training.configs import read_training_config
    from monet.training.settings import ModelShape

    settings = read_training_config(files)
    shape = ModelShape(**settings.model.shape.as_dict())
    trainer, batch = settings.trainer, settings.data.batch_size
    devices = 1 if trainer.devices in ("auto", -1, "-1") else trainer.devices
    devices = len(devices) if isinstance(devices, list) else int(devices)
    windows = batch * (trainer.accumulate_grad_batches or 1) * devices * trainer.num_nodes
    stage, offload = _strategy(trainer.strategy)
    return Run(
        name=files[-1].stem,
        config=shape.config(),
        seq_len=settings.data.seq_len,
        windows=windows,
        micro_batch=batch,
        steps=trainer.max_steps,
        precision=str(trainer.precision or "32-true"),
        checkpointing=settings.model.gradient_checkpointing,
        stage=stage,
        offload=offload,
    )


def _strategy(value: Any) -> tuple[Stage, bool]:
    """ZeRO stage of trainer.strategy (fully sharded counts as 3), and whether it offloads."""
    if isinstance(value, str):
        stages: dict[str, Stage] = {"zero1": 1, "zero2": 2, "zero3": 3, "fsdp2": 3}
        return stages.get(value.removesuffix("_offload"), 0), value.endswith("_offload")
    name, options = value.class_path.rpartition(".")[2], value.get("init_args") or {}
    if name == "FullyShard":
        return 3, False
    if name != "Zero":
        return 0, False
    return options.get("stage", 2), bool(options.get("offload_optimizer") or options.get("offload_parameters"))


def all_choices(run: Run, given: Assumptions) -> list[Choice]:
    """Every stage, micro-batch (powers of two that divide a GPU's windows) and checkpointing on and off."""
    per_gpu = run.windows // given.gpus
    sizes = {2**n for n in range(6) if per_gpu % 2**n == 0}
    sizes |= {run.micro_batch} if per_gpu % run.micro_batch == 0 else set()
    stages = STAGES if given.gpus > 1 else STAGES[:1]
    return [choice(run, given, s, m, c) for s in stages for m in sorted(sizes) for c in (False, True)]


def choice(run: Run, given: Assumptions, stage: Stage, micro_batch: int, checkpointing: bool) -> Choice:
    """Memory and time of one way to run."""
    config, wide = run.config, widths(run.precision, stage)
    memory = state_bytes(config, run.precision, stage, given.gpus)
    per_token = activation_bytes_per_token(config, wide, checkpointing)
    memory |= {name: micro_batch * run.seq_len * value for name, value in per_token.items()}
    memory["copies"] = copies_bytes(config, wide, checkpointing)
    accumulate = run.windows // given.gpus // micro_batch
    flops = training_flops_per_token(config, run.seq_len, recompute=checkpointing)
    compute = run.tokens / given.gpus * flops / (given.gpu.peak_flops * given.mfu)
    volume = communicated_bytes(config, run.precision, stage, given.gpus, accumulate)
    # statistics of each router, losses of all; stage 3 gathers each layer twice and reduces its gradients
    routers: int = getattr(config, "num_routing_groups", 0)
    collectives = (routers + 1 if routers else 0) + (3 * config.num_hidden_layers if stage == 3 else 0)
    latency = LATENCY_SECONDS * math.log2(given.gpus) * collectives * accumulate
    communication = sum(volume.values()) / given.bandwidth + latency
    fits = sum(memory.values()) <= given.memory
    return Choice(stage, micro_batch, checkpointing, accumulate, memory, compute, communication, fits)


def communicated_bytes(
    config: LlamaConfig, precision: str, stage: Stage, gpus: int, accumulate: int
) -> dict[str, float]:
    """Bytes that one GPU sends in an optimiser step, by what they are; each collective by rings.

    Args:
        config, precision, stage: of the run.
        gpus: N.
        accumulate: micro-batches of a step.
    """
    total, wide = sum(parameter_counts(config).values()), widths(precision, stage)
    share = (gpus - 1) / gpus
    gradients, weights = share * wide.gradient * total, share * wide.weight * total
    if stage == 0:
        return {"gradients": 2 * gradients, "weights": 0.0}
    if stage == 3:
        return {"gradients": accumulate * gradients, "weights": accumulate * 2 * weights}
    # DeepSpeed's default: buckets of many ranks' gradients are reduced on all ranks, each keeps its own
    return {"gradients": (2 * accumulate if stage == 2 else 2) * gradients, "weights": weights}


def best(choices: list[Choice]) -> Choice | None:
    """The quickest that fits; among those within one percent one without recomputation, then the largest micro-batch,
    then the lowest stage."""
    fitting = [choice for choice in choices if choice.fits]
    least = min((choice.step_seconds for choice in fitting), default=0.0)
    near = [choice for choice in fitting if choice.step_seconds <= 1.01 * least]
    return min(near, key=lambda c: (c.checkpointing, c.accumulate, c.stage, c.total_bytes), default=None)


def configured(run: Run, given: Assumptions) -> Choice | None:
    """The run as its configuration says, None where its micro-batch does not divide a GPU's windows."""
    if (run.windows // given.gpus) % run.micro_batch:
        return None
    found = choice(run, given, run.stage if given.gpus > 1 else 0, run.micro_batch, run.checkpointing)
    if not run.offload:
        return found
    memory = {**found.memory, "optimiser": 0.0}
    return replace(found, memory=memory, fits=sum(memory.values()) <= given.memory)


def remedies(run: Run, given: Assumptions, choices: list[Choice]) -> list[str]:
    """What to do about a configured run that does not fit or cannot be dealt out."""
    now = configured(run, given)
    if now is not None and now.fits:
        return []
    found = best(choices)
    if found is not None:
        words = f"--trainer.strategy {NAMES[found.stage]} --data.batch_size {found.micro_batch}"
        words += f" --trainer.accumulate_grad_batches {found.accumulate}"
        return [f"{words} --model.gradient_checkpointing {str(found.checkpointing).lower()}"]
    least = min(choices, key=lambda c: c.total_bytes)
    lines = [f"more GPUs, or GPUs of more than {least.total_bytes / GIB:,.0f} GiB"]
    if least.total_bytes - least.memory["optimiser"] <= given.memory:
        words = f"--trainer.strategy zero3_offload --data.batch_size {least.micro_batch}"
        words += f" --trainer.accumulate_grad_batches {least.accumulate}"
        host = host_bytes(run, given) / GIB
        lines.insert(
            0, f"{words} --model.gradient_checkpointing true, with {host:,.0f} GiB of each node's memory; slower"
        )
    return lines


def host_bytes(run: Run, given: Assumptions) -> float:
    """Memory of a node that an offloaded optimiser and master weights take."""
    wide = widths(run.precision, 3)
    share = min(1.0, given.gpus_per_node / given.gpus)
    return share * (wide.master + wide.moments) * sum(parameter_counts(run.config).values())


def as_json(run: Run, given: Assumptions, choices: list[Choice]) -> dict[str, Any]:
    """Everything as plain values; bytes, seconds, operations."""
    now, found = configured(run, given), best(choices)

    def describe(choice: Choice | None) -> dict[str, Any] | None:
        if choice is None:
            return None
        seconds = run.steps * choice.step_seconds
        return {
            **asdict(choice), "strategy": NAMES[choice.stage], "total_bytes": choice.total_bytes,
            "step_seconds": choice.step_seconds, "days": seconds / 86400, "gpu_hours": seconds * given.gpus / 3600,
            "tokens_per_second": run.tokens / choice.step_seconds,
            "communicated_bytes": communicated_bytes(
                run.config, run.precision, choice.stage, given.gpus, choice.accumulate
            ),
        }  # fmt: skip

    return {
        "model": {"name": run.name, "parameters": parameter_counts(run.config),
                  "forward_flops_per_token": forward_flops_per_token(run.config, run.seq_len)},
        "run": {"tokens_per_step": run.tokens, "windows_per_step": run.windows, "steps": run.steps,
                "tokens": run.steps * run.tokens, "seq_len": run.seq_len, "precision": run.precision},
        "assumptions": {**asdict(given), "usable_bytes": given.memory, "reserved_bytes": RESERVED_BYTES,
                        "fragmented": FRAGMENTED, "link_efficiency": LINK_EFFICIENCY, "overlap": OVERLAP,
                        "latency_seconds": LATENCY_SECONDS, "is_measured": False},
        "configured": describe(now), "best": describe(found), "remedies": remedies(run, given, choices),
        "choices": [describe(choice) for choice in choices],
    }  # fmt: skip
