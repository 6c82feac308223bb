"""All private parts of DeepSpeed that Monet's training uses. Checked with DeepSpeed 0.19.8, the upper bound is 0.19.9.

Attributes that DeepSpeed puts on parameters (`ds_...`) count as private too. A new release may change any of them: read
this file when you raise the bound in pyproject.toml. `zero` is the optimiser of DeepSpeed's engine.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor


def use_gloo() -> None:
    """Keep DeepSpeed from compiling its own CPU transport, which takes minutes; gloo does the same work."""
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


@contextlib.contextmanager
def one_optimizer_class() -> Iterator[None]:
    """Context in which stage 1 with float32 accumulation of bfloat16 gradients uses the common optimiser.

    DeepSpeed has a special optimiser for this case; it reduces all gradients at once, after the backward pass.
    """
    from deepspeed.runtime.engine import DeepSpeedEngine

    engine: Any = DeepSpeedEngine
    before = engine._configure_bf16_optimizer
    engine._configure_bf16_optimizer = engine._configure_zero_optimizer
    try:
        yield
    finally:
        engine._configure_bf16_optimizer = before


def gradient_norm(zero: Any, is_stage_3: bool) -> Tensor:
    """Return the norm of the averaged gradient over all parameters, infinite if it holds a NaN; all ranks call it."""
    from deepspeed.runtime.utils import combine_grad_norm_groups

    norm = combine_grad_norm_groups(zero._get_norm_groups()) if is_stage_3 else zero.scaled_global_norm()
    return torch.as_tensor(norm)


def leave_out_update(zero: Any, device: torch.device) -> Callable[[], None]:
    """Make the engine skip the following updates, as if a gradient overflowed; calling the result ends that."""
    infinite = torch.tensor(float("inf"), device=device)
    patches = {
        "check_grad_overflow": True,
        "scaled_global_norm": lambda *_, **__: infinite,
        "_get_norm_groups": lambda: [infinite],
    }
    before = {name: zero.__dict__[name] for name in patches if name in zero.__dict__}

    def restore() -> None:
        for name in patches:
            del zero.__dict__[name]
        zero.__dict__.update(before)

    zero.__dict__.update(patches)
    return restore


def flat_partitions(zero: Any, is_stage_3: bool) -> list[Tensor]:
    """Return this rank's flat float32 parts of the weights, which the inner optimiser updates."""
    return zero.fp32_partitioned_groups_flat if is_stage_3 else zero.single_partition_of_fp32_groups


def link_moments(zero: Any) -> None:
    """Connect the moments to the parameters, for stages 1 and 2.

    DeepSpeed does this once, after the update of the first group, when the others have no state yet.
    """
    zero._hp_optimizer_states_linked = False
    zero._lazy_init_hp_params_optimizer_state()


def full_shape(parameter: Any) -> torch.Size:
    """Return a parameter's shape, the whole shape even if stage 3 has partitioned it."""
    return getattr(parameter, "ds_shape", parameter.shape)


def full_numel(parameter: Any) -> int:
    """Return a parameter's number of elements, the whole number even if stage 3 has partitioned it."""
    return getattr(parameter, "ds_numel", parameter.numel())


def own_part(zero: Any, parameter: Any) -> tuple[Tensor, int]:
    """Return this rank's part of a stage 3 parameter, flat, and the index of its first element in the whole."""
    part = parameter.ds_tensor
    return part, part.numel() * zero._get_param_partition_rank(parameter)


def is_partitioned(parameter: Any) -> bool:
    """Return whether stage 3 has partitioned a parameter; False for a small one that every rank keeps whole."""
    return parameter.ds_status.name == "NOT_AVAILABLE" and getattr(parameter, "ds_secondary_tensor", None) is None
