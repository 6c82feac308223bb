"""Weights and moments of DeepSpeed's ZeRO optimisers, by parameter name, without DeepSpeed's checkpoint files."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

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
from monet.training.private.deepspeed import flat_partitions, full_shape, is_partitioned, link_moments, own_part


class ZeroState:
    """Weights and moments under an engine of ZeRO stage 1, 2 or 3; see `monet.training.checkpoints.states.Partitioned`.

    Args:
        engine: DeepSpeed's engine, with its optimiser.
        model: the language model inside.
    """

    def __init__(self, engine: Any, model: nn.Module) -> None:
        self.zero, self.model = engine.optimizer, model
        self.is_stage_3 = engine.zero_optimization_stage() == 3
        self.parameters = dict(model.named_parameters())
        self.buffers = persistent_buffers(model)

    def shapes(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        weights, moments = {}, {}
        has_moments = bool(self.zero.optimizer.state)
        self._link_moments()
        for name, parameter in self.parameters.items():
            shape = full_shape(parameter)
            trained = parameter.requires_grad
            weights[name] = meta(shape, torch.float32 if trained else parameter.dtype)
            if trained and has_moments:
                moments |= {f"{name}/{key}": meta(shape, torch.float32) for key in MOMENTS}
                moments[f"{name}/{STEP}"] = meta((), torch.float32)
        return weights | {name: meta(buffer.shape, buffer.dtype) for name, buffer in self.buffers.items()}, moments

    @torch.no_grad()
    def weight(self, name: str) -> Tensor:
        from deepspeed.utils import safe_get_full_fp32_param

        if name in self.buffers:
            return self.buffers[name]
        parameter = self.parameters[name]
        if parameter.requires_grad:
            whole = safe_get_full_fp32_param(parameter)
            assert whole is not None, f"{name} is not DeepSpeed's"
            return whole
        with self._whole(parameter):
            return parameter.detach().clone()

    @torch.no_grad()
    def moment(self, name: str) -> Tensor:
        from deepspeed.utils import safe_get_full_optimizer_state

        parameter, key = name.rsplit("/", 1)
        if key == STEP:  # every step updates all parameters
            return torch.as_tensor(next(iter(self.zero.optimizer.state.values()))[STEP])
        whole = safe_get_full_optimizer_state(self.parameters[parameter], key)
        assert whole is not None, f"{parameter} is not DeepSpeed's"
        return whole

    @torch.no_grad()
    def load(self, weights: Source, moments: Source) -> None:
        """Load a checkpoint's weights and moments, also into the training precision.

        Only this rank's part of partitioned tensors is read.

        Raises:
            CheckpointError: a tensor is missing or has another shape.
        """
        trained = [name for name, parameter in self.parameters.items() if parameter.requires_grad]
        check_moments(moments, trained)
        for name, buffer in self.buffers.items():
            load_weight(buffer, name, stored_weight(weights, name))
        if len(moments):
            self._make_moments(float(moments[f"{trained[0]}/{STEP}"]))
        for name, parameter in self.parameters.items():
            keys = [None, *(MOMENTS if len(moments) else ())] if parameter.requires_grad else []
            if self.is_stage_3:
                self._load_partition(name, parameter, weights, moments, keys)
                continue
            value = stored_weight(weights, name)
            load_weight(parameter.data, name, value)
            for key in keys:
                # the file is mapped: only the part that the setter copies is read
                _set_full(parameter, value if key is None else moments[f"{name}/{key}"], key)

    def _load_partition(
        self, name: str, parameter: Any, weights: Source, moments: Source, keys: Sequence[str | None]
    ) -> None:
        """Load this rank's part of a stage 3 parameter: each key gives a moment, None gives the float32 weight."""
        own, start = own_part(self.zero, parameter)
        size = own.numel()

        def part(tensors: Source, name: str) -> Tensor:
            # the last parts are padded with zeros
            here = stored_part(tensors, name, full_shape(parameter), start, start + size)
            return torch.cat([here.float(), torch.zeros(size - here.numel())])

        mine = part(weights, PREFIX + name)
        if is_partitioned(parameter):
            own.data.copy_(mine)
        else:  # a small parameter, which every rank keeps whole
            with self._whole(parameter):
                load_weight(parameter.data, name, stored_weight(weights, name))
        for key in keys:
            _set_local(parameter, mine if key is None else part(moments, f"{name}/{key}"), key)

    def _make_moments(self, step: float) -> None:
        """Create the inner optimiser's state as its first step would."""
        for flat in flat_partitions(self.zero, self.is_stage_3):
            self.zero.optimizer.state[flat] = {
                STEP: torch.tensor(step, dtype=torch.float32, device=flat.device),
                **{key: torch.zeros_like(flat) for key in MOMENTS},
            }
        self._link_moments()

    def _link_moments(self) -> None:
        if not self.is_stage_3 and self.zero.optimizer.state:
            link_moments(self.zero)

    @contextlib.contextmanager
    def _whole(self, parameter: nn.Parameter) -> Iterator[None]:
        """Context in which the parameter is whole on every rank; rank 0's content is kept."""
        if not self.is_stage_3:
            yield
            return
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
            yield


def _set_full(parameter: nn.Parameter, value: Tensor, key: str | None) -> None:
    """Set the float32 weight (key None) or a moment of a parameter of stages 1 and 2, on all ranks that hold it."""
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

    if key is None:
        safe_set_full_fp32_param(parameter, value.float())
    else:
        safe_set_full_optimizer_state(parameter, value.float(), key)


def _set_local(parameter: nn.Parameter, value: Tensor, key: str | None) -> None:
    """Set this rank's part of the float32 weight (key None) or of a moment of a parameter of stage 3."""
    from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

    if key is None:
        safe_set_local_fp32_param(parameter, value)
    else:
        safe_set_local_optimizer_state(parameter, value, key)
