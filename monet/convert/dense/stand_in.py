"""Stand-ins for an MLP: Monet's own router and experts in standardised coordinates that fold into released weights.

An optimiser works best if inputs and outputs have about unit scale. So a stand-in divides each input dimension by its
standard deviation, subtracts the mean for the experts, and multiplies the output by one scale. The router sees no
subtracted mean, because it has no bias that could absorb the mean. All scales are powers of two. Multiplication by
them is exact, so the folded router computes the same logits, bit for bit, and chooses the same keys.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from monet.configuration_monet import MonetConfig
from monet.model.experts import EXPERTS, Experts
from monet.model.router import MonetRouter, RouterOutput

_LEAST_SCALE = 2.0**-20


class Student(Protocol):
    """What stage 1 trains: a module that computes an MLP's output from its input, (T, D) -> (T, D)."""

    def __call__(self, x_TD: Tensor) -> Tensor: ...


def power_of_two(values: Tensor) -> Tensor:
    """The nearest powers of two of positive values, float32."""
    return torch.exp2(values.float().clamp(min=_LEAST_SCALE).log2().round())


class Standardised(nn.Module):
    """A student that computes in standardised coordinates.

    Args:
        width: size D of inputs and outputs.
    Attributes:
        mean_D, scale_D: mean of the inputs, and their standard deviation rounded to a power of two.
        out_scale: root mean square of the centred outputs, rounded to a power of two.
    """

    mean_D: Tensor
    scale_D: Tensor
    out_scale: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        for name in ("mean_D", "scale_D"):
            self.register_buffer(name, torch.full((width,), float(name == "scale_D")))
        self.register_buffer("out_scale", torch.ones(()))

    @torch.no_grad()
    def standardise(self, x_TD: Tensor, y_TD: Tensor) -> None:
        """Set the coordinates from a sample of the MLP's inputs and outputs."""
        self.mean_D.copy_(x_TD.float().mean(0))
        self.scale_D.copy_(power_of_two(x_TD.float().std(0)))
        self.out_scale.copy_(power_of_two(y_TD.float().var(0).mean().sqrt()))

    def centred(self, x_TD: Tensor) -> Tensor:
        """An input in standardised coordinates, float32."""
        return (x_TD.float() - self.mean_D) / self.scale_D


class StandIn(Standardised):
    """A Monet layer that learns an MLP's output.

    Args:
        config: the hybrid's configuration; it gives the sizes.
        leader: the stand-in whose router this layer shares; it must run first on the same batch. None for a layer that
            owns a router.
    Attributes:
        routed: output of the router in the last forward.
    """

    def __init__(self, config: MonetConfig, leader: StandIn | None = None) -> None:
        super().__init__(config.hidden_size)
        self.num_heads = config.moe_heads
        self._leader = [leader]  # in a list: the leader's weights are not this module's
        self.router = MonetRouter(config) if leader is None else None
        self.experts: Experts = EXPERTS[config.moe_decompose](config)
        self.routed: RouterOutput | None = None

    def scaled(self, x_TD: Tensor) -> Tensor:
        """The router's view of an input; exact in every dtype."""
        return x_TD * (1 / self.scale_D).to(x_TD.dtype)

    def route(self, x_TD: Tensor) -> RouterOutput:
        """The routing of a batch: this layer's own, or that of the leader's last forward."""
        if self.router is None:
            leader = self._leader[0]
            assert leader is not None and leader.routed is not None, "the leader of a group runs first"
            return leader.routed
        routed = self.router.route(self.scaled(x_TD)[None])
        self.router.update_statistics(routed)
        return routed

    def forward(self, x_TD: Tensor) -> Tensor:
        """(T, D) -> (T, D), both in the dense model's own units."""
        self.routed = routed = self.route(x_TD)
        out_TD = self.experts(self.centred(x_TD)[None], *routed.gates, shared=routed.shared)[0]
        return out_TD * self.out_scale.to(out_TD.dtype)

    def train(self, mode: bool = True) -> Any:
        """As in nn.Module; also drops the last routing."""
        self.routed = None
        return super().train(mode)

    @torch.no_grad()
    def folded(self) -> dict[str, Tensor]:
        """The router's and experts' tensors under released names, for inputs and outputs in the dense model's units.

        The biases of the hidden units are computed in float64 and rounded once. All other tensors are only multiplied
        by powers of two.
        """
        tensors: dict[str, Tensor] = {}
        if self.router is not None:
            for name, tensor in self.router.state_dict().items():
                tensors[f"router.{name}"] = tensor / self.scale_D if name.startswith("w") else tensor.clone()
        state = self.experts.state_dict()
        for name, tensor in state.items():
            if name.startswith(("v", "b")):
                folded = tensor * self.out_scale
            elif name.endswith("weight"):
                folded = tensor / self.scale_D
            else:
                weight_PD = state[name.replace("bias", "weight")].double() / self.scale_D.double()
                folded = (tensor.double() - weight_PD @ self.mean_D.double()).float()
            tensors[f"moe.{name}"] = folded
        return tensors


def build_stand_ins(config: MonetConfig, groups: list[list[int]]) -> dict[int, StandIn]:
    """One stand-in for each layer; the layers of a group share the router of its first layer."""
    found: dict[int, StandIn] = {}
    for group in groups:
        for layer in group:
            found[layer] = StandIn(config, None if layer == group[0] else found[group[0]])
    return found
