"""A linear path in the weights of Monet layers, whose architecture has no skip path.

The gates of each head sum to one. So a hidden unit that is the same in every key acts at every token, however it is
routed. A pair of such units, relu(c + z)^2 - relu(c - z)^2, is 4 c z where |z| < c: a linear path of rank one. The
units are not tied; training may make them differ. R is the rank, P hidden units, otherwise dims as in
docs/architecture.md.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from monet.convert.dense.stand_in import StandIn
from monet.errors import ConfigError
from monet.model.experts import HorizontalExperts
from studies.transcoders.module import ridge

_OFFSET = 2.0  # c, in standard deviations of the path's input


@torch.no_grad()
def fold_skip(stand_in: StandIn, x_TD: Tensor, y_TD: Tensor, rank: int) -> None:
    """Add the best linear map of the layer's error on a sample, of rank `rank` on each axis, to every key.

    The map takes the last 2 * rank hidden units of each key. They must be spare: without output weights.

    Args:
        stand_in: with its start weights; it must own its router.
        x_TD, y_TD: a sample of the MLP's inputs and outputs, float32.
        rank: rank on each axis; a vertical layer has two axes, so its path has twice this rank.
    Raises:
        ConfigError: some key has fewer spare units.
    """
    experts: Any = stand_in.experts
    if isinstance(experts, HorizontalExperts):
        sides = [(experts.u, (experts.v,))]
    else:
        sides = [(experts.u1, (experts.v11, experts.v21)), (experts.u2, (experts.v12, experts.v22))]
    mode = stand_in.training
    inner_TD = stand_in.centred(x_TD)
    error_TD = (y_TD - stand_in.eval()(x_TD)) / stand_in.out_scale
    stand_in.train(mode)
    inputs_RD, outputs_RD = low_rank(inner_TD, error_TD - error_TD.mean(0), rank * len(sides))
    for number, (hidden, projections) in enumerate(sides):
        part = slice(number * rank, (number + 1) * rank)
        _write(hidden, projections, inputs_RD[part], outputs_RD[part], stand_in.num_heads, experts.num_keys)


def low_rank(x_TD: Tensor, y_TD: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Inputs and outputs of the best linear map of a rank from x to y: y ~ (x @ inputs.T) @ outputs.

    Returns:
        inputs_RD, so that x @ inputs.T has unit variance, and outputs_RD.
    """
    map_DD = ridge(x_TD, y_TD)
    directions_RD = torch.linalg.svd((x_TD @ map_DD.t()), full_matrices=False)[2][:rank]
    inputs_RD = directions_RD @ map_DD
    size_R = (x_TD @ inputs_RD.t()).std(0).clamp(min=1e-12)
    return inputs_RD / size_R[:, None], directions_RD * size_R[:, None]


def _write(
    hidden: Any, projections: tuple[Any, ...], inputs_RD: Tensor, outputs_RD: Tensor, heads: int, keys: int
) -> None:
    """Write the pairs into the last units of every key of one axis."""
    rank, units = len(inputs_RD), hidden.out_features // keys
    last = torch.arange(keys)[:, None] * units + torch.arange(units - 2 * rank, units)
    if 2 * rank > units or any(bool(projection.weight[:, last.flatten()].any()) for projection in projections):
        raise ConfigError(f"skip_rank {rank}: a key has fewer than {2 * rank} spare hidden units; raise moe_dim")
    hidden.weight[last.flatten()] = torch.stack([inputs_RD, -inputs_RD], 1).flatten(0, 1).repeat(keys, 1)
    hidden.bias[last.flatten()] = _OFFSET
    column_RD = outputs_RD / (4 * _OFFSET * heads)
    pairs_PD = torch.stack([column_RD, -column_RD], 1).flatten(0, 1).repeat(keys, 1)
    width = 0
    for projection in projections:
        size = projection.out_features
        projection.weight[:, last.flatten()] = pairs_PD[:, width : width + size].t()
        width += size
