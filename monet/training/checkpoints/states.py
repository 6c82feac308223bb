"""Weights and optimiser state by parameter name, for whole and partitioned states.

A reader lists every tensor with its shape and data type. In `gather`, every rank then keeps only the tensors that it
writes, so at most one whole parameter at a time is in memory anywhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from monet.errors import CheckpointError, ConfigError
from monet.training.checkpoints.folder_io import PREFIX, own_tensors, released
from monet.training.checkpoints.tensor_files import Source
from monet.training.ranks.coordination import Ranks

MOMENTS = ("exp_avg", "exp_avg_sq")
STEP = "step"


class Own(dict[str, Tensor]):
    """Tensors without other references: code that writes them in the background need not copy them first."""


class Partitioned(Protocol):
    """State that is partitioned over the ranks. All ranks make the same calls in the same order."""

    def shapes(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return meta tensors of weights (with statistics) and of moments, by their names in a checkpoint."""
        ...

    def weight(self, name: str) -> Tensor:
        """Return a whole weight or buffer."""
        ...

    def moment(self, name: str) -> Tensor:
        """Return a whole moment, named PARAMETER/exp_avg and so on."""
        ...


def gather(state: Partitioned, config: dict[str, Any], ranks: Ranks) -> dict[str, Any]:
    """Return the entries `state_dict` and `moments`: CPU tensors that this rank writes, meta tensors for the rest."""
    weights, moments = state.shapes()
    weights = released({PREFIX + name: tensor for name, tensor in weights.items()}, config)
    own = own_tensors(ranks.world_size, ranks.rank, weights, moments)
    for tensors, read in ((weights, state.weight), (moments, state.moment)):
        for name, shape in tensors.items():
            whole = read(name)
            if name in own:
                tensors[name] = whole.detach().to("cpu", shape.dtype, copy=True).view(shape.shape)
            del whole
    return {"state_dict": Own({PREFIX + name: tensor for name, tensor in weights.items()}), "moments": Own(moments)}


def keep_own(checkpoint: dict[str, Any], ranks: Ranks) -> dict[str, Any]:
    """Drop from a checkpoint with whole tensors on every rank the content that other ranks write."""
    weights = released(checkpoint["state_dict"], checkpoint["config"])
    moments = checkpoint["moments"]
    own = own_tensors(ranks.world_size, ranks.rank, weights, moments)
    weights, moments = (
        {name: tensor if name in own else _meta(tensor) for name, tensor in tensors.items()}
        for tensors in (weights, moments)
    )
    state_dict = {PREFIX + name: tensor for name, tensor in weights.items()}
    return {**checkpoint, "state_dict": state_dict, "moments": moments}


def name_moments(checkpoint: dict[str, Any], names: Sequence[str]) -> None:
    """Replace torch's numbering in `optimizer_states` of a checkpoint by `moments` with parameter names.

    Args:
        checkpoint: Lightning's dictionary with one optimiser.
        names: the parameters' names in the order of the optimiser's groups.
    """
    (optimizer,) = checkpoint["optimizer_states"]
    groups = [{key: value for key, value in group.items() if key != "params"} for group in optimizer["param_groups"]]
    checkpoint["optimizer_states"] = [{"param_groups": groups}]
    checkpoint["moments"] = {
        f"{names[number]}/{key}": value for number, state in optimizer["state"].items() for key, value in state.items()
    }


def number_moments(checkpoint: dict[str, Any], groups: Sequence[Sequence[str]]) -> None:
    """Undo `name_moments` for an optimiser whose groups hold parameters of these names.

    Raises:
        CheckpointError: the optimiser in the checkpoint has other groups, or lacks the state of a parameter.
    """
    (optimizer,) = checkpoint["optimizer_states"]
    stored, moments = optimizer["param_groups"], checkpoint["moments"]
    check_moments(moments, [name for group in groups for name in group])
    if len(stored) != len(groups):
        raise CheckpointError(
            f"the checkpoint's optimiser has {len(stored)} parameter groups, the configured one has {len(groups)};"
            " restore the settings that decide the groups, such as model.optimizer.decay_embeddings"
        )
    number, numbered, state = 0, [], {}
    for group, names in zip(stored, groups, strict=True):
        numbered.append({**group, "params": list(range(number, number + len(names)))})
        for name in names:
            keys = (STEP, *MOMENTS) if f"{name}/{STEP}" in moments else ()
            state[number] = {key: moments[f"{name}/{key}"] for key in keys}
            number += 1
    state = {number: entry for number, entry in state.items() if entry}
    checkpoint["optimizer_states"] = [{"state": state, "param_groups": numbered}]


def check_moments(moments: Mapping[str, Tensor], names: Sequence[str]) -> None:
    """Refuse a checkpoint that lacks the optimiser state of a trained parameter.

    Raises:
        CheckpointError: names up to five such parameters.
    """
    missing = [name for name in names if any(f"{name}/{key}" not in moments for key in (STEP, *MOMENTS))]
    if missing and len(moments):
        raise CheckpointError(f"the checkpoint has no optimiser state of {', '.join(missing[:5])}")


def keep_batches_of_a_step(checkpoint: dict[str, Any], trainer: Any) -> None:
    """Make a continued run use the same windows in each optimiser step.

    The number of ranks, the batch size and the batches per step may change if their product does not. Lightning's
    count of batches is converted.

    Raises:
        ConfigError: the product differs.
    """
    data = checkpoint.get(type(trainer.datamodule).__qualname__, {})
    now = trainer.accumulate_grad_batches
    then = checkpoint["monet"].get("accumulate_grad_batches", now)
    stored = (data.get("batch_size", 1), data.get("world_size", 1), then)
    here = (getattr(trainer.datamodule, "batch_size", 1), trainer.world_size, now) if data else (1, 1, now)
    if math.prod(stored) != math.prod(here):
        raise ConfigError(
            "data.batch_size x processes x trainer.accumulate_grad_batches = {} x {} x {}".format(*here)
            + " differs from the run's {} x {} x {}".format(*stored)
            + ", so the windows of a step would change; keep the product, or start a new run_dir"
        )
    if now != then:
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for counts in (progress["total"], progress["current"]):
            # the last batch before the checkpoint is not counted yet
            more = counts["ready"] * now // then - counts["ready"]
            counts.update({key: count + more for key, count in counts.items()})


def load_weight(target: Tensor, name: str, value: Tensor) -> None:
    """Copy a stored weight into a tensor of the same shape.

    Raises:
        CheckpointError: the shapes differ.
    """
    _refuse_other_shape(name, value.shape, target.shape)
    with torch.no_grad():
        target.copy_(value)


def stored_weight(weights: Mapping[str, Tensor], name: str) -> Tensor:
    """Return a checkpoint's weight by its released name.

    Raises:
        CheckpointError: the weight is missing.
    """
    if PREFIX + name not in weights:
        raise CheckpointError(f"the checkpoint has no weight {name}")
    return weights[PREFIX + name]


def stored_part(tensors: Source, name: str, shape: Sequence[int], start: int, stop: int) -> Tensor:
    """Return elements `start` to `stop` of a checkpoint's flattened tensor, fewer if it ends earlier.

    Args:
        tensors: weights or moments of the checkpoint.
        name: name in `tensors`.
        shape: shape of the whole tensor in the model.
    Raises:
        CheckpointError: the tensor is missing, or has another shape.
    """
    if name not in tensors:
        raise CheckpointError(f"the checkpoint has no tensor {name.removeprefix(PREFIX)}")
    _refuse_other_shape(name.removeprefix(PREFIX), tensors.shape(name), shape)
    return tensors.part(name, start, stop)


def persistent_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Return the buffers in a state dictionary, by name."""
    names = model.state_dict(keep_vars=True).keys()
    return {name: buffer for name, buffer in model.named_buffers() if name in names}


def meta(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return a meta tensor with the same shape and data type."""
    return torch.empty(tuple(shape), dtype=dtype, device="meta")


def _refuse_other_shape(name: str, stored: Sequence[int], wanted: Sequence[int]) -> None:
    if tuple(stored) != tuple(wanted):
        raise CheckpointError(f"{name}: stored with shape {tuple(stored)}, but the model has {tuple(wanted)}")


def _meta(tensor: Tensor) -> Tensor:
    return meta(tensor.shape, tensor.dtype)
