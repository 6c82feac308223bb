"""Cases that the tests of all implementations share: masks, logits, thresholds, layouts, dtypes, and faulty input.

`tests/kernels` runs them on plain torch and C++, `tests/interpreted` on Triton. `explicit.py` has the slow oracle.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from monet.kernels.decode import op
from monet.kernels.masked import Keep
from monet.kernels.routing.reference import BatchStatistics
from tests.kernels.explicit import Example, call_op, relu2
from tests.tolerances import assert_close

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SPREADS = ["routing", "softmax", "firing"]

# Names for `keep_of`: those for slow tests, for the layers over active keys, and all.
MASKS = ["none", "hard", "soft", "a mask a token"]
DECODE_MASKS = [*MASKS, "a soft mask a token", "no token masked"]
ALL_MASKS = [*DECODE_MASKS, "soft float64", "every token masked", "unused masks"]


def keep_of(example: Example, mask: str) -> Keep | None:
    """The mask of this name for an example; see `ALL_MASKS`."""
    T = example.T
    several_T = torch.arange(T) % 4 - 1
    return {
        "none": lambda: None,
        "hard": lambda: Keep(example.random_keep()),
        "soft": lambda: Keep(example.random_keep(soft=True)),
        "soft float64": lambda: Keep(example.random_keep(soft=True).double()),
        "a mask a token": lambda: Keep(example.random_keep(S=3), several_T),
        "a soft mask a token": lambda: Keep(example.random_keep(soft=True, S=3).double(), several_T),
        "no token masked": lambda: Keep(example.random_keep(S=2), torch.full((T,), -1)),
        "every token masked": lambda: Keep(example.random_keep(S=2), torch.arange(T) % 2),
        "unused masks": lambda: Keep(example.random_keep(S=4), torch.full((T,), 3)),
    }[mask]()


def keeps_beside_a_bad_token(example: Example) -> list[Keep | None]:
    """No mask, a mask of all four tokens but token 2, and a mask that keeps nothing."""
    nothing_EE = torch.zeros(1, example.E, example.E, dtype=torch.bool)
    return [None, Keep(example.random_keep(), torch.tensor([0, 0, -1, 0])), Keep(nothing_EE)]


def with_small_weights(example: Example) -> Example:
    """The example with weights whose sums have a small rounding error in half precision."""
    example.weights = {name: weight / 4 for name, weight in example.weights.items()}
    return example


def cast_but_gates(example: Example, dtype: torch.dtype) -> Example:
    """The example in a dtype, with float32 gates, as the router gives them."""
    gates = [g_THE.float() for g_THE in (example.g1_THE, example.g2_THE)]
    example.cast(dtype)
    example.g1_THE, example.g2_THE = gates
    return example


def leaves_of(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Copies that require gradients."""
    return tuple(tensor.detach().clone().requires_grad_() for tensor in tensors)


def name_of(shape: dict[str, Any]) -> str:
    """A short name of an example's sizes, for the id of a test."""
    return "-".join(f"{key}{value}" for key, value in shape.items())


def active_layer(example: Example, keep: Keep | None = None, activation: Any = relu2, copies: bool = False) -> Tensor:
    """The op over active keys, with output weights as views or as copies with contiguous rows."""
    weights = example.weights
    rows = {name: weight.t().contiguous() if copies else weight.t() for name, weight in weights.items()
            if name.startswith("v")}  # fmt: skip
    routing = (example.x_TD, example.g1_THE, example.g2_THE)
    if example.form == "horizontal":
        return op.active_horizontal(
            *routing, weights["u.weight"], weights["u.bias"], rows["v.weight"], weights["b"], activation, keep
        )
    first = tuple(weights[f"u{n}.{part}"] for n in (1, 2) for part in ("weight", "bias"))
    projections = tuple(rows[f"v{n}.weight"] for n in ("11", "12", "21", "22"))
    return op.active_vertical(*routing, first, projections, (weights["b1"], weights["b2"]), activation, keep)


def poison_inactive_keys(example: Example) -> None:
    """Set every weight of a key that no token uses to NaN; both sides must have such keys."""
    used = [(g_THE != 0).any(0).any(0) for g_THE in (example.g1_THE, example.g2_THE)]
    assert not (used[0].all() or used[1].all())
    side = {"u": 0, "v": 1, "b": 1, "u1": 0, "u2": 1, "v11": 0, "v12": 0, "v21": 1, "v22": 1, "b1": 0, "b2": 1}
    for name, weight in example.weights.items():
        owner = name.split(".")[0]
        columns = owner.startswith("v")
        keys = weight.unflatten(1, (example.E, -1)).transpose(0, 1) if columns else weight.unflatten(0, (example.E, -1))
        keys[~used[side[owner]]] = float("nan")


# Logits (T, H, E) of a name.
LOGITS = {
    "normal": lambda T, H, E: torch.randn(T, H, E),
    "all equal": lambda T, H, E: torch.full((T, H, E), 1.25),
    "all zero": lambda T, H, E: torch.zeros(T, H, E),
    "few values, many ties": lambda T, H, E: torch.randint(-2, 3, (T, H, E)).float(),
    "huge": lambda T, H, E: 1e4 * torch.randn(T, H, E),
    "huge and alike": lambda T, H, E: 1e4 + torch.randn(T, H, E),
    "tiny": lambda T, H, E: 1e-6 * torch.randn(T, H, E),
    "one key far above": lambda T, H, E: torch.randn(T, H, E).index_fill(2, torch.tensor([2]), 50.0),
    "one key far below": lambda T, H, E: torch.randn(T, H, E).index_fill(2, torch.tensor([2]), -50.0),
    "minus infinity": lambda T, H, E: torch.randn(T, H, E).index_fill(2, torch.tensor([0, E - 1]), -math.inf),
}
# Thresholds of three heads.
THRESHOLDS = {
    "moderate": [0.5, 0.0, -0.7],
    "nothing reaches it": [1e5, 1e6, math.inf],
    "all reach it": [-1e5, -1e8, -math.inf],
    "equal to a logit": [1.25, 0.0, 1.0],
}
# Logits (T, P) that are not contiguous.
LAYOUTS = {
    "half of a wider product": lambda T, P: torch.randn(T, 2 * P)[:, P:],
    "transposed": lambda T, P: torch.randn(P, T).T,
    "every other column": lambda T, P: torch.randn(T, 2 * P)[:, ::2],
}
BAD_ROWS = ["a NaN", "plus infinity", "all minus infinity"]


def head_values(H: int) -> tuple[Tensor, Tensor]:
    """Thresholds that some rows, all rows and no rows reach; widths."""
    threshold_H = torch.tensor([0.7, -0.2, 9.0], dtype=torch.float64)[torch.arange(H) % 3]
    return threshold_H, torch.linspace(0.3, 0.9, H, dtype=torch.float64)


def weights_of(T: int, weighted: bool) -> Tensor | None:
    """Weights of tokens that sum to one, some of them zero; None if all tokens count alike."""
    if not weighted:
        return None
    weight_T = (torch.arange(T) % 3 != 1) * (1.0 + torch.arange(T) % 4)
    return weight_T / weight_T.sum().clamp(min=1)


def with_a_bad_row(z_THE: Tensor, fault: str) -> Tensor:
    """Logits whose row of token 3 and head 1 has no softmax; see `BAD_ROWS`."""
    z_THE = z_THE.clone()
    keys, value = {
        "a NaN": (2, math.nan),
        "plus infinity": (4, math.inf),
        "all minus infinity": (slice(None), -math.inf),
    }[fault]
    z_THE[3, 1, keys] = value
    return z_THE


def moments(z_BTHE: Tensor, counted_BT: Tensor) -> BatchStatistics:
    """Count, mean and squared deviations of each head in float64, from the definitions; zeros if no token counts."""
    z_HN = z_BTHE.double()[counted_BT].transpose(0, 1).flatten(1)
    mean_H = z_HN.mean(1) if counted_BT.any() else z_HN.new_zeros(z_HN.shape[0])
    count = torch.tensor(float(z_HN.shape[1]), dtype=torch.float64)
    return BatchStatistics(count, mean_H, (z_HN - mean_H[:, None]).square().sum(1))


def routed_from_the_definition(z_THE: Tensor, threshold_H: Tensor) -> Tensor:
    """One row at a time: softmax over the keys at or above min(maximum, threshold), zero elsewhere; float64."""
    g_THE = torch.zeros(z_THE.shape, dtype=torch.float64)
    for t, h in ((t, h) for t in range(z_THE.shape[0]) for h in range(z_THE.shape[1])):
        row = z_THE[t, h].double()
        active = row >= min(row.max().item(), threshold_H[h].item())
        weights = (row[active] - row[active].max()).exp()
        g_THE[t, h, active] = weights / weights.sum()
    return g_THE


def check_compiled_step(form: str, example: Example, keep: Keep | None, activation: Any) -> None:
    """A compiled step has one graph, and the eager step's results and gradients."""
    torch._dynamo.reset()  # otherwise all cases together reach the limit of compilations of one function
    step = partial(call_op, form, activation=activation, keep=keep)
    results = []
    for run in (step, torch.compile(step, backend="aot_eager", fullgraph=True)):
        leaves = leaves_of(example.op_inputs())
        out = run(leaves)
        out.square().sum().backward()
        with torch.no_grad():
            inference = run(leaves)
        results.append((out, inference, *(leaf.grad for leaf in leaves)))
    for n, (eager, compiled) in enumerate(zip(*results, strict=True)):
        assert_close(f"result {n}", compiled, eager)


def check_compiled_step_saves_its_inputs_only(form: str, example: Example, keep: Keep | None, activation: Any) -> None:
    """Uses the partitioner that decides which tensors are saved and which are recomputed."""
    torch._dynamo.reset()
    step = torch.compile(
        partial(call_op, form, activation=activation, keep=keep), backend="aot_eager_decomp_partition", fullgraph=True
    )
    leaves = leaves_of(example.op_inputs())
    known = leaves if keep is None else (*leaves, keep.weights_SEE)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        out = step(leaves)
    own = {tensor.untyped_storage().data_ptr() for tensor in known}
    assert saved and {tensor.untyped_storage().data_ptr() for tensor in saved} <= own
    out.sum().backward()
