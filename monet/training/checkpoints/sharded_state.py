"""Weights and moments under fully_shard (FSDP2), by parameter name."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from monet.training.checkpoints.folder_io import PREFIX
from monet.training.checkpoints.states import (
    MOMENTS,
    STEP,
    check_moments,
    load_weight,
    meta,
    persistent_buffers,
    stored_part,
    stored_weight,
)
from monet.training.checkpoints.tensor_files import Source
from monet.training.private.lightning import unwrapped


class ShardedState:
    """Weights and moments of a model of sharded parameters; see `monet.training.checkpoints.states.Partitioned`.

    Args:
        model: the language model.
        optimizer: AdamW over its parameters.
    """

    def __init__(self, model: nn.Module, optimizer: Any) -> None:
        self.optimizer = unwrapped(optimizer)
        self.parameters = dict(model.named_parameters())
        self.buffers = persistent_buffers(model)

    def shapes(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        weights = {name: meta(tensor.shape, tensor.dtype) for name, tensor in (self.parameters | self.buffers).items()}
        moments: dict[str, Tensor] = {}
        for name, parameter in self.parameters.items():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                moments[f"{name}/{key}"] = meta(value.shape, value.dtype)
        return weights, moments

    @torch.no_grad()
    def weight(self, name: str) -> Tensor:
        return whole(self.parameters[name] if name in self.parameters else self.buffers[name])

    @torch.no_grad()
    def moment(self, name: str) -> Tensor:
        parameter, key = name.rsplit("/", 1)
        return whole(self.optimizer.state[self.parameters[parameter]][key])

    @torch.no_grad()
    def load(self, weights: Source, moments: Source) -> None:
        """Load a checkpoint's weights and moments; only this rank's rows of parameters are read.

        Raises:
            CheckpointError: a tensor is missing or has another shape.
        """
        trained = [name for name, parameter in self.parameters.items() if parameter.requires_grad]
        check_moments(moments, trained)
        for name, buffer in self.buffers.items():
            load_weight(buffer, name, stored_weight(weights, name))
        for name, parameter in self.parameters.items():
            local, start = _own_rows(parameter)
            place = (parameter.shape, start, start + local.numel())
            local.copy_(stored_part(weights, PREFIX + name, *place).view_as(local))
            if parameter.requires_grad and len(moments):
                parts = {key: stored_part(moments, f"{name}/{key}", *place).view_as(local) for key in MOMENTS}
                state = {key: _like(torch.empty_like(local).copy_(part), parameter) for key, part in parts.items()}
                step = moments[f"{name}/{STEP}"]
                fused = any(group.get("fused") or group.get("capturable") for group in self.optimizer.param_groups)
                state[STEP] = step.to(parameter.device) if fused else step.clone()
                self.optimizer.state[parameter] = state


def _own_rows(parameter: Tensor) -> tuple[Tensor, int]:
    """Return this rank's rows of a parameter, and the index of their first element in the flattened parameter."""
    if not isinstance(parameter, DTensor):
        return parameter, 0
    mesh, (placement,) = parameter.device_mesh, parameter.placements
    assert placement.is_shard(0), f"{placement}: only rows are sharded"
    rows = -(-parameter.shape[0] // mesh.size())
    start = min(rows * mesh.get_local_rank(), parameter.shape[0])
    local = parameter.to_local()
    assert local.shape[0] == min(rows, parameter.shape[0] - start), "rows are dealt out otherwise"
    return local, start * math.prod(parameter.shape[1:])


def whole(tensor: Tensor) -> Tensor:
    """The tensor itself, or all of one that FSDP2 shards; then every rank must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _like(local: Tensor, parameter: Tensor) -> Tensor:
    """Return a tensor sharded like the parameter, of which this rank holds `local`."""
    if not isinstance(parameter, DTensor):
        return local
    return DTensor.from_local(
        local, parameter.device_mesh, parameter.placements, run_check=False,
        shape=parameter.shape, stride=parameter.stride(),
    )  # fmt: skip
