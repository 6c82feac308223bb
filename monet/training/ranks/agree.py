"""Decisions that all ranks must make alike, settled by one small all-reduce per optimiser step.

If one rank stopped, skipped or saved by itself, the others would wait in their next collective forever.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import Strategy
from torch import Tensor

from monet.model.ranks import gather_rows


def _is_alone() -> bool:
    return not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1)


def sum_over_ranks(values: Tensor, strategy: Strategy) -> Tensor:
    """Return the sum of a tensor over all ranks, by element; every rank must call it, with the same shape."""
    if _is_alone():
        return values
    total = values.to(strategy.root_device, copy=True)
    dist.all_reduce(total, op=dist.ReduceOp.SUM)
    return total


def any_over_ranks(flags: Tensor, strategy: Strategy) -> Tensor:
    """Return where a bool tensor is true on any rank; every rank must call it, with the same shape."""
    if _is_alone():
        return flags
    return sum_over_ranks(flags.to(torch.int32), strategy) > 0


def any_rank(flag: bool, strategy: Strategy) -> bool:
    """Return whether the flag is set on any rank; every rank must call it."""
    return bool(any_over_ranks(torch.tensor(flag), strategy))


def gather_ranks(values: Tensor, strategy: Strategy) -> Tensor:
    """Return (W, ...): the tensors of all ranks, in rank order; every rank must call it, with the same shape."""
    if _is_alone():
        return values[None]
    here = values.to(strategy.root_device)
    return gather_rows(here.reshape(-1), dist.get_world_size()).view(-1, *here.shape)


def take_from_rank_0(tensors: Iterable[Tensor]) -> None:
    """Copy rank 0's content into tensors of all ranks; every rank must call it, with the same shapes."""
    for tensor in () if _is_alone() else tensors:
        dist.broadcast(tensor, src=0)


@dataclass
class Requests:
    """Requests from outside the run, noted on one rank, and handled by all ranks after the same step.

    Attributes:
        stop: number of the signal that asks this rank to end; 0 for none.
        save: whether this rank is asked for a checkpoint.
    """

    stop: int = 0
    save: bool = False
    _agreed_stop: int = field(default=0, init=False)
    _agreed_save: bool = field(default=False, init=False)

    NUM_FLAGS = 3

    def flags(self) -> list[float]:
        """Return this rank's contribution to the step's all-reduce."""
        return [float(self.stop == 2), float(self.stop not in (0, 2)), float(self.save)]

    def agree(self, counts: list[float]) -> None:
        """Store the all-reduced flags; a termination takes precedence over an interrupt."""
        interrupts, terminations, saves = counts
        self._agreed_stop = 15 if terminations else 2 if interrupts else 0
        self._agreed_save = saves > 0

    @property
    def agreed_stop(self) -> int:
        """Number of the signal with which all ranks end after this step, or 0."""
        return self.stop if _is_alone() else self._agreed_stop

    @property
    def agreed_save(self) -> bool:
        """Whether all ranks save after this step."""
        return self.save if _is_alone() else self._agreed_save

    def saved(self) -> None:
        """Clear the request for a checkpoint after one was written."""
        self.save = self._agreed_save = False
