"""`monet plan`: estimates whether a training run fits and what it costs. It is a model and measures nothing."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monet.configuration_monet import MonetConfig
from monet.costs.communication import LINK_EFFICIENCY, OVERLAP, RING_SECONDS, TREE_SECONDS, collectives, sent_bytes
from monet.costs.flops import forward_flops_per_token, parameter_counts, trained_parameters
from monet.costs.hardware import ACCELERATORS
from monet.costs.memory import Strategy
from monet.errors import ConfigError
from monet.files import atomic_write_json
from monet.planning.choices import (
    FRAGMENTED,
    RESERVED_BYTES,
    Assumptions,
    Choice,
    Run,
    TeacherCost,
    all_choices,
    best,
    configured,
    remedies,
    words,
)

if TYPE_CHECKING:
    from transformers import LlamaConfig

    from monet.training.teacher import TeacherSettings


def plan(
    config: list[str],
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
    in docs/scaling.md. The batch of an optimiser step stays as configured, for any number of GPUs.

    Args:
        config: training configuration, as for train.py; repeat the option to merge several files.
        gpus: number N of GPUs.
        gpu: kind of GPU: h100, h100-pcie, h100-nvl, h200, h200-nvl, b200, a100, a100-40gb, a100-pcie, a100-pcie-40gb,
            l40s, rtx4090.
        mfu: share of the GPU's peak rate that forward and backward reach; an assumption, not a measurement.
        network_gbps: network rate from one GPU to other nodes (the node's rate divided by its GPUs), in gigabits a
            second, one direction.
        gpus_per_node: GPUs that share a node and its fast links.
        tokens: budget in tokens; if omitted, the configuration's length is used.
        json: also write all results to this file.
    """
    if gpu not in ACCELERATORS:
        raise ConfigError(f"gpu = {gpu}: must be one of {', '.join(sorted(ACCELERATORS))}")
    numbers = {"gpus": gpus, "gpus_per_node": gpus_per_node, "mfu": mfu, "network_gbps": network_gbps, "tokens": tokens}
    for name, value in numbers.items():
        if value is not None and not 0 < value < math.inf:
            raise ConfigError(f"{name} = {value}: must be positive and finite")
    if mfu > 1:
        raise ConfigError(f"mfu = {mfu}: must be a share of the peak, at most 1")
    if gpus > gpus_per_node and gpus % gpus_per_node:
        raise ConfigError(f"gpus = {gpus}: must be a multiple of gpus_per_node = {gpus_per_node}")
    run = read_run([Path(file) for file in config], gpus)
    if tokens is not None:
        run = replace(run, steps=math.ceil(tokens / run.tokens))
    if run.steps < 1:
        raise ConfigError(f"trainer.max_steps = {run.steps}: set the number of optimiser steps, or pass --tokens")
    if run.windows % gpus:
        raise ConfigError(
            f"gpus = {gpus}: a step's {run.windows} windows (data.batch_size x accumulation x devices x nodes of the"
            f" configuration) cannot be divided evenly over them; use a divisor, or change the batch"
        )
    given = Assumptions(ACCELERATORS[gpu], gpus, gpus_per_node, mfu, network_gbps * 1e9 / 8)
    choices = all_choices(run, given)
    from monet.planning.report import show

    show(run, given, choices)
    if json is not None:
        atomic_write_json(json, as_json(run, given, choices))


def read_run(files: list[Path], gpus: int | None = None) -> Run:
    """Read the parts of a training configuration that affect its cost.

    Args:
        files: as for train.py, later files take precedence.
        gpus: number that replaces "all GPUs" in the configuration.
    Raises:
        ConfigError: train.py would refuse the configuration, or it does not fix the batch of a step.
    """
    from monet.training.configs import read_training_config
    from monet.training.settings import ModelShape, check_freezing
    from monet.training.teacher import teacher_settings

    settings = read_training_config(files)
    shape = ModelShape(**settings.model.shape.as_dict())
    trainer, batch = settings.trainer, settings.data.batch_size
    accumulate, nodes = trainer.accumulate_grad_batches, trainer.num_nodes
    devices = _devices(trainer.devices)
    if devices is None:
        if gpus is None:
            raise ConfigError(
                f"trainer.devices = {trainer.devices}: does not fix the batch of a step; set the number of devices"
            )
        devices = max(1, gpus // nodes)
    if batch < 1 or accumulate < 1:
        raise ConfigError(
            f"data.batch_size = {batch}, trainer.accumulate_grad_batches = {accumulate}: both must be whole numbers"
            " of at least 1"
        )
    if (precision := str(trainer.precision or "32-true")).startswith("64"):
        raise ConfigError(f"trainer.precision = {precision}: must be 32-true, bf16-mixed or bf16-true for a plan")
    strategy, offload = _strategy(trainer.strategy)
    steps, windows = trainer.max_steps, batch * accumulate * devices * nodes
    if settings.max_tokens is not None:
        steps = math.ceil(settings.max_tokens / (windows * settings.data.seq_len))
    student, frozen, teacher = shape.config(), settings.model.freeze_dense, teacher_settings(settings)
    check_freezing(student, settings.model.init_from, settings.model.freeze_router, frozen)
    return Run(
        name=files[-1].stem,
        config=student,
        seq_len=settings.data.seq_len,
        windows=windows,
        micro_batch=batch,
        steps=steps,
        precision=precision,
        checkpointing=settings.model.gradient_checkpointing,
        strategy=strategy,
        offload=offload,
        freeze_dense=frozen,
        teacher=None if teacher is None else cost_of(teacher, student, settings.data.seq_len, frozen),
        words={
            "trainer.num_nodes": nodes, "trainer.devices": devices, "data.batch_size": batch,
            "trainer.strategy": strategy + ("_offload" if offload else ""),
            "trainer.accumulate_grad_batches": accumulate,
            "trainer.val_check_interval": trainer.val_check_interval,
            "data.max_val_windows": settings.data.max_val_windows,
            "model.gradient_checkpointing": settings.model.gradient_checkpointing,
        },
    )  # fmt: skip


def cost_of(settings: TeacherSettings, student: LlamaConfig, seq_len: int, freeze_dense: bool) -> TeacherCost:
    """What a teacher costs, from its config.json.

    Args:
        settings: the teacher's folder and dtype.
        student: the learning model.
        seq_len: tokens per sequence.
        freeze_dense: the student's dense weights are frozen; then the layers below its first Monet layer run once.
    Raises:
        ConfigError, CheckpointError: the folder is missing, or no supported model.
    """
    import torch

    from monet.training.teacher import teacher_config

    config = teacher_config(settings)
    parameters = sum(parameter_counts(config).values())
    dtype = (config.dtype or torch.float32) if settings.dtype == "auto" else getattr(torch, settings.dtype)
    parts = forward_flops_per_token(config, seq_len)
    head, layers = parts["lm_head"], config.num_hidden_layers
    shared = student.monet_layers[0] if freeze_dense and isinstance(student, MonetConfig) else 0
    shared = shared if config.hidden_size == student.hidden_size and layers == student.num_hidden_layers else 0
    flops = head + (sum(parts.values()) - head) * (layers - shared) / layers
    return TeacherCost(parameters, parameters * dtype.itemsize, flops)


def _devices(value: Any) -> int | None:
    """Processes per node, from trainer.devices; None if it means all GPUs."""
    if isinstance(value, str) and "," in value:
        value = [part for part in value.split(",") if part.strip()]
    if isinstance(value, list):
        return len(value)
    return None if value == "auto" or int(value) == -1 else int(value)


def _strategy(value: Any) -> tuple[Strategy, bool]:
    """The strategy that trainer.strategy names, and whether it offloads."""
    if isinstance(value, str):
        names: dict[str, Strategy] = {"zero1": "zero1", "zero2": "zero2", "zero3": "zero3", "fsdp2": "fsdp2"}
        return names.get(value.removesuffix("_offload"), "ddp"), value.endswith("_offload")
    name, options = value.class_path.rpartition(".")[2], value.get("init_args") or {}
    if name == "FullyShard":
        return "fsdp2", False
    if name != "Zero":
        return "ddp", False
    stages: dict[int, Strategy] = {1: "zero1", 2: "zero2", 3: "zero3"}
    return stages[options.get("stage", 2)], bool(options.get("offload_optimizer") or options.get("offload_parameters"))


def as_json(run: Run, given: Assumptions, choices: list[Choice]) -> dict[str, Any]:
    """The whole plan as plain values, in bytes, seconds and operations."""
    now = configured(run, given)
    found = best(choices, now)

    def describe(choice: Choice | None) -> dict[str, Any] | None:
        if choice is None:
            return None
        seconds = run.steps * choice.step_seconds
        volume = sent_bytes(run.config, run.precision, choice.strategy, given.gpus, choice.accumulate, run.freeze_dense)
        return {
            **asdict(choice), "total_bytes": choice.total_bytes, "step_seconds": choice.step_seconds,
            "days": seconds / 86400, "gpu_hours": seconds * given.gpus / 3600,
            "tokens_per_second": run.tokens / choice.step_seconds, "sent_bytes": volume._asdict(),
            "collectives": collectives(run.config, choice.strategy, choice.accumulate)._asdict(),
            "options": words(run, given, choice),
        }  # fmt: skip

    return {
        "model": {"name": run.name, "parameters": parameter_counts(run.config),
                  "trained_parameters": trained_parameters(run.config, run.freeze_dense),
                  "forward_flops_per_token": forward_flops_per_token(run.config, run.seq_len)},
        "teacher": None if run.teacher is None else asdict(run.teacher),
        "run": {"tokens_per_step": run.tokens, "windows_per_step": run.windows, "steps": run.steps,
                "tokens": run.steps * run.tokens, "seq_len": run.seq_len, "precision": run.precision},
        "assumptions": {**asdict(given), "usable_bytes": given.memory, "reserved_bytes": RESERVED_BYTES,
                        "fragmented": FRAGMENTED, "bandwidth": given.bandwidth, "link_efficiency": LINK_EFFICIENCY,
                        "overlap": OVERLAP, "tree_seconds": TREE_SECONDS, "ring_seconds": RING_SECONDS,
                        "is_measured": False},
        "configured": describe(now), "best": describe(found), "remedies": remedies(run, given, choices),
        "choices": [describe(choice) for choice in choices],
    }  # fmt: skip
