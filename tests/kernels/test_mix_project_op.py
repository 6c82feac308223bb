"""The step under torch.compile has one graph, gives the eager results, and saves only the step's inputs."""

from __future__ import annotations

import pytest
import torch
from transformers.activations import ACT2FN

from monet.kernels import activations, mix_project_op
from tests.kernels.cases import (
    MASKS,
    check_compiled_step,
    check_compiled_step_saves_its_inputs_only,
    keep_of,
    leaves_of,
)
from tests.kernels.explicit import DECOMPOSITIONS, Example, call_op
from tests.tolerances import assert_close


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("name", ["relu2", "silu", "gelu"])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("form", DECOMPOSITIONS)
def test_one_graph_and_the_eager_numbers(form, mask, name):
    if mask != "none" and name == "gelu":
        pytest.skip("no operator supports it, so its masks are found by reading data")
    example = Example(form, T=5, E=6, M=4, D=6, H=2)
    check_compiled_step(form, example, keep_of(example, mask), ACT2FN[name])


@pytest.mark.parametrize("mask", ["none", "hard"])
@pytest.mark.parametrize("form", DECOMPOSITIONS)
def test_a_compiled_step_saves_its_inputs_only(form, mask):
    example = Example(form, T=16, E=8, M=4, D=6, H=2)
    check_compiled_step_saves_its_inputs_only(form, example, keep_of(example, mask), ACT2FN["relu2"])


@pytest.mark.parametrize("frozen", ["gates", "weights"])
@pytest.mark.parametrize("form", DECOMPOSITIONS)
def test_what_wants_no_gradient_gets_none(form, frozen):
    example, relu2 = Example(form, T=5, E=6, M=4, D=6, H=2), ACT2FN["relu2"]
    leaves = leaves_of(example.op_inputs())
    first_gate = len(example.pre_activations())
    still = leaves[first_gate : first_gate + 2] if frozen == "gates" else leaves[first_gate + 2 :]
    for leaf in still:
        leaf.requires_grad_(False)
    eager = torch.autograd.grad(
        call_op(form, leaves, relu2).square().sum(), [leaf for leaf in leaves if leaf.requires_grad]
    )
    torch.compile(lambda inputs: call_op(form, inputs, relu2), backend="aot_eager", fullgraph=True)(
        leaves
    ).square().sum().backward()
    assert all(leaf.grad is None for leaf in still)
    for n, (leaf, wanted) in enumerate(zip([leaf for leaf in leaves if leaf.requires_grad], eager, strict=True)):
        assert_close(f"gradient {n}", leaf.grad, wanted)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("form", DECOMPOSITIONS)
def test_operators_obey_the_rules_of_custom_operators(form, mask):
    """Checks schema, fake kernels, autograd and dynamic shapes with torch's own checks."""
    example = Example(form, T=5, E=6, M=4, D=6, H=2)
    keep = keep_of(example, mask)
    leaves = leaves_of(example.op_inputs())
    inputs, weights = leaves[: -len(example.output_weights())], leaves[-len(example.output_weights()) :]
    half = 3 if form == "vertical" else 6
    spans = [0, 6, 0, 6] if form == "horizontal" else [0, half] * 2 + [half, 6] * 2 + [0, half, half, 6]
    out_in = [True, False] if form == "horizontal" else [True] * 4 + [False] * 2
    step = (f"{form}_mixing", spans, out_in, 1, *((None, None) if keep is None else keep))
    assert mix_project_op, "its import registers the operators"
    ops = torch.ops.monet
    torch.library.opcheck(ops.mix_project.default, (list(inputs), list(weights), *step))
    plain = [tensor.detach() for tensor in inputs], [tensor.detach() for tensor in weights]
    dout = torch.randn(5, 6, dtype=torch.float64)
    torch.library.opcheck(ops.mix_project_inputs.default, (dout, *plain, *step))
    wanted = list(range(len(weights)))[::-1]
    torch.library.opcheck(ops.mix_project_weights.default, (dout, *plain, wanted, *step))


def test_an_activation_is_known_by_its_class_and_not_its_name():
    class SiLU(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    assert activations.number_of(SiLU()) is None
    for name in ("relu", "relu2", "silu"):
        module = ACT2FN[name]
        number = activations.number_of(module)
        assert number is not None
        x = torch.randn(50)
        assert torch.equal(activations.by_number(number)(x), module(x))
    watched = torch.nn.SiLU()
    watched.register_full_backward_hook(lambda *_: None)
    assert activations.number_of(watched) is None
