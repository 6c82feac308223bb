"""Gradients compared with the loop over experts, plain autograd through the reference, and finite differences."""

from __future__ import annotations

import pytest
import torch

from monet.kernels.hde import reference as hde
from monet.kernels.masked import Keep
from monet.kernels.routing.op import thresholded_softmax
from monet.kernels.vde import reference as vde
from tests.kernels.cases import MASKS, keep_of, leaves_of
from tests.kernels.explicit import DECOMPOSITIONS, Example, call_op, keep_of_tokens, loop_over_experts, relu2, set_sizes
from tests.tolerances import assert_close, relative_rms

pytestmark = pytest.mark.parametrize("form", DECOMPOSITIONS)


@pytest.fixture(autouse=True, params=[0, 1 << 30], ids=["lean", "autograd"])
def both_paths(request, monkeypatch):
    """Small batches use ordinary autograd, others the step with a lean backward: test each case with both."""
    set_sizes(monkeypatch, lean_from=request.param)


NAMES = {
    "horizontal": ("p", "g1", "g2", "v", "b"),
    "vertical": ("p1", "p2", "g1", "g2", "v11", "v12", "v21", "v22", "b1", "b2"),
}


def plain(form: str, inputs: tuple[torch.Tensor, ...], keep: Keep | None) -> torch.Tensor:
    """The reference mixing and its projections, written for ordinary autograd."""
    if form == "horizontal":
        p, g1, g2, v, b = inputs
        y, c = hde.mix(relu2(p), g1, g2, keep)
        return y.flatten(1) @ v.T + c @ b
    p1, p2, g1, g2, v11, v12, v21, v22, b1, b2 = inputs
    y11, y12, y21, y22, r, c = vde.mix(relu2(p1), relu2(p2), g1, g2, keep)
    left = y11.flatten(1) @ v11.T + y12.flatten(1) @ v12.T + r @ b1
    return torch.cat([left, y21.flatten(1) @ v21.T + y22.flatten(1) @ v22.T + c @ b2], dim=1)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("dense", [False, True], ids=["sparse g", "dense g"])
def test_lean_autograd_equals_plain_autograd(form, dense, mask):
    example = Example(form, dense=dense)
    keep = keep_of(example, mask)
    lean_leaves, plain_leaves = leaves_of(example.op_inputs()), leaves_of(example.op_inputs())
    lean = call_op(form, lean_leaves, keep=keep)
    if keep is not None and keep.index_T is not None:
        exempt = keep.index_T < 0
        masked = Keep(keep.weights_SEE, keep.index_T.clamp(min=0))
        written = torch.where(exempt[:, None], plain(form, plain_leaves, None), plain(form, plain_leaves, masked))
    else:
        written = plain(form, plain_leaves, keep)
    assert relative_rms(lean, written) < 1e-13
    upstream = torch.randn(lean.shape, dtype=torch.float64)
    ours = torch.autograd.grad(lean, lean_leaves, upstream)
    theirs = torch.autograd.grad(written, plain_leaves, upstream)
    for name, got, wanted in zip(NAMES[form], ours, theirs, strict=True):
        assert relative_rms(got, wanted) < 1e-13, name


@pytest.mark.parametrize("mask", ["hard", "soft", "a mask a token"])
@pytest.mark.parametrize("dense", [False, True], ids=["sparse g", "dense g"])
def test_gradients_equal_those_of_the_loop(form, dense, mask):
    """With a mask the op and the loop are the same function of the routing too, zeros of sparse routing included."""
    example = Example(form, dense=dense)
    keep = keep_of(example, mask)
    names = [*example.weights, "x", "g1", "g2"]
    results = []
    for through_op in (True, False):
        inputs = leaves_of((*example.weights.values(), example.x_TD, example.g1_THE, example.g2_THE))
        example.weights = dict(zip(example.weights, inputs, strict=False))
        example.x_TD, example.g1_THE, example.g2_THE = inputs[-3:]
        if through_op:
            out = example.op(keep)
        else:
            out = loop_over_experts(form, example.weights, *inputs[-3:], keep_of_tokens(keep, example.T))
        kept = torch.ones(example.T, dtype=torch.bool) if keep.index_T is None else keep.index_T >= 0
        upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
        # unmasked tokens assume that rows sum to one, which is another function of g: their routing gradient differs
        gradients = torch.autograd.grad(out, inputs, upstream)
        results.append([*gradients[:-2], *(gradient[kept] for gradient in gradients[-2:])])
    for name, got, wanted in zip(names, *results, strict=True):
        assert relative_rms(got, wanted) < 1e-13, name
    if not dense:
        inactive = (example.g1_THE == 0)[kept]
        assert results[0][-2][inactive].abs().max() > 0.1, "the derivative at inactive keys is compared as well"


@pytest.mark.parametrize("mask", MASKS)
def test_unmasked_gradient_along_the_simplex(form, mask):
    """Rows of g only change with their sum fixed; in these directions op and loop have the same derivative."""
    example = Example(form)
    keep = keep_of(example, mask)
    keep_TEE = None if keep is None else keep_of_tokens(keep, example.T)
    logits = torch.randn(2, example.T, example.H, example.E, dtype=torch.float64)
    active = torch.stack([example.g1_THE, example.g2_THE]) > 0
    gradients = []
    for through_op in (True, False):
        leaf = logits.clone().requires_grad_()
        example.g1_THE, example.g2_THE = leaf.masked_fill(~active, -torch.inf).softmax(-1)
        out = example.op(keep) if through_op else example.loop(keep_TEE)
        upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
        gradients.extend(torch.autograd.grad(out, leaf, upstream))
    assert relative_rms(*gradients) < 1e-12


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("activation", [relu2, torch.nn.functional.gelu], ids=["relu2", "gelu"])
def test_gradcheck(form, activation, mask):
    example = Example(form, T=3, E=3, M=2, D=4, dense=True)
    keep = keep_of(example, mask)
    inputs = leaves_of(example.op_inputs())
    assert torch.autograd.gradcheck(lambda *parts: call_op(form, parts, activation, keep), inputs)


@pytest.mark.parametrize("mask", ["none", "a mask a token"])
def test_gradcheck_from_logits_with_exact_zeros(form, mask):
    """Checks routing and mixing together: logits -> sparse probabilities -> output."""
    example = Example(form, T=2, E=4, M=2, D=2)
    keep = keep_of(example, mask)
    hidden, outputs = example.pre_activations(), example.output_weights()
    threshold_H = torch.tensor([0.3, -0.2], dtype=torch.float64)
    z1_TP, z2_TP = (2 * torch.randn(2, 2, 2 * 4, dtype=torch.float64)).unbind()

    def routed(z1: torch.Tensor, z2: torch.Tensor) -> torch.Tensor:
        g1, g2 = (thresholded_softmax(z, threshold_H).view(2, 2, 4) for z in (z1, z2))
        return call_op(form, (*hidden, g1, g2, *outputs), keep=keep)

    assert (thresholded_softmax(z1_TP, threshold_H) == 0).any()
    assert torch.autograd.gradcheck(routed, (z1_TP.requires_grad_(), z2_TP.requires_grad_()))


@pytest.mark.parametrize("mask", MASKS)
def test_gradcheck_at_exact_zeros_of_the_routing(form, mask):
    example = Example(form, T=3, E=3, M=2, D=4)
    keep = keep_of(example, mask)
    assert (example.g1_THE == 0).any()
    inputs = leaves_of(example.op_inputs())
    assert torch.autograd.gradcheck(lambda *parts: call_op(form, parts, keep=keep), inputs)


@pytest.mark.parametrize("mask", MASKS)
def test_only_wanted_gradients_are_returned(form, mask):
    """With a frozen router, frozen experts, or both, the other gradients do not change."""
    example = Example(form)
    keep = keep_of(example, mask)
    everything = leaves_of(example.op_inputs())
    upstream = torch.randn(example.T, example.D, dtype=torch.float64)
    wanted = torch.autograd.grad(call_op(form, everything, keep=keep), everything, upstream)
    for chosen in range(len(everything)):
        parts = [part.detach().requires_grad_(n == chosen) for n, part in enumerate(everything)]
        call_op(form, tuple(parts), keep=keep).backward(upstream)
        for n, part in enumerate(parts):
            assert (part.grad is None) == (n != chosen)
        assert relative_rms(parts[chosen].grad, wanted[chosen]) < 1e-14, NAMES[form][chosen]


def test_low_precision_gradients_have_the_dtype_of_their_input(form):
    example = Example(form, T=9, dtype=torch.float32)
    inputs = leaves_of(example.op_inputs())
    num_hidden = len(example.pre_activations())
    hidden = [part.detach().bfloat16().requires_grad_() for part in inputs[:num_hidden]]
    parts = (*hidden, *inputs[num_hidden:])
    call_op(form, parts).square().sum().backward()
    for name, part in zip(NAMES[form], parts, strict=True):
        assert part.grad is not None and part.grad.dtype == part.dtype, name
        assert part.grad.isfinite().all() and part.grad.any(), name


def test_second_derivatives_are_refused_where_they_would_be_wrong(form, monkeypatch):
    set_sizes(monkeypatch)
    example = Example(form, T=2)
    inputs = leaves_of(example.op_inputs())
    (gradient,) = torch.autograd.grad(call_op(form, inputs).square().sum(), inputs[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_an_activation_that_learns_gets_its_gradient_at_any_size(form, monkeypatch):
    set_sizes(monkeypatch)
    activation = torch.nn.PReLU().double()
    example = Example(form)
    example.op(activation=activation).sum().backward()
    assert activation.weight.grad is not None
    assert activation.weight.grad.abs() > 0


def test_a_mask_changed_before_backward_is_noticed(form, monkeypatch):
    set_sizes(monkeypatch)
    example = Example(form)
    keep = Keep(example.random_keep())
    inputs = tuple(part.requires_grad_() for part in example.op_inputs())
    out = call_op(form, inputs, keep=keep)
    keep.weights_SEE.logical_not_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_the_output_may_be_changed_in_place(form, monkeypatch):
    set_sizes(monkeypatch)
    gradients = []
    for factor in (1.0, 2.0):
        inputs = tuple(part.detach().requires_grad_() for part in Example(form).op_inputs())
        out = call_op(form, inputs)
        out.mul_(factor)
        out.sum().backward()
        gradients.append(inputs[0].grad)
    assert_close("gradient", gradients[1], 2 * gradients[0])


@pytest.mark.parametrize("chunk", [None, 40], ids=["one chunk", "chunks"])
def test_a_gradient_of_one_weight_leaves_nothing_for_the_next_backward(form, chunk, monkeypatch):
    example = Example(form, T=13)
    set_sizes(monkeypatch, chunk=chunk)
    leaves = [tensor.detach().requires_grad_() for tensor in example.op_inputs()]
    loss = call_op(form, tuple(leaves)).square().sum()
    whole = torch.autograd.grad(loss, leaves, retain_graph=True)
    for n in (-1, -2):
        (one,) = torch.autograd.grad(loss, leaves[n : n + 1 or None], retain_graph=True)
        assert torch.equal(one, whole[n])
    for first, second in zip(whole, torch.autograd.grad(loss, leaves), strict=True):
        assert torch.equal(first, second)
