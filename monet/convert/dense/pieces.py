"""Starts experts as pieces of the MLP that they replace.

The MLP's neurons are split into groups of neurons that are active together, one group for each key. A SwiGLU neuron
silu(g) * u becomes a pair of squared ReLUs, relu(g + s u)^2 - relu(g - s u)^2, which is 4 s g u where both are active.
A key's router weights come from ridge regression of its group's activity on the input. The output weights are the
MLP's own columns, each with a scale from least squares.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from monet.convert.dense.stand_in import StandIn
from monet.errors import ConfigError
from monet.kernels.hde.op import horizontal_mixing
from monet.kernels.vde.op import vertical_mixing
from monet.model.experts import HorizontalExperts

Heads = Literal["own", "permuted", "shared"]

_KEY_RIDGE = 0.02  # relative to the variance of an input dimension
_SCALE_RIDGE = 1e-3  # relative to the mean of the normal matrix's diagonal
_PAIR = 0.7  # scale s of a pair, relative to std(g) / std(u)
_OTHERS = {"own": 0.05, "permuted": 0.05, "shared": 0.25}
_POWER_STEPS = 8


@dataclass(frozen=True)
class _Neurons:
    """The MLP's weights and their activity on a sample.

    Attributes:
        gate_ND, up_ND, down_DN: weights, float32.
        ratio_N: scale s of each neuron's pair.
        strength_TN: size of each neuron's output, |activity| * norm of its column.
    """

    gate_ND: Tensor
    up_ND: Tensor
    down_DN: Tensor
    ratio_N: Tensor
    strength_TN: Tensor


@torch.no_grad()
def _neurons(mlp: Any, x_TD: Tensor) -> _Neurons:
    weight: Callable[[str], Tensor] = lambda name: getattr(mlp, name).weight.float()  # noqa: E731
    gate_TN, up_TN = F.linear(x_TD, weight("gate_proj")), F.linear(x_TD, weight("up_proj"))
    ratio_N = _PAIR * gate_TN.std(0) / up_TN.std(0).clamp(min=1e-12)
    strength_TN = (mlp.act_fn(gate_TN) * up_TN).abs_() * weight("down_proj").norm(dim=0)
    return _Neurons(weight("gate_proj"), weight("up_proj"), weight("down_proj"), ratio_N, strength_TN)


@torch.no_grad()
def balanced_groups(strength_TN: Tensor, count: int, generator: torch.Generator) -> list[Tensor]:
    """Split neurons into groups of about equal size whose members are active at the same tokens.

    Recursive bisection: each part is split along its first principal direction, in proportion to the number of groups
    on each side. `count` need not be a power of two.

    Args:
        strength_TN: activity of N neurons at T tokens.
        count: number of groups, at most N.
        generator: seeds the power iteration.
    Returns:
        `count` tensors of neuron numbers; sizes differ by at most one.
    Raises:
        ConfigError: there are more groups than neurons.
    """
    N = strength_TN.shape[1]
    if count > N:
        raise ConfigError(f"moe_experts {count}: the MLP has only {N} neurons; use at most as many keys")
    unit_TN = strength_TN / strength_TN.square().mean(0).sqrt().clamp(min=1e-12)
    sizes = [N // count + (group < N % count) for group in range(count)]

    def split(members: Tensor, parts: list[int]) -> list[Tensor]:
        if len(parts) == 1:
            return [members]
        half = len(parts) // 2
        centred = unit_TN[:, members]
        centred = centred - centred.mean(0)
        direction = torch.randn(len(members), generator=generator)
        for _ in range(_POWER_STEPS):
            direction = centred.t() @ (centred @ direction)
            direction /= direction.norm().clamp(min=1e-30)
        ordered, left = members[direction.argsort()], sum(parts[:half])
        return split(ordered[:left], parts[:half]) + split(ordered[left:], parts[half:])

    return split(torch.arange(N), sizes)


@torch.no_grad()
def assigned_groups(strength_TN: Tensor, weights_TE: Tensor) -> list[Tensor]:
    """Split neurons into groups of about equal size, each with the key whose weight it follows best.

    For a layer that shares a router: its keys are given. Every neuron asks for the free key with which it correlates
    most, and a key accepts its strongest neurons up to its size.
    """
    E = weights_TE.shape[1]
    N = strength_TN.shape[1]

    def unit(values: Tensor) -> Tensor:
        centred = values - values.mean(0)
        return centred / centred.norm(dim=0).clamp(min=1e-12)

    match_NE = (unit(strength_TN).t() @ unit(weights_TE)).numpy()
    room = np.array([N // E + (key < N % E) for key in range(E)])
    owner = np.full(N, -1)
    while (waiting := np.flatnonzero(owner < 0)).size:
        wish = np.where(room > 0, match_NE[waiting], -np.inf).argmax(1)
        for key in np.unique(wish):
            asking = waiting[wish == key]
            best = asking[np.argsort(-match_NE[asking, key], kind="stable")][: room[key]]
            owner[best] = key
            room[key] -= len(best)
    return [torch.from_numpy(np.flatnonzero(owner == key)) for key in range(E)]


def head_scales(heads: Heads, num_keys: int, num_heads: int) -> Tensor:
    """How strongly each head reacts to each key on each axis, (2, H, E).

    own: head h owns keys h, h + H, h + 2 H, ... on both axes; it almost ignores the others.
    permuted: the same on the first axis; on the second axis another set, with few keys of the first.
    shared: as own, but other keys count a quarter, so that a head uses more keys and far more pairs can act.
    """
    keys = torch.arange(num_keys)
    own = [keys % num_heads, keys % num_heads]
    if heads == "permuted":
        own[1] = (keys + keys // num_heads) % num_heads
    is_own_2HE = torch.stack([axis[None] == torch.arange(num_heads)[:, None] for axis in own])
    return torch.where(is_own_2HE, 1.0, _OTHERS[heads])


@torch.no_grad()
def _keys(stand_in: StandIn, groups: list[Tensor], strength_TN: Tensor, x_TD: Tensor) -> Tensor:
    """One router row for each group, (E, D): logits have unit variance, and the mean input gives zero."""
    inner_TD = stand_in.scaled(x_TD)
    centred_TD = inner_TD - inner_TD.mean(0)
    activity_TE = torch.stack([strength_TN[:, group].sum(1) for group in groups], 1)
    activity_TE = (activity_TE - activity_TE.mean(0)) / activity_TE.std(0).clamp(min=1e-12)
    normal_DD = centred_TD.t() @ centred_TD
    normal_DD.diagonal().add_(_KEY_RIDGE * len(inner_TD))
    rows_ED = torch.linalg.solve(normal_DD, centred_TD.t() @ activity_TE).t()
    rows_ED = _without_mean(rows_ED, inner_TD.mean(0))
    return rows_ED / (centred_TD @ rows_ED.t()).std(0)[:, None].clamp(min=1e-12)


def _without_mean(rows_PD: Tensor, mean_D: Tensor) -> Tensor:
    direction_D = mean_D / mean_D.norm().clamp(min=1e-12)
    return rows_PD - (rows_PD @ direction_D)[:, None] * direction_D


@torch.no_grad()
def _route_sample(stand_in: StandIn, x_TD: Tensor) -> tuple[Tensor, Tensor]:
    """The gates of a sample, (T, H, E) each; the running statistics become those of the sample."""
    router = stand_in.router
    if router is None:
        routed = stand_in.route(x_TD)
        return routed.gates[0][0], routed.gates[1][0]
    before = router.training
    routed = router.train()(stand_in.scaled(x_TD)[None])
    assert routed.statistics is not None, "a router in training gives statistics"
    for norm, batch in zip((router.norm1, router.norm2), routed.statistics, strict=True):
        norm.running_mean.copy_(batch.mean_H)
        norm.running_var.copy_(batch.m2_H / (batch.count - 1).clamp(min=1))
    router.train(before)
    stand_in.routed = routed
    return routed.gates[0][0], routed.gates[1][0]


@torch.no_grad()
def _fill_units(stand_in: StandIn, linear: Any, groups: list[Tensor], neurons: _Neurons, generator: torch.Generator):
    """Write the groups' neurons into hidden units; returns their output columns, (D, P), before scaling.

    A key has room for half as many neurons as it has units. The weakest neurons of a larger group are left out. Units
    that are left over start with random inputs and no output.
    """
    E = len(groups)
    P, D = linear.weight.shape
    units = P // E
    importance_N = neurons.strength_TN.square().mean(0)
    weight_EUD = torch.randn(E, units, D, generator=generator) / D**0.5
    bias_EU, columns_DEU = torch.zeros(E, units), torch.zeros(D, E, units)
    for key, group in enumerate(groups):
        kept = group[importance_N[group].argsort(descending=True, stable=True)][: units // 2]
        ratio_n = neurons.ratio_N[kept]
        pair = torch.stack([ratio_n, -ratio_n], 1)[..., None] * neurons.up_ND[kept][:, None]
        rows_nD = 0.5 * (neurons.gate_ND[kept][:, None] + pair).flatten(0, 1)
        used = len(rows_nD)
        weight_EUD[key, :used] = rows_nD * stand_in.scale_D
        bias_EU[key, :used] = rows_nD @ stand_in.mean_D
        column = neurons.down_DN[:, kept] / ratio_n / stand_in.out_scale
        columns_DEU[:, key, :used] = torch.stack([column, -column], 2).flatten(1)
    linear.weight.copy_(weight_EUD.flatten(0, 1))
    linear.bias.copy_(bias_EU.flatten())
    return columns_DEU.flatten(1)


@torch.no_grad()
def fitted_scales(features_TP: Tensor, columns_DP: Tensor, y_TD: Tensor) -> Tensor:
    """The scale of each column that brings features @ columns.T closest to y, by ridge regression, (P,).

    All P scales are fitted together. Their normal matrix is the elementwise product of two Gram matrices, so the cost
    is that of one product of the features with themselves.
    """
    normal_PP = (features_TP.t() @ features_TP) * (columns_DP.t() @ columns_DP)
    right_P = ((features_TP.t() @ y_TD) * columns_DP.t()).sum(1)
    diagonal = normal_PP.diagonal()
    diagonal.add_(_SCALE_RIDGE * diagonal.mean() + 1e-12)
    return torch.linalg.solve(normal_PP, right_P)


@torch.no_grad()
def start_from_pieces(
    stand_in: StandIn, mlp: Any, x_TD: Tensor, y_TD: Tensor, heads: Heads, generator: torch.Generator
) -> None:
    """Set a stand-in's weights and running statistics from the MLP and a sample of its inputs and outputs.

    Args:
        stand_in: in standardised coordinates (`StandIn.standardise`); one that shares a router follows its leader,
            which has routed the same sample just before.
        mlp: the dense MLP with gate_proj, up_proj and down_proj.
        x_TD, y_TD: the sample, without first tokens, float32.
        heads: see `head_scales`.
        generator: for random parts.
    """
    experts: Any = stand_in.experts
    neurons = _neurons(mlp, x_TD)
    if stand_in.router is not None:
        groups = balanced_groups(neurons.strength_TN, experts.num_keys, generator)
        both = [groups, groups]
        keys_ED = _keys(stand_in, groups, neurons.strength_TN, x_TD)
        scales_2HE = head_scales(heads, len(groups), stand_in.num_heads)
        for linear, scale_HE in zip((stand_in.router.w1, stand_in.router.w2), scales_2HE, strict=True):
            linear.weight.copy_((scale_HE[..., None] * keys_ED).flatten(0, 1))
        gates = _route_sample(stand_in, x_TD)
    else:
        gates = _route_sample(stand_in, x_TD)
        both = [assigned_groups(neurons.strength_TN, gate_THE.sum(1)) for gate_THE in gates]
    inner_TD = stand_in.centred(x_TD)
    target_TD = y_TD / stand_in.out_scale
    centre_D = target_TD.mean(0)
    target_TD = target_TD - centre_D
    for name, parameter in experts.named_parameters():
        if name.startswith(("v", "b")):
            parameter.zero_()
    if isinstance(experts, HorizontalExperts):
        columns_DP = _fill_units(stand_in, experts.u, both[0], neurons, generator)
        mixed_TEM, _ = horizontal_mixing(_hidden(experts.u, inner_TD, experts), *gates, experts.act_fn)
        experts.b.copy_(
            _fit(experts.v, columns_DP, mixed_TEM, target_TD, centre_D).expand_as(experts.b) / stand_in.num_heads
        )
        return
    half = len(centre_D) // 2
    halves = (slice(None, half), slice(half, None))
    columns = [_fill_units(stand_in, u, groups, neurons, generator)[part]
               for u, groups, part in zip((experts.u1, experts.u2), both, halves, strict=True)]  # fmt: skip
    y11_TEM, _, _, y22_TEM, _, _ = vertical_mixing(
        _hidden(experts.u1, inner_TD, experts), _hidden(experts.u2, inner_TD, experts), *gates, experts.act_fn
    )
    own = ((experts.v11, experts.b1, y11_TEM), (experts.v22, experts.b2, y22_TEM))
    for (v, b, mixed_TEM), columns_DP, part in zip(own, columns, halves, strict=True):
        b.copy_(_fit(v, columns_DP, mixed_TEM, target_TD[:, part], centre_D[part]).expand_as(b) / stand_in.num_heads)


def _hidden(linear: Any, inner_TD: Tensor, experts: Any) -> Tensor:
    return linear(inner_TD).unflatten(-1, (experts.num_keys, -1))


def _fit(v: Any, columns_DP: Tensor, mixed_TEM: Tensor, target_TD: Tensor, centre_D: Tensor) -> Tensor:
    """Write scaled columns into an output projection; returns the constant that the biases must add, (D,)."""
    features_TP = mixed_TEM.flatten(1)
    mean_P = features_TP.mean(0)
    v.weight.copy_(columns_DP * fitted_scales(features_TP - mean_P, columns_DP, target_TD))
    return centre_D - v.weight @ mean_P


@torch.no_grad()
def start_at_random(stand_in: StandIn, x_TD: Tensor, y_TD: Tensor, generator: torch.Generator) -> None:
    """Set a stand-in's weights to random values: unit hidden inputs, small outputs around the mean output.

    Args:
        stand_in, x_TD, y_TD, generator: as for `start_from_pieces`.
    """
    D = x_TD.shape[1]

    def rows(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator) / D**0.5

    if stand_in.router is not None:
        mean_D = stand_in.scaled(x_TD).mean(0)
        for linear in (stand_in.router.w1, stand_in.router.w2):
            linear.weight.copy_(_without_mean(rows(linear.weight), mean_D))
    _route_sample(stand_in, x_TD)
    centre_D = y_TD.mean(0) / stand_in.out_scale / stand_in.num_heads
    parts = {"b": centre_D, "b1": centre_D[: D // 2], "b2": centre_D[D // 2 :]}
    for name, parameter in stand_in.experts.named_parameters():
        if name in parts:
            parameter.copy_(parts[name].expand_as(parameter))
        elif name.startswith("v"):
            parameter.copy_(0.01 * torch.randn(parameter.shape, generator=generator))
        elif name.endswith("weight"):
            parameter.copy_(rows(parameter))
        else:
            parameter.zero_()
