"""Compares every public op with plain torch in float64, forward and backward, on fresh inputs.

New memory is filled with NaN, and a result with a NaN fails, so an element that a kernel does not write is noticed.
References take exactly the inputs of the op, so that no key is on the other side of a threshold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear
from transformers.activations import ACT2FN

from benchmarks.gpu.plan import Plan, Row, environment
from monet.kernels.decode.op import active_horizontal, active_vertical
from monet.kernels.dispatch import interpreted
from monet.kernels.hde.op import horizontal_experts
from monet.kernels.masked import Keep
from monet.kernels.routing.op import batch_statistics, route_with_losses, thresholded_softmax
from monet.kernels.routing.reference import Spread, normal_quantile, raw_threshold
from monet.kernels.vde.op import vertical_experts
from tests.tolerances import RELATIVE_RMS, relative_rms


class Size(NamedTuple):
    """Tokens, keys, heads, hidden units of an expert, model width."""

    T: int
    E: int
    H: int
    M: int
    D: int
    topk: int


class Case(NamedTuple):
    """An op on inputs.

    reference: function that computes the same in float64; None for the op itself.
    learns: whether the op has gradients, which are then compared for every input.
    is_masked: gradients of the gates are then compared after the backward of the routing's softmax. There the
            gradient of an inactive key is zero, and kernels do not compute it; a constant added to a row is lost too.
    """

    op: str
    run: Callable[..., Any]
    inputs: dict[str, Tensor]
    reference: Callable[..., Any] | None = None
    learns: bool = True
    is_masked: bool = False


# No size is a power of two, and every block has a tail.
ODD = Size(37, 35, 3, 6, 44, 3)
DECODED_TOKENS = 3
V_NAMES, B_NAMES = ("v11", "v12", "v21", "v22"), ("b1", "b2")
RELU2 = ACT2FN["relu2"]
SPREADS: tuple[Spread, ...] = ("routing", "softmax", "firing")


def rows(plan: Plan) -> Iterator[Row]:
    """Errors of outputs and gradients by op, size and dtype; raises after the last op if one exceeds the tolerance."""
    shape = plan.shape
    real = Size(min(plan.tokens, 256), shape.experts, shape.heads, shape.expert_width, shape.hidden_size, plan.topk)
    failed = []
    for size in (ODD, real):
        for dtype in dtypes(plan.device):
            for case in cases(size, dtype, plan.device):
                row = compare(case, dtype) | {"size": "odd" if size is ODD else shape.name, "tokens": size.T}
                yield row
                if not row["ok"]:
                    failed.append(f"{row['op']} {row['size']} {row['dtype']}: {row['worst']} is off by {row['error']}")
    if failed:
        raise AssertionError("; ".join(failed))


def dtypes(device: torch.device) -> tuple[torch.dtype, ...]:
    """Triton's interpreter computes bfloat16 wrongly, so that dtype is left to real devices and to plain torch."""
    on_interpreter = device.type == "cpu" and interpreted()
    return (torch.float32,) if on_interpreter else (torch.float32, torch.bfloat16)


def cases(size: Size, dtype: torch.dtype, device: torch.device) -> Iterator[Case]:
    """Routing, and both forms without and with each kind of mask."""
    T, E, H, M, D, topk = size

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(shape, device=device)).to(dtype)

    z_TP = normal(T, H * E)
    with environment(MONET_KERNELS="torch"):
        statistics = batch_statistics(z_TP.double().view(1, T, H, E))
    var_H = statistics.m2_H / statistics.count
    # Rounded to float32, in which some implementations compare, so that all of them use the same threshold.
    threshold_H = raw_threshold(statistics.mean_H, var_H, normal_quantile(topk, E), 1e-5).float().double()
    yield Case("thresholded softmax", partial(_softmax, threshold_H), {"z": z_TP})
    for spread in SPREADS:
        run = partial(_with_losses, spread, threshold_H, var_H.sqrt() / 2)
        yield Case(f"routing with losses, {spread}", run, {"z": z_TP})
    yield Case("batch statistics", partial(_moments, (1, T, H, E)), {"z": z_TP})
    with environment(MONET_KERNELS="torch"):
        gates = [thresholded_softmax(normal(T, H * E).float(), threshold_H).view(T, H, E) for _ in range(2)]
    if size is ODD:
        gates = [gate.to(dtype) for gate in gates]
    keeps = {
        "none": None,
        "hard": Keep(torch.rand(1, E, E, device=device) < 0.6),
        "soft": Keep(torch.rand(1, E, E, device=device)),
        "one a token": Keep(torch.rand(3, E, E, device=device) < 0.6, torch.arange(T, device=device) % 4 - 1),
    }
    routed = {"g1": gates[0], "g2": gates[1]}
    for mask, keep in keeps.items():
        name = "experts" if keep is None else f"experts, {mask} mask"
        weights = {"v": normal(D, E * M, scale=0.1), "b": normal(E, D)}
        inputs = {"p": normal(T, E, M), **routed, **weights}
        yield Case(f"horizontal {name}", partial(_horizontal, keep), inputs, is_masked=keep is not None)
        half = M // 2
        v = {name: normal(D // 2, E * half, scale=0.1) for name in V_NAMES}
        b = {name: normal(E, D // 2) for name in B_NAMES}
        inputs = {"p1": normal(T, E, half), "p2": normal(T, E, half), **routed, **v, **b}
        yield Case(f"vertical {name}", partial(_vertical, keep), inputs, is_masked=keep is not None)
        if keep is None or keep.index_T is None:
            yield from _sparse(size, normal, [gate[:DECODED_TOKENS] for gate in gates], keep, mask)
        if keep is None:
            yield from _sparse(size, normal, [gate[:1] for gate in gates], keep, mask, "one token, weights in place")


def _sparse(
    size: Size,
    normal: Callable[..., Tensor],
    gates: list[Tensor],
    keep: Keep | None,
    mask: str,
    in_place: str = "",
) -> Iterator[Case]:
    """Compares the layers that read only active keys, for a few tokens, with the layers that read all keys."""
    T, (_, E, _, M, D, _) = len(gates[0]), size
    name = ", ".join(["sparse decode", *([f"{mask} mask"] if keep is not None else []), *([in_place] * bool(in_place))])
    routed = {"x": normal(T, D), "g1": gates[0], "g2": gates[1]}
    weights = {"u": normal(E * M, D, scale=0.1), "a": normal(E * M), "v": normal(D, E * M, scale=0.1)}
    inputs = {**routed, **weights, "b": normal(E, D)}
    dense, sparse = partial(_dense_horizontal, keep), partial(_sparse_horizontal, keep, bool(in_place))
    yield Case(f"horizontal {name}", sparse, inputs, dense, learns=False)
    half = M // 2
    weights = {f"u{n}": normal(E * half, D, scale=0.1) for n in (1, 2)} | {f"a{n}": normal(E * half) for n in (1, 2)}
    weights |= {name: normal(D // 2, E * half, scale=0.1) for name in V_NAMES}
    inputs = {**routed, **weights, **{name: normal(E, D // 2) for name in B_NAMES}}
    dense, sparse = partial(_dense_vertical, keep), partial(_sparse_vertical, keep, bool(in_place))
    yield Case(f"vertical {name}", sparse, inputs, dense, learns=False)


def _dense_horizontal(keep: Keep | None, x, g1, g2, u, a, v, b) -> Tensor:
    return _horizontal(keep, linear(x, u, a).unflatten(1, (len(b), -1)), g1, g2, v, b)


def _sparse_horizontal(keep: Keep | None, in_place: bool, x, g1, g2, u, a, v, b) -> Tensor:
    return active_horizontal(x, g1, g2, u, a, v.t() if in_place else v.t().contiguous(), b, RELU2, keep)


def _dense_vertical(keep: Keep | None, x, g1, g2, u1, u2, a1, a2, **weights: Tensor) -> Tensor:
    E = len(weights["b1"])
    p1, p2 = (linear(x, u, a).unflatten(1, (E, -1)) for u, a in ((u1, a1), (u2, a2)))
    return _vertical(keep, p1, p2, g1, g2, **weights)


def _sparse_vertical(keep: Keep | None, in_place: bool, x, g1, g2, u1, u2, a1, a2, **weights: Tensor) -> Tensor:
    turned = (weights[name].t() for name in V_NAMES)
    v11, v12, v21, v22 = (v if in_place else v.contiguous() for v in turned)
    biases = (weights["b1"], weights["b2"])
    return active_vertical(x, g1, g2, (u1, a1, u2, a2), (v11, v12, v21, v22), biases, RELU2, keep)


def _softmax(threshold_H: Tensor, z: Tensor) -> Tensor:
    return thresholded_softmax(z, threshold_H)


def _with_losses(spread: Spread, threshold_H: Tensor, width_H: Tensor, z: Tensor) -> tuple[Tensor, ...]:
    width = width_H if spread == "firing" else None
    sums = route_with_losses(z, threshold_H, width_H=width, spread=spread)
    parts = (sums.g_TP, sums.mean_HE, sums.mean_max_H, sums.fired_HE, sums.share_HE)
    return tuple(part for part in parts if part is not None)


def _moments(size: tuple[int, ...], z: Tensor) -> tuple[Tensor, ...]:
    statistics = batch_statistics(z.view(size))
    return statistics.mean_H, statistics.m2_H


def _horizontal(keep: Keep | None, p: Tensor, g1: Tensor, g2: Tensor, v: Tensor, b: Tensor) -> Tensor:
    return horizontal_experts(p, g1, g2, v, b, RELU2, keep)


def _vertical(keep: Keep | None, p1: Tensor, p2: Tensor, g1: Tensor, g2: Tensor, **weights: Tensor) -> Tensor:
    v11, v12, v21, v22 = (weights[name] for name in V_NAMES)
    return vertical_experts(p1, p2, g1, g2, (v11, v12, v21, v22), (weights["b1"], weights["b2"]), RELU2, keep)


def compare(case: Case, dtype: torch.dtype) -> Row:
    """One row: the largest error among outputs and gradients, and its name."""
    exact = {name: tensor.double() for name, tensor in case.inputs.items()}
    reference = case.reference or case.run
    with environment(MONET_KERNELS="torch"):
        with torch.no_grad():
            outputs = _named(reference(**exact))
        upstream = {name: torch.randn_like(tensor) for name, tensor in outputs.items() if tensor.is_floating_point()}
        wanted = _outputs_and_gradients(reference, exact, upstream) if case.learns else outputs
    with unwritten_is_nan():
        got: dict[str, Tensor] = _outputs_and_gradients(case.run, case.inputs, upstream) if case.learns else {}
        with torch.no_grad():
            inferred = _named(case.run(**case.inputs))
    got |= {f"{name}, inference" if case.learns else name: tensor for name, tensor in inferred.items()}
    for gate in ("g1", "g2") if case.is_masked else ():
        for found in (got, wanted):
            found[f"d{gate}"] = _through_routing(found[f"d{gate}"], exact[gate])
    errors = {name: _error(tensor, wanted[name.partition(",")[0]]) for name, tensor in got.items()}
    assert errors.keys() >= wanted.keys(), f"{case.op} gives no {sorted(wanted.keys() - errors.keys())}"
    worst = max(errors, key=lambda name: errors[name])
    # JSON has no infinity
    error = errors[worst] if errors[worst] < float("inf") else None
    ok = errors[worst] <= RELATIVE_RMS[dtype]
    return {"op": case.op, "dtype": str(dtype).removeprefix("torch."), "error": error, "worst": worst, "ok": ok}


def _through_routing(dg_THE: Tensor, g_THE: Tensor) -> Tensor:
    dg_THE = dg_THE.double()
    return g_THE * (dg_THE - (g_THE * dg_THE).sum(-1, keepdim=True))


def _outputs_and_gradients(
    run: Callable[..., Any], inputs: dict[str, Tensor], upstream: dict[str, Tensor]
) -> dict[str, Tensor]:
    leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in inputs.items()}
    outputs = _named(run(**leaves))
    found = {name: tensor.detach() for name, tensor in outputs.items()}
    learned = {name: tensor for name, tensor in outputs.items() if tensor.requires_grad}
    if learned:
        torch.autograd.backward(list(learned.values()), [upstream[name].to(t.dtype) for name, t in learned.items()])
        found |= {f"d{name}": leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
    return found


def _named(result: Tensor | tuple[Tensor, ...]) -> dict[str, Tensor]:
    results = (result,) if isinstance(result, Tensor) else result
    return {f"out{number}": tensor for number, tensor in enumerate(results)}


def _error(got: Tensor, wanted: Tensor) -> float:
    if got.shape != wanted.shape or not bool(torch.isfinite(got).all()):
        return float("inf")
    return relative_rms(got, wanted)


@contextmanager
def unwritten_is_nan() -> Iterator[None]:
    """New memory is NaN inside the block."""
    settings: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled()
    warned_before = torch.is_deterministic_algorithms_warn_only_enabled()
    filled_before = settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    settings.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warned_before)
        settings.fill_uninitialized_memory = filled_before
