"""Triton mixings compared with float64 torch: forward, all gradients, masks, odd tails."""

from __future__ import annotations

import pytest
import torch
from transformers.activations import ACT2FN

from monet.kernels import active_keys, dispatch
from monet.kernels.masked import Keep
from monet.kernels.shared import GateFacts, share
from monet.kernels.triton_mixing import LAUNCH
from tests.kernels.cases import (
    MASKS,
    cast_but_gates,
    check_compiled_step,
    check_compiled_step_saves_its_inputs_only,
    keep_of,
    leaves_of,
)
from tests.kernels.explicit import DECOMPOSITIONS, Example, call_op, set_sizes
from tests.marks import nightly
from tests.tolerances import assert_close

# T, E, M, H: only tails; whole tiles; one of everything; more heads than a tile's edge.
SHAPES = [(5, 37, 6, 3), (2, 64, 32, 8), (1, 3, 2, 1), (3, 20, 4, 17)]


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
    inputs = leaves_of(inputs)
    out = call_op(form, inputs, activation, keep)
    out.backward(upstream.to(out.dtype))
    return out, [part.grad for part in inputs]


def compare(monkeypatch, example, inputs, activation, keep=None, lean_from=0):
    """Output and gradients of Triton's step against torch's in float64, with the dtypes of the inputs."""
    T, hidden = example.T, len(example.pre_activations())
    upstream = torch.randn(T, example.D, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    out, gradients = run(monkeypatch, "triton", example.form, inputs, upstream, activation, keep, lean_from)
    doubles = tuple(part.detach().double() for part in inputs)
    wanted, wanted_gradients = run(monkeypatch, "torch", example.form, doubles, upstream, activation, keep, 1 << 60)
    assert out.dtype == inputs[0].dtype
    assert_close("output", out, wanted)
    for n, (got, want, part) in enumerate(zip(gradients, wanted_gradients, inputs, strict=True)):
        assert got.dtype == part.dtype
        if keep is not None and hidden <= n < hidden + 2:
            got, want = through_routing(got, part), through_routing(want, part)
        assert_close(f"gradient {n}", got, want, out.dtype)


@pytest.mark.parametrize("lean_from", [0, 1 << 60], ids=["lean", "operators"])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("form", DECOMPOSITIONS)
def test_outputs_and_gradients(form, shape, mask, lean_from, monkeypatch):
    T, E, M, H = shape
    example = Example(form, T=T, E=E, M=M, D=10, H=H, dtype=torch.float32, seed=sum(shape))
    compare(monkeypatch, example, example.op_inputs(), ACT2FN["relu2"], keep_of(example, mask), lean_from)


@pytest.mark.parametrize("name", ["relu", "silu", "gelu"])
@pytest.mark.parametrize("form", DECOMPOSITIONS)
def test_activations(form, name, monkeypatch):
    """ReLU and SiLU are fused; GELU is an example of those that torch applies around the kernel."""
    example = Example(form, T=3, E=10, M=4, D=6, H=2, dtype=torch.float32)
    compare(monkeypatch, example, example.op_inputs(), ACT2FN[name])


@pytest.mark.parametrize("mask", ["none", "hard"])
@pytest.mark.parametrize("form", DECOMPOSITIONS)
def test_half_precision_with_float32_gates(form, mask, monkeypatch):
    example = cast_but_gates(Example(form, T=3, E=20, M=4, D=6, H=2), torch.float16)
    compare(monkeypatch, example, example.op_inputs(), ACT2FN["relu2"], keep_of(example, mask))


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


@pytest.mark.parametrize(
    ("form", "mask"),
    [("horizontal", "hard"), ("vertical", "a mask a token"), nightly("horizontal", "a mask a token"),
     nightly("vertical", "hard")],
)  # fmt: skip
def test_masks_over_many_tiles_of_active_keys(form, mask, monkeypatch):
    """Dense gates of more keys than any tile holds, so that each loop over active keys runs several times."""
    example = Example(form, T=3, E=75, M=4, D=6, H=2, dense=True, dtype=torch.float32)
    assert 4 * max(LAUNCH[kind]["block"] // 2 for kind in ("masked_mix", "masked_mix_backward")) < example.E
    compare(monkeypatch, example, example.op_inputs(), ACT2FN["relu2"], keep_of(example, mask))


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
def test_layers_of_a_group_share_the_lists_of_active_keys(form, monkeypatch, count_launches):
    set_sizes(monkeypatch)
    example = Example(form, T=3, E=10, M=4, D=6, H=2, dtype=torch.float32)
    keep, weights = keep_of(example, "hard"), example.output_weights()
    *hidden, g1_THE, g2_THE = leaves_of(example.op_inputs()[: -len(weights)])
    gates_BTHE = (g1_THE.view(1, *g1_THE.shape), g2_THE.view(1, *g2_THE.shape))
    shared = share(gates_BTHE, (GateFacts(), GateFacts()))
    made = count_launches(active_keys, "active_keys_kernel")

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
    check_compiled_step(form, example, keep_of(example, mask), ACT2FN["relu2"])


@pytest.mark.parametrize("mask", ["none", "hard"])
@pytest.mark.parametrize("form", DECOMPOSITIONS)
def test_a_compiled_step_saves_its_inputs_only(form, mask):
    example = Example(form, T=4, E=6, M=4, D=6, H=2, dtype=torch.float32)
    check_compiled_step_saves_its_inputs_only(form, example, keep_of(example, mask), ACT2FN["relu2"])


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
