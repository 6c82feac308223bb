"""The mixing ops compared with a loop over all experts in float64, and the laws of masks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from monet.kernels.masked import Keep
from tests.kernels.cases import ALL_MASKS, DTYPES, keep_of, with_small_weights
from tests.kernels.explicit import DECOMPOSITIONS, Example, call_op, keep_of_tokens, relu2
from tests.tolerances import RELATIVE_RMS, relative_rms

pytestmark = pytest.mark.parametrize("form", DECOMPOSITIONS)

# float64 sums of up to a few hundred terms in another order
EXACT = 1e-13


@pytest.mark.parametrize("dense", [False, True], ids=["sparse g", "dense g"])
@pytest.mark.parametrize("mask", ALL_MASKS)
@pytest.mark.parametrize(("M", "T"), [(4, 7), (2, 1), (2, 3)], ids=["M4-T7", "M2-T1", "M2-T3"])
def test_op_equals_the_loop(form, M, T, mask, dense):
    example = Example(form, M=M, T=T, dense=dense)
    keep = keep_of(example, mask)
    wanted = example.loop(None if keep is None else keep_of_tokens(keep, T))
    for grad in (False, True):
        inputs = tuple(part.requires_grad_(grad) for part in example.op_inputs())
        assert relative_rms(call_op(form, inputs, keep=keep), wanted) < EXACT, f"requires_grad={grad}"


@pytest.mark.parametrize(
    "activation", [F.silu, F.gelu, torch.tanh, lambda p: p], ids=["silu", "gelu", "tanh", "linear"]
)
def test_other_activations(form, activation):
    example = Example(form)
    keep = Keep(example.random_keep())
    assert relative_rms(example.op(activation=activation), example.loop(activation=activation)) < EXACT
    wanted = example.loop(keep_of_tokens(keep, example.T), activation)
    assert relative_rms(example.op(keep, activation), wanted) < EXACT


def test_the_comparison_has_teeth(form):
    """The tests in this file detect swapped keys, a dropped bias and a transposed mask."""
    example = Example(form)
    keep = Keep(example.random_keep())
    good = example.op(keep)
    p = example.pre_activations()
    swapped = call_op(form, (*p, example.g2_THE, example.g1_THE, *example.output_weights()), keep=keep)
    transposed = example.op(Keep(keep.weights_SEE.transpose(1, 2).contiguous()))
    example.weights = {name: 0 * w if name in ("b", "b1", "b2") else w for name, w in example.weights.items()}
    for wrong in (swapped, transposed, example.op(keep)):
        assert relative_rms(wrong, good) > 1e-2


def test_nothing_kept_is_exactly_zero(form):
    example = Example(form)
    nothing = torch.zeros(1, example.E, example.E, dtype=torch.bool)
    for keep in (Keep(nothing), Keep(nothing.float()), Keep(nothing, torch.zeros(example.T, dtype=torch.int64))):
        assert torch.equal(example.op(keep), torch.zeros_like(example.x_TD))


def test_everything_kept_equals_no_mask(form):
    example = Example(form)
    everything = torch.ones(1, example.E, example.E, dtype=torch.bool)
    assert relative_rms(example.op(Keep(everything)), example.op()) < EXACT
    assert relative_rms(example.op(Keep(everything.float())), example.op()) < EXACT


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_a_mask_and_its_complement_sum_to_all(form, soft):
    example = Example(form)
    keep = example.random_keep(soft)
    rest = 1 - keep.double() if soft else ~keep
    total = example.op(Keep(keep.double() if soft else keep)) + example.op(Keep(rest))
    assert relative_rms(total, example.op()) < EXACT


def test_attenuation_is_linear_in_the_keep_weight(form):
    example = Example(form)
    first, second = (example.random_keep(soft=True, seed=seed).double() for seed in (1, 2))
    mean = (example.op(Keep(first)) + example.op(Keep(second))) / 2
    assert relative_rms(example.op(Keep((first + second) / 2)), mean) < EXACT


def test_rank_one_mask_equals_masked_routing(form):
    """Removing rows and columns equals zeroing g1 and g2 in the loop, output biases included."""
    example = Example(form)
    rows, columns = (torch.rand(2, example.E, generator=torch.Generator().manual_seed(3)) > 0.4).double()
    masked = example.op(Keep((rows[:, None] * columns).bool()[None]))
    example.g1_THE, example.g2_THE = example.g1_THE * rows, example.g2_THE * columns
    assert relative_rms(masked, example.loop()) < EXACT
    assert masked.abs().max() > 0.1


def test_keys_have_no_order(form):
    """Reordering first and second keys everywhere, mask included, does not change the result."""
    example = Example(form)
    keep = example.random_keep(soft=True)
    before = example.op(Keep(keep))
    first, second = torch.randperm(example.E), torch.randperm(example.E)
    example.g1_THE, example.g2_THE = example.g1_THE[..., first], example.g2_THE[..., second]
    order = {
        "u": first,
        "v": second,
        "u1": first,
        "u2": second,
        "v11": first,
        "v12": first,
        "v21": second,
        "v22": second,
    }
    for name, weight in example.weights.items():
        owner = name.split(".")[0]
        if name.startswith("b"):
            example.weights[name] = weight[first if name == "b1" else second]
        elif owner.startswith("u"):
            example.weights[name] = weight.unflatten(0, (example.E, -1))[order[owner]].flatten(0, 1)
        else:
            example.weights[name] = weight.unflatten(1, (example.E, -1))[:, order[owner]].flatten(1)
    after = example.op(Keep(keep[:, first][:, :, second]))
    assert relative_rms(after, before) < EXACT


def test_exempt_tokens_are_bitwise_unmasked(form):
    example = Example(form, T=9, dtype=torch.float32)
    index_T = torch.tensor([0, -1, -1, 1, 0, -1, 1, 1, -1])
    got = example.op(Keep(example.random_keep(S=2), index_T))
    exempt = index_T < 0
    assert torch.equal(got[exempt], example.op()[exempt])
    assert relative_rms(got[~exempt], example.op()[~exempt]) > 0.1


def test_tokens_do_not_see_each_other(form):
    example = Example(form, T=6)
    keep = Keep(example.random_keep(S=2), torch.tensor([0, 1, -1, 1, 0, -1]))
    together = example.op(keep)
    inputs = example.op_inputs()
    num_token_inputs = len(inputs) - len(example.output_weights())
    for t in range(example.T):
        one = tuple(part[t : t + 1] for part in inputs[:num_token_inputs]) + inputs[num_token_inputs:]
        assert relative_rms(call_op(form, one, keep=keep.at(slice(t, t + 1)))[0], together[t]) < EXACT


@pytest.mark.parametrize("mask", ["none", "hard", "a mask a token"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_lower_precision(form, dtype, mask):
    example = Example(form, T=33, E=8, H=4, D=16)
    with_small_weights(example)
    keep = keep_of(example, mask)
    example.cast(dtype)
    got = example.op(keep)
    assert got.dtype == dtype
    exact = Example(form, T=33, E=8, H=4, D=16)
    exact.x_TD, exact.g1_THE, exact.g2_THE = (part.double() for part in (example.x_TD, example.g1_THE, example.g2_THE))
    exact.weights = {name: weight.double() for name, weight in example.weights.items()}
    # the routing's row sums are rounded to one part in 2^8 in the input, not by the op
    limit = RELATIVE_RMS[dtype] if dtype == torch.float32 else 4 * RELATIVE_RMS[dtype]
    assert got.isfinite().all()
    assert relative_rms(got, exact.op(keep)) < limit


def test_routing_and_weights_may_have_another_dtype(form):
    """Under autocast the hidden units are bfloat16 while routing and parameters stay float32."""
    example = Example(form, T=17, dtype=torch.float32)
    inputs = example.op_inputs()
    num_hidden = len(example.pre_activations())
    mixed = (*(part.bfloat16() for part in inputs[:num_hidden]), *inputs[num_hidden:])
    low = tuple(part.bfloat16() for part in inputs)
    got = call_op(form, mixed)
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, call_op(form, low))


@pytest.mark.parametrize("masked", [False, True])
def test_no_tokens(form, masked):
    example = Example(form, T=0)
    inputs = tuple(part.requires_grad_() for part in example.op_inputs())
    keep = Keep(example.random_keep(S=2), torch.zeros(0, dtype=torch.int64)) if masked else None
    out = call_op(form, inputs, keep=keep)
    assert out.shape == (0, example.D)
    gradients = torch.autograd.grad(out.sum(), inputs, allow_unused=True)
    assert all(gradient is None or gradient.eq(0).all() for gradient in gradients)


@pytest.mark.parametrize("masked", [False, True])
def test_memory_layout_does_not_matter(form, masked):
    example = Example(form, T=5)
    keep = Keep(example.random_keep()) if masked else None
    inputs = example.op_inputs()
    strided = tuple(torch.stack([part, part.flip(0)], -1)[..., 0] for part in inputs)
    transposed = tuple(part.transpose(0, -1).contiguous().transpose(0, -1) for part in inputs)
    assert not any(part.is_contiguous() for part in strided)
    expanded_keep = Keep(example.random_keep()[0].T.contiguous().T[None]) if masked else None
    for layout in (strided, transposed):
        leaves = [part.detach().requires_grad_() for part in layout]
        plain = [part.detach().clone().requires_grad_() for part in inputs]
        upstream = torch.randn(5, example.D, dtype=torch.float64)
        got, wanted = call_op(form, tuple(leaves), keep=expanded_keep), call_op(form, tuple(plain), keep=keep)
        assert relative_rms(got, wanted) < EXACT
        for ours, theirs in zip(
            torch.autograd.grad(got, leaves, upstream), torch.autograd.grad(wanted, plain, upstream), strict=True
        ):
            assert relative_rms(ours, theirs) < EXACT


def test_inputs_are_left_alone(form):
    example = Example(form)
    inputs = tuple(part.requires_grad_() for part in example.op_inputs())
    before = [part.detach().clone() for part in inputs]
    call_op(form, inputs, keep=Keep(example.random_keep())).sum().backward()
    call_op(form, inputs, relu2).sum().backward()
    assert all(torch.equal(now, then) for now, then in zip(inputs, before, strict=True))


def test_a_nan_is_passed_on(form):
    """A broken state must reach the loss, where training stops; a mask on other tokens must not hide it."""
    example = Example(form, T=4)
    example.x_TD[2] = float("nan")
    for keep in (None, Keep(example.random_keep(S=1), torch.tensor([0, 0, -1, 0]))):
        out = example.op(keep)
        assert out[2].isnan().all()
        assert out[[0, 1, 3]].isfinite().all()
