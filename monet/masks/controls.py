"""Random controls for a removal: other units, chosen at random, that match it in number, mass or activity.

Units are the experts of a routing group, the neurons of a layer, and so on; a group's units are matched within it.

Dims: G groups, N units of a group. A keep-weight of 1 keeps a unit and 0 removes it.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from monet.errors import ConfigError

ControlKind = Literal["number", "mass", "activity"]

# An activity-matched unit is drawn among so many of the nearest activity; more where so few are left.
_NEAREST = 32


def control_keep(keep_GN: Tensor, kind: ControlKind, seed: int, weight_GN: Tensor | None = None) -> Tensor:
    """Keep-weights of a random control.

    number: the same keep-weights at random places of each group. mass: random units until they hold as much mass as
    the removal takes; the last one is attenuated, so the mass is met exactly. activity: every removed unit is replaced
    by a random one of nearly its activity, with the same keep-weight.

    Args:
        keep_GN: of the removal; bool, or float32.
        kind: what is matched.
        seed: of the choice; equal seeds give equal controls.
        weight_GN: at least 0; for mass a unit's mean weight a token, for activity its share of tokens, both on the
            text that the removal is judged on. Needed for mass and activity.

    Returns:
        (G, N) of the dtype of `keep_GN`; float32 for mass.

    Raises:
        ConfigError: an unknown kind, weights that are missing, negative, not finite or of another shape, or equal mass
            where keep-weights are above 1.
    """
    if kind not in get_args(ControlKind):
        raise ConfigError(f"controls of kind {kind!r}: allowed are {', '.join(get_args(ControlKind))}")
    generator = torch.Generator().manual_seed(seed)
    if kind == "number":
        return torch.stack([row[torch.randperm(len(row), generator=generator)] for row in keep_GN])
    if weight_GN is None:
        raise ConfigError(f"controls of equal {kind} need the statistics of the experts; give --controls.statistics")
    weight_GN = weight_GN.double()
    if weight_GN.shape != keep_GN.shape or not bool((weight_GN.isfinite() & (weight_GN >= 0)).all()):
        raise ConfigError(
            f"weights of shape {tuple(weight_GN.shape)} for controls of a removal of shape {tuple(keep_GN.shape)}: "
            "they must have its shape, be finite and at least 0"
        )
    if kind == "mass" and bool((keep_GN > 1).any()):
        raise ConfigError("controls of equal mass are for removals, and some keep-weights are above 1; take activity")
    one = _equal_mass if kind == "mass" else _equal_activity
    return torch.stack([one(keep_N, weight_N, generator) for keep_N, weight_N in zip(keep_GN, weight_GN, strict=True)])


def removed_mass(keep_GN: Tensor, weight_GN: Tensor) -> float:
    """How much weight a token the removal takes, summed over all groups."""
    return float(((1 - keep_GN.double()) * weight_GN.double()).sum())


def _equal_mass(keep_N: Tensor, weight_N: Tensor, generator: torch.Generator) -> Tensor:
    wanted = ((1 - keep_N.double()) * weight_N).sum()
    order_N = torch.randperm(len(weight_N), generator=generator)
    before_N = weight_N[order_N].cumsum(0) - weight_N[order_N]
    # Taken whole while there is room, then the last one in part, then none.
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
    free_N = torch.ones(len(keep_N), dtype=torch.bool)  # by place
    removed = (keep_N != 1).nonzero().flatten()
    for unit in removed[torch.randperm(len(removed), generator=generator)].tolist():
        nearest = _nearest(free_N, int(place_N[unit]))
        place = int(nearest[torch.randint(len(nearest), (1,), generator=generator)])
        free_N[place] = False
        control_N[by_activity_N[place]] = keep_N[unit]
    return control_N


def _nearest(free_N: Tensor, place: int) -> Tensor:
    """The free places that are nearest to a place, the lower of two that are equally near first."""
    reach = _NEAREST
    while True:
        low, high = max(0, place - reach), min(len(free_N), place + reach + 1)
        places = free_N[low:high].nonzero().flatten() + low
        # all places in reach are here, so that no nearer one is outside
        if len(places) >= _NEAREST or high - low == len(free_N):
            return places[(places - place).abs().argsort(stable=True)[:_NEAREST]]
        reach *= 2
