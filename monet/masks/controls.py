"""Random controls for a removal: random other units that match it in number, mass or activity.

Units are the experts of a routing group, the neurons of a layer, and so on; units are matched within their group.

Dims: G groups, N units per group. A keep-weight of 1 keeps a unit and 0 removes it.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from monet.errors import ConfigError

ControlKind = Literal["number", "mass", "activity"]

# An activity-matched unit is drawn from this number of units with the nearest activity, or from more if few are left.
_NEAREST = 32


def control_keep(keep_GN: Tensor, kind: ControlKind, seed: int, weight_GN: Tensor | None = None) -> Tensor:
    """Keep-weights of a random control.

    number: the same keep-weights at random places of each group. mass: random units until their mass equals that of
    the removal; the last unit is attenuated, so the mass matches exactly. activity: each removed unit is replaced
    by a random unit of nearly the same activity, with the same keep-weight.

    Args:
        keep_GN: keep-weights of the removal; bool, or float32.
        kind: the property that the control matches.
        seed: seed for the random choice; equal seeds give equal controls.
        weight_GN: at least 0; for mass, a unit's mean weight per token; for activity, its share of tokens. Both are
            measured on the label's text in the given statistics. Required for mass and activity.

    Returns:
        (G, N) in the dtype of `keep_GN`; float32 for mass.

    Raises:
        ConfigError: the kind is unknown; weights are missing, negative, not finite or of another shape; or mass is
            matched although keep-weights are above 1.
    """
    if kind not in get_args(ControlKind):
        raise ConfigError(f"controls of kind {kind!r}: must be one of {', '.join(get_args(ControlKind))}")
    generator = torch.Generator().manual_seed(seed)
    if kind == "number":
        return torch.stack([row[torch.randperm(len(row), generator=generator)] for row in keep_GN])
    if weight_GN is None:
        raise ConfigError(f"controls of equal {kind} need the statistics of the experts; pass --controls.statistics")
    weight_GN = weight_GN.double()
    if weight_GN.shape != keep_GN.shape or not bool((weight_GN.isfinite() & (weight_GN >= 0)).all()):
        raise ConfigError(
            f"weights of shape {tuple(weight_GN.shape)} for controls of a removal of shape {tuple(keep_GN.shape)}: "
            "they must have its shape, be finite and at least 0"
        )
    if kind == "mass" and bool((keep_GN > 1).any()):
        raise ConfigError("controls of equal mass are for removals, but some keep-weights are above 1; use activity")
    one = _equal_mass if kind == "mass" else _equal_activity
    return torch.stack([one(keep_N, weight_N, generator) for keep_N, weight_N in zip(keep_GN, weight_GN, strict=True)])


def removed_mass(keep_GN: Tensor, weight_GN: Tensor) -> float:
    """The weight per token that the removal takes away, summed over all groups."""
    return float(((1 - keep_GN.double()) * weight_GN.double()).sum())


def _equal_mass(keep_N: Tensor, weight_N: Tensor, generator: torch.Generator) -> Tensor:
    wanted = ((1 - keep_N.double()) * weight_N).sum()
    order_N = torch.randperm(len(weight_N), generator=generator)
    before_N = weight_N[order_N].cumsum(0) - weight_N[order_N]
    # Units are taken whole while mass is left; the last one is taken in part.
    taken_N = ((wanted - before_N) / weight_N[order_N].clamp(min=torch.finfo(torch.float64).tiny)).clamp(0, 1)
    taken_N = torch.where(weight_N[order_N] > 0, taken_N, (before_N < wanted).double())
    control_N = torch.ones(len(weight_N))
    control_N[order_N] = (1 - taken_N).float()
    return control_N


def _equal_activity(keep_N: Tensor, activity_N: Tensor, generator: torch.Generator) -> Tensor:
    control_N = torch.ones_like(keep_N)
    by_activity_N = activity_N.argsort(stable=True)
    place_N = torch.empty_like(by_activity_N)
    place_N[by_activity_N] = torch.arange(len(by_activity_N))
    free_N = torch.ones(len(keep_N), dtype=torch.bool)  # indexed by place
    removed = (keep_N != 1).nonzero().flatten()
    for unit in removed[torch.randperm(len(removed), generator=generator)].tolist():
        nearest = _nearest(free_N, int(place_N[unit]))
        place = int(nearest[torch.randint(len(nearest), (1,), generator=generator)])
        free_N[place] = False
        control_N[by_activity_N[place]] = keep_N[unit]
    return control_N


def _nearest(free_N: Tensor, place: int) -> Tensor:
    """The free places nearest to a place; of two equally near places, the lower comes first."""
    reach = _NEAREST
    while True:
        low, high = max(0, place - reach), min(len(free_N), place + reach + 1)
        places = free_N[low:high].nonzero().flatten() + low
        # all places within this distance are included, so no nearer one is missing
        if len(places) >= _NEAREST or high - low == len(free_N):
            return places[(places - place).abs().argsort(stable=True)[:_NEAREST]]
        reach *= 2
