"""Parameter groups, AdamW, and learning-rate schedules as pure functions of the step."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from monet.errors import ConfigError
from monet.training.private.deepspeed import full_shape


@dataclass(frozen=True)
class OptimizerSettings:
    """AdamW and its parameter groups.

    Args:
        learning_rate: peak learning rate, before the schedule's factor.
        weight_decay: decoupled weight decay of matrices; norms, biases and the experts' b, b1, b2 never decay.
        beta1: decay rate of the gradient's running mean, in [0, 1).
        beta2: decay rate of the squared gradient's running mean, in [0, 1).
        epsilon: added to the root of the squared gradient's mean.
        router_lr_multiplier: learning rate of the routers divided by that of all other parameters.
        decay_embeddings: True also decays the token embedding (and an output head tied to it).
        fused: one fused update for all parameters (fast on CPU and GPU); False uses torch's plain loop.
    """

    learning_rate: float = 5e-4
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    router_lr_multiplier: float = 1.0
    decay_embeddings: bool = False
    fused: bool = True

    def __post_init__(self) -> None:
        for name in ("learning_rate", "epsilon", "router_lr_multiplier"):
            if not (value := getattr(self, name)) > 0 or math.isinf(value):
                raise ConfigError(f"optimizer.{name} must be positive and finite, got {value}")
        for name in ("beta1", "beta2"):
            if not 0 <= (value := getattr(self, name)) < 1:
                raise ConfigError(f"optimizer.{name} must be in [0, 1), got {value}")
        if not 0 <= self.weight_decay < math.inf:
            raise ConfigError(f"optimizer.weight_decay must not be negative, got {self.weight_decay}")


@dataclass(frozen=True)
class ScheduleSettings:
    """Learning rate over the run, as a factor of the peak, updated at every optimiser step.

    Args:
        name: cosine falls from the peak until the end of the schedule; wsd (warm-up, stable, decay) stays at the peak
            and falls linearly over the last decay_steps; constant stays at the peak.
        warmup_steps: optimiser steps of linear warm-up; step 1 already has 1/warmup_steps of the peak.
        decay_steps: optimiser steps of wsd's decay phase; None uses a tenth of the schedule.
        final_lr_ratio: factor at the end of the decay, in [0, 1]; later steps keep it.
        total_steps: optimiser steps of the schedule, for a run of any length; None uses the run's length.
        total_tokens: length of the schedule in tokens, rounded up to whole steps; use it instead of total_steps.
        warmup_fraction: warm-up as a share of the schedule's steps, in [0, 1]; use it instead of warmup_steps.
    """

    name: Literal["cosine", "wsd", "constant"] = "cosine"
    warmup_steps: int = 0
    decay_steps: int | None = None
    final_lr_ratio: float = 0.1
    total_steps: int | None = None
    total_tokens: float | None = None
    warmup_fraction: float | None = None

    def __post_init__(self) -> None:
        if self.warmup_steps < 0:
            raise ConfigError(f"schedule.warmup_steps must not be negative, got {self.warmup_steps}")
        if not 0 <= self.final_lr_ratio <= 1:
            raise ConfigError(f"schedule.final_lr_ratio must be in [0, 1], got {self.final_lr_ratio}")
        if self.decay_steps is not None and (self.name != "wsd" or self.decay_steps < 1):
            raise ConfigError(
                f"schedule.decay_steps = {self.decay_steps} with schedule.name = {self.name}: decay_steps must be at"
                " least 1, and only wsd uses it; leave it out otherwise"
            )
        for name in ("total_steps", "total_tokens"):
            if (value := getattr(self, name)) is not None and not 1 <= value < math.inf:
                raise ConfigError(f"schedule.{name} must be finite and at least 1, got {value}")
        if self.total_steps is not None and self.total_tokens is not None:
            raise ConfigError(
                f"schedule.total_steps = {self.total_steps} and schedule.total_tokens = {self.total_tokens}: give one"
            )
        if self.warmup_fraction is not None and not 0 <= self.warmup_fraction <= 1:
            raise ConfigError(f"schedule.warmup_fraction must be in [0, 1], got {self.warmup_fraction}")
        if self.warmup_fraction is not None and self.warmup_steps:
            raise ConfigError(
                f"schedule.warmup_steps = {self.warmup_steps} and schedule.warmup_fraction = {self.warmup_fraction}:"
                " give one"
            )

    def in_steps(self, run_steps: int, tokens_per_step: int) -> ScheduleSettings:
        """Return the same schedule with all lengths as `total_steps` and `warmup_steps`.

        Args:
            run_steps: optimiser steps of the run.
            tokens_per_step: tokens of an optimiser step, over all processes.
        """
        total = run_steps if self.total_steps is None else self.total_steps
        if self.total_tokens is not None:
            total = math.ceil(self.total_tokens / tokens_per_step)
        warmup = self.warmup_steps if self.warmup_fraction is None else round(self.warmup_fraction * total)
        return replace(self, total_steps=total, total_tokens=None, warmup_steps=warmup, warmup_fraction=None)

    def factor(self, step: int, total_steps: int) -> float:
        """Return the factor of the peak learning rate for the update after `step` finished steps (the first has 0).

        Raises:
            ConfigError: warm-up and decay are longer than `total_steps`.
        """
        decay_steps = 0
        if self.name == "cosine":
            decay_steps = max(0, total_steps - self.warmup_steps)
        elif self.name == "wsd":
            decay_steps = self.decay_steps or max(1, total_steps // 10)
        if self.warmup_steps + decay_steps > total_steps:
            decay = f" and {decay_steps} steps of decay" if decay_steps else ""
            raise ConfigError(
                f"schedule.warmup_steps = {self.warmup_steps}{decay} do not fit into the schedule's {total_steps}"
                " steps; if the run is shorter than the schedule, set schedule.total_steps to the whole length"
            )
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if decay_steps == 0:
            return 1.0
        progress = min(max(0.0, (step - (total_steps - decay_steps)) / decay_steps), 1.0)
        shape = 0.5 * (1 + math.cos(math.pi * progress)) if self.name == "cosine" else 1 - progress
        return self.final_lr_ratio + (1 - self.final_lr_ratio) * shape


def parameter_groups(model: nn.Module, settings: OptimizerSettings) -> list[dict[str, Any]]:
    """Split the trainable parameters by weight decay and learning rate.

    Only matrices named `weight` decay. Norms, biases and the experts' b, b1, b2 (matrices of biases) do not decay.
    Embeddings (and an output head tied to them) decay only if the settings request it.

    Returns:
        Up to four groups for AdamW, each with `name`, `params`, `lr` and `weight_decay`, in the order of the model.
    """
    is_embedding = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        # a parameter partitioned by ZeRO is flat, but remembers its shape
        decays = name.endswith(".weight") and len(full_shape(parameter)) == 2
        decays = decays and (settings.decay_embeddings or id(parameter) not in is_embedding)
        in_router = ".router." in f".{name}"
        label = ("router" if in_router else "body") + ("_decay" if decays else "_no_decay")
        group = groups.setdefault(
            label,
            {
                "name": label,
                "params": [],
                "lr": settings.learning_rate * (settings.router_lr_multiplier if in_router else 1.0),
                "weight_decay": settings.weight_decay if decays else 0.0,
            },
        )
        group["params"].append(parameter)
    if not groups:
        raise ConfigError("the model has no trainable parameter")
    return list(groups.values())


def grouped_names(model: nn.Module, settings: OptimizerSettings) -> list[list[str]]:
    """Return the names of the parameters in each of `parameter_groups`, in their order."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [[names[id(parameter)] for parameter in group["params"]] for group in parameter_groups(model, settings)]


def build_optimizer(model: nn.Module, settings: OptimizerSettings) -> torch.optim.AdamW:
    """Return AdamW over `parameter_groups`."""
    betas = (settings.beta1, settings.beta2)
    return torch.optim.AdamW(parameter_groups(model, settings), betas=betas, eps=settings.epsilon, fused=settings.fused)


def build_scheduler(
    optimizer: torch.optim.Optimizer, settings: ScheduleSettings, run_steps: int, tokens_per_step: int = 1
) -> LambdaLR:
    """Return the schedule as a torch scheduler, stepped once per optimiser step; arguments as for `in_steps`."""
    settings = settings.in_steps(run_steps, tokens_per_step)
    assert settings.total_steps is not None
    settings.factor(0, settings.total_steps)  # refuse a bad schedule before the first step
    return LambdaLR(optimizer, partial(settings.factor, total_steps=settings.total_steps))


def reapply_settings(
    optimizer: torch.optim.Optimizer, scheduler: LambdaLR, model: nn.Module, settings: OptimizerSettings
) -> None:
    """Apply the configured settings to a restored optimiser, because a checkpoint restores the saved settings.

    If the settings are unchanged, nothing changes, bit for bit.
    """
    configured = parameter_groups(model, settings)
    scheduler.base_lrs = [group["lr"] for group in configured]
    for group, new, factor in zip(optimizer.param_groups, configured, scheduler.lr_lambdas, strict=True):
        group["betas"], group["eps"] = (settings.beta1, settings.beta2), settings.epsilon
        group["weight_decay"], group["initial_lr"] = new["weight_decay"], new["lr"]
        group["lr"] = new["lr"] * factor(scheduler.last_epoch)
