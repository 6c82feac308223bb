"""Every expert by itself: a loop over all E * E pairs in float64, written from the definitions, not from the ops.

Weights have the released names (`u.weight`, `v11.weight`, `b1`, ...), so the loop also defines the names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from monet.kernels import limits
from monet.kernels.hde.op import horizontal_experts
from monet.kernels.masked import Keep
from monet.kernels.shared import SharedGates
from monet.kernels.vde.op import vertical_experts

DECOMPOSITIONS = ("horizontal", "vertical")


def relu2(x: Tensor) -> Tensor:
    return x.relu().square()


def expert(form: str, weights: Mapping[str, Tensor], i: int, j: int, E: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Expert (i, j) as a small dense network: first weight, first bias, second weight, output bias."""

    def rows(name: str, key: int) -> Tensor:
        return weights[name].unflatten(0, (E, -1))[key]

    def columns(name: str, key: int) -> Tensor:
        return weights[name].unflatten(1, (E, -1))[:, key]

    if form == "horizontal":
        return rows("u.weight", i), rows("u.bias", i), columns("v.weight", j), weights["b"][j]
    first = torch.cat([rows("u1.weight", i), rows("u2.weight", j)])
    first_bias = torch.cat([rows("u1.bias", i), rows("u2.bias", j)])
    left = torch.cat([columns("v11.weight", i), columns("v12.weight", i)], dim=1)
    right = torch.cat([columns("v21.weight", j), columns("v22.weight", j)], dim=1)
    return first, first_bias, torch.cat([left, right]), torch.cat([weights["b1"][i], weights["b2"][j]])


def loop_over_experts(
    form: str,
    weights: Mapping[str, Tensor],
    x_TD: Tensor,
    g1_THE: Tensor,
    g2_THE: Tensor,
    keep_TEE: Tensor | None = None,
    activation: Callable[[Tensor], Tensor] = relu2,
) -> Tensor:
    """sum_ij keep[i, j] (sum_h g1[h, i] g2[h, j]) (V_ij act(U_ij x + u_ij) + b_ij), one expert at a time."""
    E = g1_THE.shape[-1]
    out_TD = torch.zeros_like(x_TD)
    for i in range(E):
        for j in range(E):
            first, first_bias, second, bias = expert(form, weights, i, j, E)
            w_T = (g1_THE[:, :, i] * g2_THE[:, :, j]).sum(1)
            if keep_TEE is not None:
                w_T = w_T * keep_TEE[:, i, j]
            out_TD = out_TD + w_T[:, None] * (activation(x_TD @ first.T + first_bias) @ second.T + bias)
    return out_TD


def shapes(form: str, D: int, E: int, M: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of one layer's expert weights, as the released checkpoints have them."""
    if form == "horizontal":
        return {"u.weight": (E * M, D), "u.bias": (E * M,), "v.weight": (D, E * M), "b": (E, D)}
    P = E * M // 2
    first = {f"u{n}.weight": (P, D) for n in (1, 2)} | {f"u{n}.bias": (P,) for n in (1, 2)}
    second = {f"v{n}.weight": (D // 2, P) for n in ("11", "12", "21", "22")}
    return first | second | {"b1": (E, D // 2), "b2": (E, D // 2)}


@dataclass
class Example:
    """Random weights, states and routing of one layer; every tensor float64 unless cast."""

    form: str
    T: int = 7
    E: int = 5
    H: int = 2
    M: int = 4
    D: int = 6
    dense: bool = False
    seed: int = 0
    dtype: torch.dtype = torch.float64
    weights: dict[str, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.seed)

        def gauss(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        self.x_TD = gauss(self.T, self.D)
        self.weights = {name: gauss(*shape) for name, shape in shapes(self.form, self.D, self.E, self.M).items()}
        logits_2THE = 2 * gauss(2, self.T, self.H, self.E)
        if not self.dense:
            below = logits_2THE < logits_2THE.amax(-1, keepdim=True).clamp(max=1.0)
            logits_2THE = logits_2THE.masked_fill(below, -torch.inf)
        self.g1_THE, self.g2_THE = (g_THE.clone() for g_THE in logits_2THE.softmax(-1))
        self.cast(self.dtype)

    def cast(self, dtype: torch.dtype) -> Example:
        self.weights = {name: weight.to(dtype) for name, weight in self.weights.items()}
        self.x_TD, self.g1_THE, self.g2_THE = (part.to(dtype) for part in (self.x_TD, self.g1_THE, self.g2_THE))
        return self

    def pre_activations(self) -> tuple[Tensor, ...]:
        names = ("u",) if self.form == "horizontal" else ("u1", "u2")
        return tuple(
            torch.nn.functional.linear(self.x_TD, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])
            .unflatten(-1, (self.E, -1))
            for name in names
        )  # fmt: skip

    def output_weights(self) -> tuple[Tensor, ...]:
        names = {"horizontal": ("v.weight", "b")}.get(
            self.form, ("v11.weight", "v12.weight", "v21.weight", "v22.weight", "b1", "b2")
        )
        return tuple(self.weights[name] for name in names)

    def op_inputs(self) -> tuple[Tensor, ...]:
        """All differentiable arguments of the public op, flat."""
        return (*self.pre_activations(), self.g1_THE, self.g2_THE, *self.output_weights())

    def op(self, keep: Keep | None = None, activation: Callable[[Tensor], Tensor] = relu2) -> Tensor:
        return call_op(self.form, self.op_inputs(), activation, keep)

    def loop(self, keep_TEE: Tensor | None = None, activation: Callable[[Tensor], Tensor] = relu2) -> Tensor:
        return loop_over_experts(
            self.form, self.weights, self.x_TD, self.g1_THE, self.g2_THE, keep_TEE, activation
        )  # fmt: skip

    def random_keep(self, soft: bool = False, S: int = 1, seed: int = 1) -> Tensor:
        """(S, E, E): about half of the experts kept, or random attenuations."""
        values = torch.rand(S, self.E, self.E, generator=torch.Generator().manual_seed(seed))
        return values if soft else values > 0.5


def call_op(
    form: str,
    inputs: tuple[Tensor, ...],
    activation: Callable[[Tensor], Tensor] = relu2,
    keep: Keep | None = None,
    shared: SharedGates | None = None,
) -> Tensor:
    """The public op of either form on the flat inputs of `Example.op_inputs`."""
    if form == "horizontal":
        return horizontal_experts(*inputs, activation, keep, shared)  # type: ignore[arg-type]
    p1, p2, g1, g2, v11, v12, v21, v22, b1, b2 = inputs
    return vertical_experts(p1, p2, g1, g2, (v11, v12, v21, v22), (b1, b2), activation, keep, shared)


def keep_of_tokens(keep: Keep, T: int) -> Tensor:
    """(T, E, E) float64: the keep-weights for each token; index -1 keeps all."""
    if keep.index_T is None:
        return keep.weights_SEE.double().expand(T, -1, -1)
    everything = torch.ones_like(keep.weights_SEE[:1]).double()
    return torch.cat([keep.weights_SEE.double(), everything])[keep.index_T]


def set_sizes(
    monkeypatch: pytest.MonkeyPatch, *, lean_from: int = 0, chunk: int | None = None, pairs: int | None = None
) -> None:
    """Set the chunk sizes of the mixing, all in elements of one array.

    Args:
        lean_from: number of hidden units from which the step with the lean backward is used; 0 for always.
        chunk: hidden units mixed at a time; None keeps the default.
        pairs: pair weights that exist at a time; None keeps the default.
    """
    monkeypatch.setattr(limits, "LEAN_FROM_ELEMENTS", lean_from)
    if chunk is not None:
        monkeypatch.setattr(limits, "GEMM_ELEMENTS", chunk)
        monkeypatch.setattr(limits, "CACHE_ELEMENTS", max(1, chunk // 2))
    if pairs is not None:
        monkeypatch.setattr(limits, "PAIR_ELEMENTS", pairs)
