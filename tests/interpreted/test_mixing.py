"""Triton mixings compared with float64 torch: forward, all gradients, masks, odd tails."""

from __future__ import annotations

import pytest
import torch
from transformers.activations import ACT2FN

from monet.kernels import active_keys, dispatch
from monet.kernels.masked import Keep
from monet.kernels.shared import GateFacts, share
from monet.kernels.triton_mixing import LAUNCH
from tests.kernels.explicit import DECOMPOSITIONS, Example, call_op, set_sizes
from tests.tolerances import assert_close

# T, E, M, H: only tails; whole tiles; one of everything; more heads than a tile's edge.
SHAPES = [(5, 37, 6, 3), (2, 64, 32, 8), (1, 3, 2, 1), (3, 20, 4, 17)]
MASKS = ["none", "hard", "soft", "a mask a token"]


def make_keep(example: Example, mask: str) -> Keep | None:
    if mask == "none":
        return None
    if mask == "a mask a token":
        return Keep(example.random_keep(S=2), torch.arange(example.T) % 3 - 1)
    return Keep(example.random_keep(soft=mask == "soft"))


def through_routing(dg_THE: torch.Tensor, g_THE: torch.Tensor) -> torch.Tensor:
    """The gradient of the logits for a gradient of the gates, which is used for nothing else.

    Under a mask only this gradient can be compared: inactive keys get none. For a token without a mask the torch mixing
    assumes that rows of gates sum to one, which shifts a row's gradients by a constant.
    """
    g_THE, dg_THE = g_THE.detach().double(), dg_THE.double()
    return g_THE * (dg_THE - (g_THE * dg_THE).sum(-1, keepdim=True))


def run(monkeypatch, backend, form, inputs, upstream, activation, keep, lean_from):
    monkeypatch.setenv("MONET_KERNELS", backend)
    set_sizes(monkeypatch, lean_from=lean_from)
    inputs = tuple(part.clone().requires_grad_() for part in inputs)
    out = call_op(form, inputs, activation, keep)
    out.backward(upstream.to(out.dtype))
    return out, [part.grad for part in inputs]


@pytest.mark.parametrize("lean_from", [0, 1 << 60], ids=["lean", "operators"])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("form", DECOMPOSITIONS)
def test_outputs_and_gradients(form, shape, mask, lean_from, monkeypatch):
    T, E, M, H = shape
    example = Example(form, T=T, E=E, M=M, D=10, H=H, dtype=torch.float32, seed=sum(shape))
    keep = make_keep(example, mask)
    inputs = example.op_inputs()
    upstream = torch.randn(T, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    relu2 = ACT2FN["relu2"]
    out, gradients = run(monkeypatch, "triton", form, inputs, upstream, relu2, keep, lean_from)
    doubles = tuple(part.detach().double() for part in inputs)
    wanted, wanted_gradients = run(monkeypatch, "torch", form, doubles, upstream, relu2, keep, 1 << 60)
    assert_close("output", out, wanted, torch.float32)
    gates = [len(inputs) - len(example.output_weights()) - 2 + n for n in range(2)]
    for n, (got, want) in enumerate(zip(gradients, wanted_gradients, strict=True)):
        if keep is not None and n in gates:
            got, want = through_routing(got, inputs[n]), through_routing(want, inputs[n])
        assert_close(f"gradient {n}", got, want, torch.float32)


@pytest.mark.parametrize("name", ["relu", "silu", "gelu"])
@pytest.mark.parametrize("form", DECOMPOSITIONS)
def test_activations(form, name, monkeypatch):
    """ReLU and SiLU are fused; GELU is an example of those that torch applies around the kernel."""
    example = Example(form, T=3, E=10, M=4, D=6, H=2, dtype=torch.float32)
    inputs, activation = example.op_inputs(), ACT2FN[name]
    upstream = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    out, gradients = run(monkeypatch, "triton", form, inputs, upstream, activation, None, 0)
    doubles = tuple(part.detach().double() for part in inputs)
    wanted, wanted_gradients = run(monkeypatch, "torch", form, doubles, upstream, activation, None, 1 << 60)
    assert_close("output", out, wanted, torch.float32)
    for n, (got, want) in enumerate(zip(gradients, wanted_gradients, strict=True)):
        assert_close(f"gradient {n}", got, want, torch.float32)


@pytest.mark.parametrize("mask", ["none", "hard"])
@pytest.mark.parametrize("form", DECOMPOSITIONS)
def test_half_precision_with_float32_gates(form, mask, monkeypatch):
    example = Example(form, T=3, E=20, M=4, D=6, H=2, dtype=torch.float16)
    p = example.pre_activations()
    gates = tuple(g.float() for g in (example.g1_THE, example.g2_THE))
    inputs = (*p, *gates, *example.output_weights())
    keep = make_keep(example, mask)
    upstream = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    out, gradients = run(monkeypatch, "triton", form, inputs, upstream, ACT2FN["relu2"], keep, 0)
    doubles = tuple(part.detach().double() for part in inputs)
    wanted, wanted_gradients = run(monkeypatch, "torch", form, doubles, upstream, ACT2FN["relu2"], keep, 1 << 60)
    assert out.dtype == torch.float16
    assert_close("output", out, wanted)
    for n, (got, want, part) in enumerate(zip(gradients, wanted_gradients, inputs, strict=True)):
        assert got.dtype == part.dtype
        if keep is not None and len(p) <= n < len(p) + 2:
            got, want = through_routing(got, part), through_routing(want, part)
        assert_close(f"gradient {n}", got, want, torch.float16)


@pytest.mark.parametrize("form", DECOMPOSITIONS)
def test_no_tokens(form, monkeypatch):
    example = Example(form, T=0, E=5, M=4, D=6, H=2, dtype=torch.float32)
    out, gradients = run(
        monkeypatch, "triton", form, example.op_inputs(), torch.zeros(0, 6), ACT2FN["relu2"], None, 0
    )  # fmt: skip
    assert out.shape == (0, 6)
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize("form", DECOMPOSITIONS)
def test_a_mask_that_keeps_all_and_none(form, monkeypatch):
    example = Example(form, T=4, E=11, M=4, D=6, H=2, dtype=torch.float32)
    plain = example.op(activation=ACT2FN["relu2"])
    everything = example.op(Keep(torch.ones(1, 11, 11, dtype=torch.bool)), ACT2FN["relu2"])
    assert_close("all kept", everything, plain)
    nothing = example.op(Keep(torch.zeros(1, 11, 11, dtype=torch.bool)), ACT2FN["relu2"])
    assert torch.equal(nothing, torch.zeros_like(nothing))


@pytest.mark.parametrize("mask", ["hard", "a mask a token"])
@pytest.mark.parametrize("form", DECOMPOSITIONS)
def test_masks_over_many_tiles_of_active_keys(form, mask, monkeypatch):
    """Dense gates of more keys than any tile holds, so that each loop over active keys runs several times."""
    T, E = 3, 75
    example = Example(form, T=T, E=E, M=4, D=6, H=2, dense=True, dtype=torch.float32)
    keep, inputs = make_keep(example, mask), example.op_inputs()
    upstream = torch.randn(T, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    out, gradients = run(monkeypatch, "triton", form, inputs, upstream, ACT2FN["relu2"], keep, 0)
    doubles = tuple(part.detach().double() for part in inputs)
    wanted, wanted_gradients = run(monkeypatch, "torch", form, doubles, upstream, ACT2FN["relu2"], keep, 1 << 60)
    assert 4 * max(LAUNCH[kind]["block"] // 2 for kind in ("masked_mix", "masked_mix_backward")) < E
    assert_close("output", out, wanted)
    first_gate = len(example.pre_activations())
    for n, (got, want) in enumerate(zip(gradients, wanted_gradients, strict=True)):
        if first_gate <= n < first_gate + 2:
            got, want = through_routing(got, inputs[n]), through_routing(want, inputs[n])
        assert_close(f"gradient {n}", got, want, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("form", DECOMPOSITIONS)
def test_exempt_tokens_are_bitwise_as_without_masks(form, dtype, monkeypatch):
    example = Example(form, T=6, E=37, M=4, D=6, H=3, dtype=dtype)
    inputs, upstream = example.op_inputs(), torch.randn(6, 6)
    masks = Keep(example.random_keep(S=2), torch.tensor([-1, 0, -1, 1, 1, -1]))
    exempt = (masks.index_T < 0).nonzero()[:, 0]
    masked, plain = (run(monkeypatch, "triton", form, inputs, upstream, ACT2FN["relu2"], k, 0) for k in (masks, None))
    assert torch.equal(masked[0][exempt], plain[0][exempt])
    assert not torch.equal(masked[0], plain[0])
    per_token = len(inputs) - len(example.output_weights())
    for got, wanted in zip(masked[1][:per_token], plain[1][:per_token], strict=True):
        assert torch.equal(got[exempt], wanted[exempt])


@pytest.mark.parametrize("form", DECOMPOSITIONS)
def test_layers_of_a_group_share_the_lists_of_active_keys(form, monkeypatch):
    set_sizes(monkeypatch)
    example = Example(form, T=3, E=10, M=4, D=6, H=2, dtype=torch.float32)
    keep, weights = make_keep(example, "hard"), example.output_weights()
    *hidden, g1_THE, g2_THE = (part.detach().clone().requires_grad_() for part in example.op_inputs()[: -len(weights)])
    gates_BTHE = (g1_THE.view(1, *g1_THE.shape), g2_THE.view(1, *g2_THE.shape))
    shared = share(gates_BTHE, (GateFacts(), GateFacts()))
    made = []
    kernel = active_keys.active_keys_kernel

    class Counted:
        def __getitem__(self, grid):
            made.append(grid)
            return kernel[grid]

    monkeypatch.setattr(active_keys, "active_keys_kernel", Counted())

    def layer() -> torch.Tensor:
        gates = (g_BTHE.flatten(0, 1) for g_BTHE in gates_BTHE)
        return call_op(form, (*hidden, *gates, *weights), ACT2FN["relu2"], keep, shared)

    sum(layer() for _ in range(4)).square().sum().backward()
    assert made == [(3,)] * 2, "forward and backward of four layers"
    with torch.no_grad():
        layer()
        assert made == [(3,)] * 4, "the last backward freed the lists"
        g1_THE.mul_(torch.rand(g1_THE.shape) > 0.5)
        changed = layer()
        assert made == [(3,)] * 5, "gates that were written to are listed again"
        monkeypatch.setenv("MONET_KERNELS", "torch")
        assert_close("after the change", changed, layer())


@pytest.mark.parametrize("form", DECOMPOSITIONS)
def test_operators_fit_torch_compile(form):
    """Schema, fake kernel and autograd registration agree with the operator."""
    dispatch.resolve(f"{form}_mixing", torch.zeros(1))
    example = Example(form, T=2, E=6, M=4, D=6, H=2, dtype=torch.float32)
    hidden = [p.detach().requires_grad_() for p in example.pre_activations()]
    gates = [g.detach().requires_grad_() for g in (example.g1_THE, example.g2_THE)]
    operator = getattr(torch.ops.monet, f"{form}_mixing").default
    backward = getattr(torch.ops.monet, f"{form}_mixing_backward").default
    masks = Keep(example.random_keep(S=2), torch.tensor([1, -1]))
    for keep in ((None, None), (example.random_keep(), None), tuple(masks)):
        torch.library.opcheck(operator, (hidden, *gates, 1, *keep))
        plain = [p.detach() for p in hidden], *(g.detach() for g in gates)
        dmixed = [torch.randn_like(x) for x in operator(*plain, 1, *keep)]
        torch.library.opcheck(backward, (*plain, 1, *keep, dmixed))


@pytest.mark.parametrize("mask", ["none", "a mask a token"])
@pytest.mark.parametrize("form", DECOMPOSITIONS)
def test_compiles_without_a_graph_break(form, mask):
    example = Example(form, T=4, E=6, M=4, D=6, H=2, dtype=torch.float32)
    keep, relu2 = make_keep(example, mask), ACT2FN["relu2"]

    def step(inputs):
        return call_op(form, inputs, relu2, keep)

    results = []
    for run_step in (step, torch.compile(step, backend="aot_eager", fullgraph=True)):
        inputs = tuple(part.detach().clone().requires_grad_() for part in example.op_inputs())
        out = run_step(inputs)
        out.square().sum().backward()
        results.append((out, *(part.grad for part in inputs)))
    for n, (eager, compiled) in enumerate(zip(*results, strict=True)):
        assert_close(f"result {n}", compiled, eager)


@pytest.mark.parametrize("mask", ["none", "hard"])
@pytest.mark.parametrize("form", DECOMPOSITIONS)
def test_a_compiled_step_saves_its_inputs_only(form, mask):
    """Uses the partitioner that decides which tensors are saved and which are recomputed."""
    example = Example(form, T=4, E=6, M=4, D=6, H=2, dtype=torch.float32)
    keep, relu2 = make_keep(example, mask), ACT2FN["relu2"]
    step = torch.compile(
        lambda inputs: call_op(form, inputs, relu2, keep), backend="aot_eager_decomp_partition", fullgraph=True
    )
    inputs = tuple(part.detach().clone().requires_grad_() for part in example.op_inputs())
    known = inputs if keep is None else (*inputs, keep.weights_SEE)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        out = step(inputs)
    own = {tensor.untyped_storage().data_ptr() for tensor in known}
    assert saved and {tensor.untyped_storage().data_ptr() for tensor in saved} <= own
    out.sum().backward()


@pytest.mark.parametrize("name", ["relu2", "relu", "silu"])
@pytest.mark.parametrize("form", DECOMPOSITIONS)
def test_not_a_number_is_handed_on(form, name):
    """A diverging model must not look healthy: on a GPU maximum(nan, 0) is 0 by default."""
    example = Example(form, T=3, E=10, M=4, D=6, H=2, dense=True, dtype=torch.float32)
    inputs = list(example.op_inputs())
    inputs[0] = inputs[0].clone()
    inputs[0][1, 2, 0] = float("nan")
    out = call_op(form, tuple(inputs), ACT2FN[name])
    assert torch.isnan(out[1]).any()
    assert torch.isfinite(out[[0, 2]]).all()


@pytest.mark.parametrize("form", DECOMPOSITIONS)
def test_a_watched_activation_is_called(form):
    example, relu2 = Example(form, T=3, E=10, M=4, D=6, H=2, dtype=torch.float32), ACT2FN["relu2"]
    handle = relu2.register_forward_hook(lambda module, args, result: result * 0)
    try:
        hooked = example.op(activation=relu2)
    finally:
        handle.remove()
    silent = example.op(activation=lambda x: x * 0)
    assert_close("hooked", hooked, silent)


def test_bfloat16_is_refused_where_the_interpreter_has_it_wrong(monkeypatch):
    monkeypatch.setenv("MONET_KERNELS", "triton")
    with pytest.raises(ValueError, match="interpreter computes products of bfloat16 wrongly"):
        dispatch.resolve("horizontal_mixing", torch.zeros(1, dtype=torch.bfloat16))
