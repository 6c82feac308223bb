"""One expert as a small dense network, from the weights of its layer.

Expert (i, j) computes `second @ act(first @ x + first_bias) + bias` (arXiv 2412.04139, eq. 10-12 and 13-29). Dims: M
hidden units of an expert, D model width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from monet.errors import ConfigError
from monet.eval.index.units import Unit
from monet.masks.expert_mask import ExpertMask
from monet.masks.masked_model import find_body
from monet.model.experts import Experts, HorizontalExperts, VerticalExperts

# Nodes of the quadrature for the mean of a function of a normal variable.
_NODES = 32


class DenseExpert(NamedTuple):
    """An expert's weights in one layer.

    Args:
        first_MD, first_bias_M: from the normalised residual stream to the hidden units.
        second_DM, bias_D: from the hidden units to the residual stream.
        activation: the hidden units' activation.
    """

    first_MD: Tensor
    first_bias_M: Tensor
    second_DM: Tensor
    bias_D: Tensor
    activation: Callable[[Tensor], Tensor]

    def hidden(self, x_XD: Tensor) -> Tensor:
        """Hidden units, (X, M)."""
        return self.activation(x_XD @ self.first_MD.T + self.first_bias_M)

    def output(self, x_XD: Tensor) -> Tensor:
        """Output before the routing weight, (X, D)."""
        return self.hidden(x_XD) @ self.second_DM.T + self.bias_D

    def mean_output(self, scale_D: Tensor) -> Tensor:
        """Mean output (D,) over inputs `scale * z`, where z is standard normal: a token's norm with a random direction.

        A hidden unit then has a normal input, so its mean is an integral over one number, by Gauss-Hermite quadrature.
        """
        nodes, weights = np.polynomial.hermite_e.hermegauss(_NODES)
        node_K = self.first_MD.new_tensor(nodes)
        weight_K = self.first_MD.new_tensor(weights / weights.sum())
        deviation_M = (self.first_MD * scale_D).norm(dim=1)
        hidden_M = self.activation(self.first_bias_M[:, None] + deviation_M[:, None] * node_K) @ weight_K
        return self.second_DM @ hidden_M + self.bias_D


def monet_layers(model: nn.Module, group: int) -> list[tuple[int, Any]]:
    """The layers of a routing group, with their numbers in the model."""
    return [(n, layer) for n, layer in enumerate(find_body(model).layers) if layer.routing_group == group]


def dense_expert(experts: Experts, i: int, j: int) -> DenseExpert:
    """Expert (i, j) of a layer.

    Raises:
        ConfigError: weights are adapted, quantised, offloaded or hooked, so they do not show what the layer computes.
    """
    inputs = [experts.u] if isinstance(experts, HorizontalExperts) else [experts.u1, experts.u2]  # pyright: ignore
    plain = all(type(linear) is nn.Linear for linear in inputs)
    if experts.calls_outputs() or not plain:
        raise ConfigError(
            "the expert weights are adapted, quantised, offloaded or hooked, so one expert cannot be read from them; "
            "merge adapters, and load the model in bfloat16 or float32"
        )
    weights = {name: weight.detach() for name, weight in experts.named_parameters()}
    E = experts.num_keys

    def rows(name: str, key: int) -> Tensor:
        return _exact(weights[name].unflatten(0, (E, -1))[key])

    def columns(name: str, key: int) -> Tensor:
        return _exact(weights[name].unflatten(1, (E, -1))[:, key])

    if isinstance(experts, HorizontalExperts):
        parts = rows("u.weight", i), rows("u.bias", i), columns("v.weight", j), _exact(weights["b"][j])
    else:
        assert isinstance(experts, VerticalExperts)
        left = torch.cat([columns("v11.weight", i), columns("v12.weight", i)], dim=1)
        right = torch.cat([columns("v21.weight", j), columns("v22.weight", j)], dim=1)
        parts = (
            torch.cat([rows("u1.weight", i), rows("u2.weight", j)]),
            torch.cat([rows("u1.bias", i), rows("u2.bias", j)]),
            torch.cat([left, right]),
            _exact(torch.cat([weights["b1"][i], weights["b2"][j]])),
        )
    return DenseExpert(*parts, activation=cast(Any, experts.act_fn))


def _exact(weight: Tensor) -> Tensor:
    """The weight in float32; float64 stays."""
    return weight if weight.dtype == torch.float64 else weight.float()


def mask_of(model: nn.Module, units: list[Unit]) -> ExpertMask:
    """The mask that removes units; removing a half removes all experts with its key."""
    config = find_body(model).config
    keep_REE = torch.ones(config.num_routing_groups, config.moe_experts, config.moe_experts, dtype=torch.bool)
    for unit in units:
        i, j = (slice(None) if key is None else key for key in (unit.i, unit.j))
        keep_REE[unit.group, i, j] = False
    return ExpertMask(keep_REE, {"made_by": "inspection", "units": [unit.name for unit in units]})
