"""Modules to time, ours and the einsum formulation's on the same weights, and inputs for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.baseline import DenseSwiGLU, EinsumHorizontal, EinsumRouter, EinsumVertical
from benchmarks.cpu_layer import BOTH, Inputs, Pair, runner
from benchmarks.gpu.plan import FORMS, Plan, Shape
from monet.model.experts import EXPERTS
from monet.model.router import MonetRouter

_EINSUM = {"horizontal": EinsumHorizontal, "vertical": EinsumVertical}


class FusedSwiGLU(DenseSwiGLU):
    """An optimised dense layer: library products, with silu and multiplication in one compiled kernel."""

    def __init__(self, hidden_size: int, intermediate_size: int, compiler: str) -> None:
        super().__init__(hidden_size, intermediate_size)
        self.gated = torch.compile(_gated, backend=compiler)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.down(self.gated(self.gate(x_BTD), self.up(x_BTD)))


def _gated(gate: Tensor, up: Tensor) -> Tensor:
    return nn.functional.silu(gate) * up


class Parts(NamedTuple):
    """A router and both forms' experts of one shape, and the dense layer."""

    router: Pair
    experts: dict[str, Pair]
    dense: FusedSwiGLU


def build(plan: Plan, shape: Shape) -> Parts:
    """Weights as at initialisation, and biases away from zero so that an unused bias is noticed."""
    torch.manual_seed(0)
    with plan.device:
        configs = {form: shape.config(form, plan.topk) for form in FORMS}
        pairs = {
            "router": (MonetRouter(configs["vertical"]), EinsumRouter(configs["vertical"])),
            **{form: (EXPERTS[form](config), _EINSUM[form](config)) for form, config in configs.items()},
        }
        dense = FusedSwiGLU(shape.hidden_size, shape.dense_width, plan.compiler).to(plan.dtype)
    made = {}
    for part, (ours, einsum) in pairs.items():
        for parameter in ours.parameters():
            nn.init.normal_(parameter, std=0.02)
        ours.to(plan.dtype)
        einsum.load_state_dict(ours.state_dict(), assign=True)
        einsum.requires_grad_(True)
        made[part] = Pair(part, plan.topk, ours, einsum)
    return Parts(made["router"], {form: made[form] for form in FORMS}, dense)


@torch.no_grad()
def make_inputs(plan: Plan, shape: Shape, router: Pair, tokens: int, settle: bool = True) -> Inputs:
    """Fresh normal inputs and their routing.

    Args:
        plan, shape, router: settings, and the router that was built from them.
        tokens: tokens of one sequence.
        settle: set the router's running statistics to those of these inputs' logits, so that about k keys are active.
    """
    ours = router.ours
    assert isinstance(ours, MonetRouter)
    x_BTD = torch.randn(1, tokens, shape.hidden_size, device=plan.device).to(plan.dtype)
    for w, norm in ((ours.w1, ours.norm1), (ours.w2, ours.norm2)) if settle else ():
        z_BTHE = w(x_BTD).unflatten(-1, (shape.heads, shape.experts))
        variance_H, mean_H = torch.var_mean(z_BTHE.float(), dim=(0, 1, 3))
        norm.running_mean.copy_(mean_H)
        norm.running_var.copy_(variance_H)
    routed = ours.eval()(x_BTD, float32_probs=True)
    gates = (routed.g1_BTHE, routed.g2_BTHE)
    upstream = (torch.randn_like(gates[0]), torch.randn_like(gates[1]))
    return Inputs(x_BTD, gates, torch.randn_like(x_BTD), upstream)


def cast_gates(inputs: Inputs) -> Inputs:
    """Gates in the dtype of the states, as our router returns them; the einsum formulation takes float32."""
    dtype = inputs.x_BTD.dtype
    gates, upstream = (tuple(g.to(dtype) for g in pair) for pair in (inputs.gates, inputs.gate_upstream))
    return inputs._replace(gates=gates, gate_upstream=upstream)


def inputs_of(side: str, inputs: Inputs) -> Inputs:
    """Inputs of one side of a comparison, with the routing in float32."""
    return cast_gates(inputs) if side in ("ours", "torch") else inputs


def call(module: nn.Module, part: str, mode: str, inputs: Inputs) -> Callable[[], object]:
    """A call that runs the module as in training or inference; each call computes new gradients without adding up."""
    run = _router_call(module, mode, inputs) if part == "router" else runner(module, part, mode, inputs)

    def once() -> object:
        if mode == BOTH:
            module.zero_grad(set_to_none=True)
        return run()

    return once


def _router_call(module: nn.Module, mode: str, inputs: Inputs) -> Callable[[], object]:
    x_BTD = inputs.x_BTD.clone().requires_grad_(mode == BOTH)
    module.train(mode == BOTH)

    def once() -> object:
        if mode != BOTH:
            with torch.no_grad():
                return module(x_BTD)
        x_BTD.grad = None
        routed: Any = module(x_BTD)
        if isinstance(module, MonetRouter):
            module.update_statistics(routed)
            routed = routed.gates
        return torch.autograd.backward(routed, inputs.gate_upstream)

    return once


def compiled(pair: Pair, mode: str, inputs: Inputs, compiler: str) -> Callable[[], object]:
    """The compiled call of the einsum formulation, after all earlier compilations are discarded."""
    torch._dynamo.reset()
    module: Any = torch.compile(pair.einsum, backend=compiler)
    return call(module, pair.part, mode, inputs)
