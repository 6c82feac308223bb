"""The numbers of one optimiser step: collected on the device, reduced over the ranks, read in one transfer."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning.pytorch.strategies import Strategy
from torch import Tensor

from monet.training.ranks.agree import Requests, sum_over_ranks

LOSSES: tuple[str, ...] = ("loss", "lm_loss", "uniformity_loss", "kl")
PER_ROUTER: tuple[str, ...] = ("uniformity", "ambiguity", "active_per_head")


@dataclass
class StepNumbers:
    """Results of an optimiser step: means over micro-batches and ranks.

    Attributes:
        losses: by name, see `LOSSES`; uniformity_loss only with routers, kl only with a teacher.
        routers: for each routing group, by name, see `PER_ROUTER`.
        grad_norm: norm over all parameters, before clipping; None if the strategy hides it.
        bad_loss, bad_gradient: whether the loss or gradient of some rank was NaN or infinite.
    """

    losses: dict[str, float]
    routers: list[dict[str, float]]
    grad_norm: float | None
    bad_loss: bool
    bad_gradient: bool

    @property
    def is_finite(self) -> bool:
        return not (self.bad_loss or self.bad_gradient)


@dataclass
class StepRecord:
    """The micro-batches of the current optimiser step, and their numbers, which stay on the device until `close`.

    Attributes:
        batches: batches from the loader.
        fired_R2HE: bool, the routing keys that fired in any micro-batch of this rank; None without routers.
    """

    batches: list[dict[str, Tensor]] = field(default_factory=list)
    fired_R2HE: Tensor | None = None
    _values: list[Tensor] = field(default_factory=list)
    _num_routers: int = 0
    _losses: tuple[str, ...] = ()

    def clear(self) -> None:
        """Clear the record for the next step."""
        self.batches.clear()
        self._values.clear()
        self.fired_R2HE = None

    def add(self, batch: dict[str, Tensor], out: Any, **losses: Tensor) -> None:
        """Record a micro-batch, the model's output for it, and losses that replace or extend the output's."""
        routers = out.router_metrics or ()
        found = {name: losses.get(name, getattr(out, name, None)) for name in LOSSES}
        self._losses = tuple(name for name, value in found.items() if value is not None)
        scalars = [value for value in found.values() if value is not None]
        for name in PER_ROUTER:
            scalars += [getattr(router, name) for router in routers]
        self.batches.append(batch)
        self._num_routers = len(routers)
        self._values.append(torch.stack([scalar.detach().double() for scalar in scalars]))
        if routers:
            fired_R2HE = torch.stack([router.fired_2HE for router in routers]) > 0
            self.fired_R2HE = fired_R2HE if self.fired_R2HE is None else self.fired_R2HE | fired_R2HE

    def bad_batches(self) -> list[dict[str, Tensor]]:
        """Return this rank's micro-batches whose loss is not finite."""
        finite = torch.stack(self._values)[:, 0].isfinite().tolist()
        return [batch for batch, is_finite in zip(self.batches, finite, strict=True) if not is_finite]

    def close(self, norm: Tensor | None, requests: Requests, strategy: Strategy) -> StepNumbers:
        """Reduce the step over all ranks, before the update: one all-reduce, one transfer from the device.

        Args:
            norm: norm of the gradient, float scalar; None if it is not known.
            requests: this rank's requests on entry, those of all ranks on return.
            strategy: gives access to the ranks.
        """
        values_MF = torch.stack(self._values)
        seen = torch.zeros_like(values_MF[0, 0]) if norm is None else norm.detach().to(values_MF)
        flags = torch.stack([~values_MF[:, 0].isfinite().all(), ~seen.isfinite()]).double()
        mine = torch.cat([
            flags, values_MF.new_tensor([1.0, *requests.flags()]), seen[None], values_MF.mean(0),
        ])  # fmt: skip
        bad_loss, bad_gradient, ranks, *rest = sum_over_ranks(mine, strategy).tolist()
        requests.agree(rest[: Requests.NUM_FLAGS])
        grad_norm, *means = (value / ranks for value in rest[Requests.NUM_FLAGS :])
        per_router = means[len(self._losses) :]
        routers = [
            {name: per_router[place * self._num_routers + r] for place, name in enumerate(PER_ROUTER)}
            for r in range(self._num_routers)
        ]
        losses = dict(zip(self._losses, means, strict=False))
        return StepNumbers(losses, routers, None if norm is None else grad_norm, bad_loss > 0, bad_gradient > 0)


def router_means(routers: list[dict[str, float]]) -> dict[str, float | None]:
    """Return means over the routers by name, None without routers."""
    count = len(routers)
    names = (*PER_ROUTER, "dead_share")
    return {name: math.fsum(router[name] for router in routers) / count if count else None for name in names}
