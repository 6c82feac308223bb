"""Expert layers: the weights of E * E experts in either decomposition, under the released names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from monet.configuration_monet import MonetConfig
from monet.errors import ConfigError
from monet.kernels.checks import is_plain_linear
from monet.kernels.decode.choice import OutputRows, is_sparse
from monet.kernels.decode.op import active_horizontal, active_vertical
from monet.kernels.hde.op import horizontal_experts, horizontal_mixing
from monet.kernels.masked import Keep
from monet.kernels.shared import SharedGates
from monet.kernels.vde.op import vertical_experts, vertical_mixing


def activation_of(config: MonetConfig) -> Callable[[Tensor], Tensor]:
    """The experts' activation.

    Raises:
        ConfigError: `hidden_act` is not an activation that transformers knows.
    """
    if config.hidden_act not in ACT2FN:
        raise ConfigError(f"hidden_act={config.hidden_act!r}: must be one of {', '.join(sorted(ACT2FN))}")
    return ACT2FN[config.hidden_act]


class Experts(nn.Module):
    """The shared part of both decompositions: the activation, and output weights in the form that decoding reads."""

    projections: tuple[str, ...]

    def __init__(self, config: MonetConfig) -> None:
        super().__init__()
        self.config = config
        self.act_fn = activation_of(config)
        self.num_keys, self.topk = config.moe_experts, config.moe_topk
        self._output_rows = OutputRows()

    def output_modules(self) -> list[nn.Module]:
        """The output projections, or the modules that replace them."""
        return [getattr(self, name) for name in self.projections]

    def calls_outputs(self) -> bool:
        """Whether the output projections are called as modules instead of being read; see `is_plain_linear`."""
        return not all(map(is_plain_linear, self.output_modules()))

    def train(self, mode: bool = True) -> Any:
        """As in nn.Module; also drops the copies for decoding."""
        self._output_rows.clear()
        return super().train(mode)

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        self._output_rows.clear()
        return super()._apply(*args, **kwargs)


class HorizontalExperts(Experts):
    """Expert (i, j) is x -> V_j act(U_i x + u_i) + b_j (arXiv 2412.04139, eq. 10-12).

    `u` is called as a module, except in inference with few active keys. The mixing reads the weight of `v`; if `v` is
    adapted, quantised, offloaded or hooked, it is called instead.
    """

    projections = ("v",)

    def __init__(self, config: MonetConfig) -> None:
        super().__init__(config)
        D, E, M = config.hidden_size, config.moe_experts, config.moe_dim
        self.u = nn.Linear(D, E * M)
        self.v = nn.Linear(E * M, D, bias=False)
        self.b = nn.Parameter(torch.zeros(E, D))

    def forward(
        self,
        x_BTD: Tensor,
        g1_BTHE: Tensor,
        g2_BTHE: Tensor,
        keep: Keep | None = None,
        shared: SharedGates | None = None,
    ) -> Tensor:
        """(B, T, D) -> (B, T, D) for routing probabilities of the group; `keep` masks experts.

        `shared` comes from the router (`RouterOutput.shared`). It saves work and does not change results.
        """
        B, T, _ = x_BTD.shape
        x_TD, g1_THE, g2_THE = (tensor.flatten(0, 1) for tensor in (x_BTD, g1_BTHE, g2_BTHE))
        if self.calls_outputs():
            y_TEM, c_TE = horizontal_mixing(self._hidden(x_TD), g1_THE, g2_THE, self.act_fn, keep, shared)
            out_TD = self.v(y_TEM.flatten(1)) + _biased(c_TE, self.b)
        elif is_sparse(x_TD, g1_THE, g2_THE, [self.u], [self.v.weight], [self.b], self.topk):
            v_PD = self._output_rows.of("v", self.v.weight)
            out_TD = active_horizontal(
                x_TD, g1_THE, g2_THE, self.u.weight, self.u.bias, v_PD, self.b, self.act_fn, keep
            )
        else:
            p_TEM = self._hidden(x_TD)
            out_TD = horizontal_experts(p_TEM, g1_THE, g2_THE, self.v.weight, self.b, self.act_fn, keep, shared)
        return out_TD.unflatten(0, (B, T))

    def _hidden(self, x_TD: Tensor) -> Tensor:
        return self.u(x_TD).unflatten(-1, (self.num_keys, -1))


class VerticalExperts(Experts):
    """Expert (i, j) joins a half that belongs to i and a half that belongs to j (arXiv 2412.04139, eq. 13-29).

    `u1` and `u2` are called as modules, except in inference with few active keys. The mixing reads the weights of the
    four `v`; if one of them is adapted, quantised, offloaded or hooked, all four are called instead.
    """

    projections = ("v11", "v12", "v21", "v22")

    def __init__(self, config: MonetConfig) -> None:
        super().__init__(config)
        D, E, P = config.hidden_size, config.moe_experts, config.moe_experts * config.moe_dim // 2
        self.u1, self.u2 = nn.Linear(D, P), nn.Linear(D, P)
        self.v11, self.v12 = nn.Linear(P, D // 2, bias=False), nn.Linear(P, D // 2, bias=False)
        self.v21, self.v22 = nn.Linear(P, D // 2, bias=False), nn.Linear(P, D // 2, bias=False)
        self.b1, self.b2 = nn.Parameter(torch.zeros(E, D // 2)), nn.Parameter(torch.zeros(E, D // 2))

    def forward(
        self,
        x_BTD: Tensor,
        g1_BTHE: Tensor,
        g2_BTHE: Tensor,
        keep: Keep | None = None,
        shared: SharedGates | None = None,
    ) -> Tensor:
        """(B, T, D) -> (B, T, D) for routing probabilities of the group; `keep` masks experts.

        `shared` comes from the router (`RouterOutput.shared`). It saves work and does not change results.
        """
        B, T, _ = x_BTD.shape
        x_TD, g1_THE, g2_THE = (tensor.flatten(0, 1) for tensor in (x_BTD, g1_BTHE, g2_BTHE))
        biases = (self.b1, self.b2)
        if self.calls_outputs():
            return self._through_modules(x_TD, g1_THE, g2_THE, keep, shared).unflatten(0, (B, T))
        projections = (self.v11.weight, self.v12.weight, self.v21.weight, self.v22.weight)
        if is_sparse(x_TD, g1_THE, g2_THE, [self.u1, self.u2], projections, biases, self.topk):
            first = (self.u1.weight, self.u1.bias, self.u2.weight, self.u2.bias)
            v11, v12, v21, v22 = (
                self._output_rows.of(name, weight) for name, weight in zip(self.projections, projections, strict=True)
            )
            out_TD = active_vertical(x_TD, g1_THE, g2_THE, first, (v11, v12, v21, v22), biases, self.act_fn, keep)
        else:
            p1_TEM, p2_TEM = self._hidden(x_TD)
            out_TD = vertical_experts(p1_TEM, p2_TEM, g1_THE, g2_THE, projections, biases, self.act_fn, keep, shared)
        return out_TD.unflatten(0, (B, T))

    def _hidden(self, x_TD: Tensor) -> tuple[Tensor, Tensor]:
        first, second = (linear(x_TD).unflatten(-1, (self.num_keys, -1)) for linear in (self.u1, self.u2))
        return first, second

    def _through_modules(
        self, x_TD: Tensor, g1_THE: Tensor, g2_THE: Tensor, keep: Keep | None, shared: SharedGates | None
    ) -> Tensor:
        y11_TEM, y12_TEM, y21_TEM, y22_TEM, r_TE, c_TE = vertical_mixing(
            *self._hidden(x_TD), g1_THE, g2_THE, self.act_fn, keep, shared
        )
        left = self.v11(y11_TEM.flatten(1)) + self.v12(y12_TEM.flatten(1)) + _biased(r_TE, self.b1)
        right = self.v21(y21_TEM.flatten(1)) + self.v22(y22_TEM.flatten(1)) + _biased(c_TE, self.b2)
        return torch.cat([left, right], -1)


def _biased(weights_TE: Tensor, b_ED: Tensor) -> Tensor:
    """The output biases, mixed: (T, D)."""
    return weights_TE @ b_ED.to(weights_TE.dtype)


EXPERTS: dict[str, type[HorizontalExperts] | type[VerticalExperts]] = {
    "horizontal": HorizontalExperts,
    "vertical": VerticalExperts,
}


@torch.no_grad()
def lay_out_for_decoding(model: nn.Module) -> None:
    """Make the rows of each expert's output weights contiguous in memory, as decoding on a GPU reads them.

    Names, shapes, values and the state dict stay the same. Only the order in memory changes: existing views of the
    weights and captured CUDA graphs no longer see the weights. Temporarily needs the memory of one weight. For
    inference only: optimizers over flat buffers and partitioned parameters keep weights in separate memory.

    Args:
        model: any module; its expert layers are changed in place.
    """
    for module in model.modules():
        if isinstance(module, Experts) and not module.calls_outputs():
            for weight in (linear.weight for linear in module.output_modules()):
                weight.data = cast(Tensor, weight.data).t().contiguous().t()
