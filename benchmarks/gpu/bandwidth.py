"""Bandwidth of mixing and routing, counting the minimum of bytes: arguments read once, results written once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from transformers.activations import ACT2FN

from benchmarks.gpu.parts import build, cast_gates, make_inputs
from benchmarks.gpu.plan import FORMS, Plan, Row, free, medians, total_bytes
from benchmarks.measure import time_on_device
from monet.kernels.dispatch import resolve
from monet.kernels.masked import Keep
from monet.kernels.routing.op import batch_statistics, route_with_losses, thresholded_softmax
from monet.kernels.routing.reference import normal_quantile, raw_threshold


class Operation(NamedTuple):
    """A call and the smallest number of bytes that it must move.

    kernel: key of the launch parameters it runs with.
    target: target that its bandwidth counts for, if any.
    """

    name: str
    kernel: str
    run: Callable[[], object]
    num_bytes: int
    target: str | None


def rows(plan: Plan) -> Iterator[Row]:
    """TB/s of each operation; a target's figure is its slowest operation's."""
    worst: dict[str, float] = {}
    for operation in operations(plan):
        ms = medians(time_on_device({"it": operation.run}, plan.device, plan.rounds))["it"]
        bandwidth = operation.num_bytes / ms / 1e9
        if operation.target is not None:
            worst[operation.target] = min(worst.get(operation.target, bandwidth), bandwidth)
        yield {
            "operation": operation.name, "mb": operation.num_bytes / 1e6, "ms": ms, "tb_per_s": bandwidth,
            "kernels_us": kernel_times(operation.run, plan.device),
        }  # fmt: skip
    yield {"operation": "worst of each target", "targets": worst}


def operations(plan: Plan) -> Iterator[Operation]:
    """Routing and mixing, forward and backward, at the main shape, with the dense gates that the model passes."""
    parts = build(plan, plan.shape)
    inputs = cast_gates(make_inputs(plan, plan.shape, parts.router, plan.tokens))
    gates = (inputs.gates[0].flatten(0, 1), inputs.gates[1].flatten(0, 1))
    del parts, inputs
    yield from _routing(plan)
    E = plan.shape.experts
    keep = Keep(torch.rand(1, E, E, device=plan.device) < 0.5)
    for form in FORMS:
        free(plan.device)
        yield from _mixing(plan, form, gates, None)
        yield from _mixing(plan, form, gates, keep)


def _mixing(plan: Plan, form: str, gates: tuple[Tensor, Tensor], keep: Keep | None) -> Iterator[Operation]:
    shape, halves = plan.shape, 2 if form == "vertical" else 1
    size = (plan.tokens, shape.experts, shape.expert_width // halves)
    hidden = tuple(torch.randn(size, device=plan.device).to(plan.dtype) for _ in range(halves))
    activation = ACT2FN["relu2"]
    mixing: Any = resolve(f"{form}_mixing", hidden[0])
    read = total_bytes((*hidden, *gates))
    with torch.no_grad():
        mixed = mixing.forward(hidden, *gates, activation, keep)
    upstream = [torch.randn_like(y) for y in mixed]
    written = [torch.empty_like(tensor) for tensor in (*hidden, *gates)]

    @torch.no_grad()
    def forward() -> object:
        return mixing.forward(hidden, *gates, activation, keep)

    @torch.no_grad()
    def backward() -> object:
        return mixing.backward(hidden, *gates, activation, keep, upstream, written)

    name = f"{FORMS[form]} {'mixing' if keep is None else 'masked mixing'}"
    target = f"G6 {FORMS[form]}" if keep is None else None
    kernel = "mix" if keep is None else "masked_mix"
    yield Operation(f"{name} forward", kernel, forward, read + total_bytes(mixed), target)
    num_bytes = read + total_bytes(upstream) + total_bytes(written)
    yield Operation(f"{name} backward", f"{kernel}_backward", backward, num_bytes, target)


def _routing(plan: Plan) -> Iterator[Operation]:
    """One axis of a router in training, and in inference."""
    T, H, E = plan.tokens, plan.shape.heads, plan.shape.experts
    z_TP = torch.randn(T, H * E, device=plan.device).to(plan.dtype).requires_grad_()
    z_BTHE = z_TP.detach().view(1, T, H, E)
    statistics = batch_statistics(z_BTHE)
    var_H = statistics.m2_H / statistics.count
    threshold_H = raw_threshold(statistics.mean_H, var_H, normal_quantile(plan.topk, E), 1e-5)

    def in_training() -> Any:
        return route_with_losses(z_TP, threshold_H, width_H=var_H.sqrt(), spread="firing", dtype=z_TP.dtype)

    routed = in_training()
    learned = (routed.g_TP, routed.mean_max_H, routed.share_HE)
    upstream = [torch.randn_like(output) for output in learned]

    @torch.no_grad()
    def moments() -> object:
        return batch_statistics(z_BTHE)

    @torch.no_grad()
    def in_inference() -> object:
        return thresholded_softmax(z_TP, threshold_H, dtype=z_TP.dtype)

    def backward() -> object:
        return torch.autograd.grad(learned, z_TP, upstream, retain_graph=True)

    through = total_bytes([z_TP, routed.g_TP])
    yield Operation("routing statistics", "moments", moments, total_bytes([z_TP]), "G7")
    yield Operation("routing forward, inference", "forward", in_inference, through, "G7")
    yield Operation("routing forward, training", "forward", in_training, through, "G7")
    yield Operation("routing backward", "backward", backward, through + total_bytes([z_TP]), "G7")


def kernel_times(run: Callable[[], object], device: torch.device) -> dict[str, float]:
    """Microseconds on the GPU of each kernel that a call launches, by name; empty elsewhere."""
    if device.type != "cuda":
        return {}
    torch.cuda.synchronize(device)
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        run()
        torch.cuda.synchronize(device)
    events: list[Any] = list(profiler.key_averages())
    return {event.key: event.device_time_total for event in events if event.device_time_total}
