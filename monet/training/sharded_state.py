"""What fully_shard (FSDP2) holds, by parameter name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from monet.training.states import MOMENTS, STEP, check_moments, load_weight, meta, persistent_buffers, stored_weight


class ShardedState:
    """Weights and moments of a model of sharded parameters; see `monet.training.states.Partitioned`.

    Args:
        model: the language model.
        optimizer: AdamW over its parameters.
    """

    def __init__(self, model: nn.Module, optimizer: Any) -> None:
        self.optimizer = getattr(optimizer, "_optimizer", optimizer)
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
        return _whole(self.parameters[name] if name in self.parameters else self.buffers[name])

    @torch.no_grad()
    def moment(self, name: str) -> Tensor:
        parameter, key = name.rsplit("/", 1)
        return _whole(self.optimizer.state[self.parameters[parameter]][key])

    @torch.no_grad()
    def load(self, weights: Mapping[str, Tensor], moments: Mapping[str, Tensor]) -> None:
        """Take over a checkpoint's weights and moments.

        Raises:
            CheckpointError: one is missing or has another shape.
        """
        trained = [name for name, parameter in self.parameters.items() if parameter.requires_grad]
        check_moments(moments, trained)
        for name, buffer in self.buffers.items():
            load_weight(buffer, name, stored_weight(weights, name))
        for name, parameter in self.parameters.items():
            load_weight(parameter, name, _like(stored_weight(weights, name), parameter))
            if parameter.requires_grad and len(moments):
                state: dict[str, Tensor] = {key: _like(moments[f"{name}/{key}"], parameter) for key in MOMENTS}
                step = moments[f"{name}/{STEP}"]
                fused = any(group.get("fused") or group.get("capturable") for group in self.optimizer.param_groups)
                state[STEP] = step.to(parameter.device) if fused else step.clone()
                self.optimizer.state[parameter] = state


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _like(value: Tensor, parameter: Tensor) -> Tensor:
    value = value.to(parameter.device, parameter.dtype)
    if isinstance(parameter, DTensor):
        return distribute_tensor(value, parameter.device_mesh, parameter.placements)
    return value.clone()
