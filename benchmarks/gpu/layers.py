"""Times a layer, the einsum formulation (also compiled) and a dense layer; counts saved bytes; times masks.

A layer consists of its experts and a quarter of the router that four layers share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.cpu_layer import BOTH, FORWARD, Inputs
from benchmarks.gpu.parts import FusedSwiGLU, Parts, build, call, cast_gates, compiled, inputs_of, make_inputs
from benchmarks.gpu.plan import FORMS, Plan, Row, Shape, environment, free, medians
from benchmarks.measure import saved_bytes, time_on_device
from monet.kernels.masked import Keep
from monet.kernels.shared import GateFacts, share
from monet.model.experts import EXPERTS
from monet.model.router import MonetRouter

GROUP_LAYERS = 4
REMOVED_SHARES = (0.05, 0.5, 0.95)
# Coarse: a wrong formula, not a rounding; the section on correctness has the tolerances.
_MAX_DIFFERENCE = 0.05


def rows(plan: Plan) -> Iterator[Row]:
    """Milliseconds of a layer by shape, form and mode, the main shape first."""
    for shape in (plan.shape, *(shape for shape in plan.shapes if shape is not plan.shape)):
        parts = build(plan, shape)
        inputs = make_inputs(plan, shape, parts.router, plan.tokens)
        _check(parts, inputs)
        for mode in (FORWARD, BOTH):
            ms = medians(time_on_device(_runs(parts, mode, inputs), plan.device, plan.rounds))
            yield from _layers(plan, shape, mode, ms)
        del parts, inputs
        free(plan.device)


def _check(parts: Parts, inputs: Inputs) -> None:
    """Raise if our layers and the einsums compute different results from the same routing."""
    for form, pair in parts.experts.items():
        results: Any = [
            call(module, form, FORWARD, inputs_of(side, inputs))()
            for side, module in (("ours", pair.ours), ("einsum", pair.einsum))
        ]
        (ours_BTD,), (einsum_BTD,) = results
        difference = (ours_BTD - einsum_BTD).float().norm() / einsum_BTD.float().norm()
        if not difference <= _MAX_DIFFERENCE:
            raise AssertionError(f"{form} experts differ from the einsum formulation by {difference:.1e}")


def _runs(parts: Parts, mode: str, inputs: Inputs) -> dict[str, Callable[[], object]]:
    runs: dict[str, Callable[[], object]] = {"dense": call(parts.dense, "dense", mode, inputs)}
    for part, pair in {"router": parts.router, **parts.experts}.items():
        ours = call(pair.ours, part, mode, inputs_of("ours", inputs))
        runs |= {f"ours {part}": ours, f"torch {part}": partial(_in_torch, ours)}
        runs[f"einsum {part}"] = call(pair.einsum, part, mode, inputs)
    return runs


def _in_torch(run: Callable[[], object]) -> object:
    with environment(MONET_KERNELS="torch"):
        return run()


def _layers(plan: Plan, shape: Shape, mode: str, ms: dict[str, float]) -> Iterator[Row]:
    for form, short in FORMS.items():
        row: Row = {"shape": shape.name, "form": short, "mode": mode, "tokens": plan.tokens, "topk": plan.topk}
        for side in ("ours", "torch", "einsum"):
            row[f"ms_{side}"] = ms[f"{side} {form}"] + ms[f"{side} router"] / GROUP_LAYERS
        row |= {"ms_dense": ms["dense"], "ratio_to_dense": row["ms_ours"] / ms["dense"]}
        row["einsum_over_ours"] = row["ms_einsum"] / row["ms_ours"]
        row["parts_ms"] = {name: value for name, value in ms.items() if name.endswith((form, "router"))}
        if shape is plan.shape:
            name = {("HD", FORWARD): "G1", ("VD", FORWARD): "G2", ("HD", BOTH): "G3", ("VD", BOTH): "G4"}[short, mode]
            row["targets"] = {name: row["ratio_to_dense"]}
            if mode == BOTH:
                row["targets"][f"G5 {short}"] = row["einsum_over_ours"]
        yield row


def compiled_rows(plan: Plan) -> Iterator[Row]:
    """The einsum formulation's parts under torch.compile and ours at the main shape; compiling takes a while."""
    parts = build(plan, plan.shape)
    inputs = make_inputs(plan, plan.shape, parts.router, plan.tokens)
    for mode in (FORWARD, BOTH):
        for part, pair in {"router": parts.router, **parts.experts}.items():
            runs = {
                "ours": call(pair.ours, part, mode, inputs_of("ours", inputs)),
                "compiled": compiled(pair, mode, inputs, plan.compiler),
            }
            ms = medians(time_on_device(runs, plan.device, plan.rounds))
            yield {"part": part, "mode": mode, "ms_ours": ms["ours"], "ms_compiled": ms["compiled"],
                   "compiled_over_ours": ms["compiled"] / ms["ours"]}  # fmt: skip


class Group(nn.Module):
    """A router and the layers it serves, each added to the residual stream, as in the model."""

    def __init__(self, router: MonetRouter, layers: list[nn.Module]) -> None:
        super().__init__()
        self.router, self.layers = router, nn.ModuleList(layers)

    def forward(self, x_BTD: Tensor) -> Tensor:
        routed = self.router(x_BTD)
        for layer in self.layers:
            x_BTD = x_BTD + layer(x_BTD, *routed.gates, shared=routed.shared)
        return x_BTD


def saved_rows(plan: Plan) -> Iterator[Row]:
    """KiB that a training forward keeps for each token and layer, with inputs of the layers but without weights."""
    shape = plan.shape
    x_BTD = torch.randn(1, plan.saved_tokens, shape.hidden_size, device=plan.device).to(plan.dtype)
    groups: dict[str, nn.Module] = {}
    for form, short in FORMS.items():
        config = shape.config(form, plan.topk)
        with plan.device:
            groups[short] = Group(MonetRouter(config), [EXPERTS[form](config) for _ in range(GROUP_LAYERS)])
    with plan.device:
        dense = [FusedSwiGLU(shape.hidden_size, shape.dense_width, plan.compiler) for _ in range(GROUP_LAYERS)]
    groups["dense"] = nn.Sequential(*dense)
    for name, group in groups.items():
        for parameter in group.parameters():
            nn.init.normal_(parameter, std=0.02)
        group.to(plan.dtype).train()
        saved = saved_bytes(partial(group, x_BTD), [*group.parameters(), *group.buffers()])
        kib = saved / plan.saved_tokens / GROUP_LAYERS / 1024
        yield {"form": name, "kib": kib, "targets": {} if name == "dense" else {f"G8 {name}": kib}}


def masked_rows(plan: Plan) -> Iterator[Row]:
    """Masked over unmasked forward of the experts: removed shares, keep-weights, one mask for each sequence."""
    shape = plan.shape
    parts = build(plan, shape)
    inputs = cast_gates(make_inputs(plan, shape, parts.router, plan.tokens))
    E = shape.experts
    masks: dict[str, Keep | None] = {"none": None}
    for removed in REMOVED_SHARES:
        masks[f"hard, {removed:.0%} removed"] = Keep(torch.rand(1, E, E, device=plan.device) >= removed)
    masks["soft"] = Keep(torch.rand(1, E, E, device=plan.device))
    of_token_T = torch.arange(plan.tokens, device=plan.device) * 4 // plan.tokens
    masks["one a sequence, 4"] = Keep(torch.rand(4, E, E, device=plan.device) >= 0.5, of_token_T)
    for form, short in FORMS.items():
        experts = parts.experts[form].ours.eval()
        runs: dict[str, Callable[[], object]] = {
            name: partial(_inference_of_a_group, experts, inputs, keep) for name, keep in masks.items()
        }
        ms = medians(time_on_device(runs, plan.device, plan.rounds))
        ratios = {name: ms[name] / ms["none"] for name in masks if name != "none"}
        for name, ratio in ratios.items():
            yield {"form": short, "mask": name, "ms": ms[name], "ms_unmasked": ms["none"], "ratio": ratio}
        yield {"form": short, "mask": "worst", "ratio": max(ratios.values()),
               "targets": {f"G9 {short}": max(ratios.values())}}  # fmt: skip


@torch.no_grad()
def _inference_of_a_group(experts: nn.Module, inputs: Inputs, keep: Keep | None) -> None:
    """Runs the experts once for each layer of a group; the first layer makes the lists of active keys for all."""
    shared = share(inputs.gates, (GateFacts(), GateFacts()))
    for _ in range(GROUP_LAYERS):
        experts(inputs.x_BTD, *inputs.gates, keep, shared)
