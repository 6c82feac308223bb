"""Expert layers: the weights of E * E experts in either decomposition, under the released names."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from monet.configuration_monet import MonetConfig
from monet.errors import ConfigError
from monet.kernels.hde.op import horizontal_experts
from monet.kernels.masked import Keep
from monet.kernels.vde.op import vertical_experts


def activation_of(config: MonetConfig) -> Callable[[Tensor], Tensor]:
    """The experts' activation.

    Raises:
        ConfigError: `hidden_act` is no activation transformers knows.
    """
    if config.hidden_act not in ACT2FN:
        raise ConfigError(f"hidden_act={config.hidden_act!r}: allowed are {', '.join(sorted(ACT2FN))}")
    return ACT2FN[config.hidden_act]


class HorizontalExperts(nn.Module):
    """Expert (i, j) is x -> V_j act(U_i x + u_i) + b_j (arXiv 2412.04139, eq. 10-12).

    `u` is called as a module; `v` and `b` only hold weights that the mixing reads, so a hook on `v` never fires.
    """

    def __init__(self, config: MonetConfig) -> None:
        super().__init__()
        D, E, M = config.hidden_size, config.moe_experts, config.moe_dim
        self.act_fn = activation_of(config)
        self.num_keys = E
        self.u = nn.Linear(D, E * M)
        self.v = nn.Linear(E * M, D, bias=False)
        self.b = nn.Parameter(torch.zeros(E, D))

    def forward(self, x_BTD: Tensor, g1_BTHE: Tensor, g2_BTHE: Tensor, keep: Keep | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D) for routing probabilities of the group; `keep` masks experts."""
        B, T, _ = x_BTD.shape
        p_TEM = self.u(x_BTD.flatten(0, 1)).unflatten(-1, (self.num_keys, -1))
        out_TD = horizontal_experts(
            p_TEM, g1_BTHE.flatten(0, 1), g2_BTHE.flatten(0, 1), self.v.weight, self.b, self.act_fn, keep
        )
        return out_TD.unflatten(0, (B, T))


class VerticalExperts(nn.Module):
    """Expert (i, j) joins a half that belongs to i and a half that belongs to j (arXiv 2412.04139, eq. 13-29).

    `u1` and `u2` are called as modules; the four `v` only hold weights that the mixing reads, so hooks on them never
    fire.
    """

    def __init__(self, config: MonetConfig) -> None:
        super().__init__()
        D, E, P = config.hidden_size, config.moe_experts, config.moe_experts * config.moe_dim // 2
        self.act_fn = activation_of(config)
        self.num_keys = E
        self.u1, self.u2 = nn.Linear(D, P), nn.Linear(D, P)
        self.v11, self.v12 = nn.Linear(P, D // 2, bias=False), nn.Linear(P, D // 2, bias=False)
        self.v21, self.v22 = nn.Linear(P, D // 2, bias=False), nn.Linear(P, D // 2, bias=False)
        self.b1, self.b2 = nn.Parameter(torch.zeros(E, D // 2)), nn.Parameter(torch.zeros(E, D // 2))

    def forward(self, x_BTD: Tensor, g1_BTHE: Tensor, g2_BTHE: Tensor, keep: Keep | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D) for routing probabilities of the group; `keep` masks experts."""
        B, T, _ = x_BTD.shape
        x_TD = x_BTD.flatten(0, 1)
        p1_TEM = self.u1(x_TD).unflatten(-1, (self.num_keys, -1))
        p2_TEM = self.u2(x_TD).unflatten(-1, (self.num_keys, -1))
        projections = (self.v11.weight, self.v12.weight, self.v21.weight, self.v22.weight)
        out_TD = vertical_experts(
            p1_TEM,
            p2_TEM,
            g1_BTHE.flatten(0, 1),
            g2_BTHE.flatten(0, 1),
            projections,
            (self.b1, self.b2),
            self.act_fn,
            keep,
        )
        return out_TD.unflatten(0, (B, T))


EXPERTS: dict[str, type[HorizontalExperts] | type[VerticalExperts]] = {
    "horizontal": HorizontalExperts,
    "vertical": VerticalExperts,
}
