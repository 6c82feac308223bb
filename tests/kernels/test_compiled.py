"""The step under torch.compile has one graph, gives the eager results, and saves only the step's inputs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers.activations import ACT2FN

from monet.kernels import activations, mix_project_op
from monet.kernels.masked import Keep
from tests.kernels.explicit import DECOMPOSITIONS, Example, call_op
from tests.tolerances import assert_close

MASKS = ["none", "hard", "soft", "a mask a token"]


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def make_keep(example: Example, mask: str) -> Keep | None:
    if mask == "none":
        return None
    if mask == "a mask a token":
        return Keep(example.random_keep(S=2), torch.arange(example.T) % 3 - 1)
    return Keep(example.random_keep(soft=mask == "soft"))


def leaves_of(example: Example) -> tuple[Tensor, ...]:
    return tuple(part.detach().clone().requires_grad_() for part in example.op_inputs())


@pytest.mark.parametrize("name", ["relu2", "silu", "gelu"])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("form", DECOMPOSITIONS)
def test_one_graph_and_the_eager_numbers(form, mask, name):
    if mask != "none" and name == "gelu":
        pytest.skip("no operator supports it, so its masks are found by reading data")
    example = Example(form, T=5, E=6, M=4, D=6, H=2)
    keep, activation = make_keep(example, mask), ACT2FN[name]

    def step(inputs: tuple[Tensor, ...]) -> Tensor:
        return call_op(form, inputs, activation, keep)

    results = []
    for run in (step, torch.compile(step, backend="aot_eager", fullgraph=True)):
        leaves = leaves_of(example)
        out = run(leaves)
        out.square().sum().backward()
        with torch.no_grad():
            inference = run(leaves)
        results.append((out, inference, *(leaf.grad for leaf in leaves)))
    for n, (eager, compiled) in enumerate(zip(*results, strict=True)):
        assert_close(f"result {n}", compiled, eager)


@pytest.mark.parametrize("mask", ["none", "hard"])
@pytest.mark.parametrize("form", DECOMPOSITIONS)
def test_a_compiled_step_saves_its_inputs_only(form, mask):
    """Uses the partitioner that decides which tensors are saved and which are recomputed."""
    example = Example(form, T=16, E=8, M=4, D=6, H=2)
    keep, relu2 = make_keep(example, mask), ACT2FN["relu2"]
    step = torch.compile(
        lambda inputs: call_op(form, inputs, relu2, keep), backend="aot_eager_decomp_partition", fullgraph=True
    )
    leaves = leaves_of(example)
    own = {leaf.untyped_storage().data_ptr() for leaf in leaves}
    own |= set() if keep is None else {keep.weights_SEE.untyped_storage().data_ptr()}
    saved: set[int] = set()
    alive = []

    def pack(tensor: Tensor) -> Tensor:
        saved.add(tensor.untyped_storage().data_ptr())
        alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = step(leaves)
    assert saved and saved <= own
    out.sum().backward()


@pytest.mark.parametrize("frozen", ["gates", "weights"])
@pytest.mark.parametrize("form", DECOMPOSITIONS)
def test_what_wants_no_gradient_gets_none(form, frozen):
    example, relu2 = Example(form, T=5, E=6, M=4, D=6, H=2), ACT2FN["relu2"]
    leaves = leaves_of(example)
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
    keep = make_keep(example, mask)
    leaves = leaves_of(example)
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
